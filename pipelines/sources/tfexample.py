"""Reads TFRecord files of `tf.train.Example` without TensorFlow.

The format of the files: https://www.tensorflow.org/tutorials/load_data/tfrecord. The messages are in the
wire format of Protocol Buffers: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Any

import google_crc32c

HEADER_BYTES = 12  # length of the record (8 bytes), CRC-32C of the length (4)
FOOTER_BYTES = 4  # CRC-32C of the record
PIECE_BYTES = 1 << 22  # of a record that are read at a time
VARINT = 0
FIXED64 = 1
LENGTH_DELIMITED = 2
FIXED32 = 5
MAX_VARINT_BYTES = 10
UINT32 = 0xFFFFFFFF

Values = list[memoryview] | list[int] | list[float]


class DamagedRecordError(Exception):
    """A record that is cut off or that was altered."""


def find_records(content: memoryview) -> Iterator[tuple[int, int]]:
    """Yields offset and length of every record of a TFRecord file; checks the lengths, not the records.

    Raises:
        DamagedRecordError: The file is cut off, or is no TFRecord file.
    """
    position = 0
    while position < len(content):
        header = content[position : position + HEADER_BYTES]
        if len(header) < HEADER_BYTES:
            raise DamagedRecordError(f"cut off at byte {position}")
        if compute_masked_crc(bytes(header[:8])) != bytes(header[8:]):
            raise DamagedRecordError(f"no record at byte {position}")
        (length,) = struct.unpack("<Q", header[:8])
        start = position + HEADER_BYTES
        position = start + length + FOOTER_BYTES
        if position > len(content):
            raise DamagedRecordError(f"cut off in the record at byte {start}")
        yield start, length


def stream_records(file: IO[bytes]) -> Iterator[tuple[int, memoryview]]:
    """Yields offset and content of every record of an open TFRecord file, from its position on.

    It checks the lengths, not the records.

    Raises:
        DamagedRecordError: The file is cut off, or is no TFRecord file.
    """
    position = 0
    while header := file.read(HEADER_BYTES):
        if len(header) < HEADER_BYTES:
            raise DamagedRecordError(f"cut off at byte {position}")
        if compute_masked_crc(header[:8]) != header[8:]:
            raise DamagedRecordError(f"no record at byte {position}")
        (length,) = struct.unpack("<Q", header[:8])
        start = position + HEADER_BYTES
        content = _read_up_to(file, length + FOOTER_BYTES)
        if len(content) < length + FOOTER_BYTES:
            raise DamagedRecordError(f"cut off in the record at byte {start}")
        yield start, memoryview(content)[:length]
        position = start + length + FOOTER_BYTES


def _read_up_to(file: IO[bytes], size: int) -> bytes:
    """Reads a number of bytes, or fewer at the end; memory is allocated only for bytes that are there."""
    content = bytearray()
    while len(content) < size:
        piece = file.read(min(size - len(content), PIECE_BYTES))
        if not piece:
            break
        content += piece
    return bytes(content)


def check_record(record: bytes, footer: bytes) -> None:
    """Compares a record with its checksum.

    Raises:
        DamagedRecordError: They differ, or the record is cut off.
    """
    if compute_masked_crc(record) != footer:
        raise DamagedRecordError("damaged: not the CRC-32C of the record")


def parse_example(record: memoryview) -> dict[str, Values]:
    """Parses a `tf.train.Example`.

    Args:
        record: The serialised message.

    Returns:
        Values of every feature by its name. Bytes are views of the record: nothing is copied.

    Raises:
        DamagedRecordError: The record is no such message.
    """
    features: dict[str, Values] = {}
    try:
        for number, content in _iterate_fields(record):
            if number != 1:  # Example.features
                continue
            for inner_number, entry in _iterate_fields(content):
                if inner_number == 1:  # Features.feature
                    name, values = _parse_entry(entry)
                    features[name] = values
    except (IndexError, struct.error, TypeError, UnicodeDecodeError) as error:
        raise DamagedRecordError(f"no tf.train.Example: {error}") from None
    return features


def _parse_entry(entry: memoryview) -> tuple[str, Values]:
    """Parses one entry of the map from names to features."""
    name = ""
    values: Values = []
    for number, content in _iterate_fields(entry):
        if number == 1:
            name = bytes(content).decode()
        elif number == 2:
            for kind, items in _iterate_fields(content):
                values = _parse_list(kind, items)
    return name, values


def _parse_list(kind: int, content: memoryview) -> Values:
    """Parses a list of bytes (1), floats (2) or integers (3), packed or one by one."""
    values: list[Any] = []
    for _, value in _iterate_fields(content):
        if kind == 1:
            values.append(value)
        elif kind == 2:
            values.extend(struct.unpack(f"<{len(value) // 4}f", value))
        elif isinstance(value, int):
            values.append(_to_signed(value))
        else:
            position = 0
            while position < len(value):
                number, position = _read_varint(value, position)
                values.append(_to_signed(number))
    return values


def _iterate_fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yields number and content of every field of a message: an integer for a varint, else bytes."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        kind = key & 7
        if kind == VARINT:
            value, position = _read_varint(message, position)
            yield key >> 3, value
            continue
        if kind == LENGTH_DELIMITED:
            length, position = _read_varint(message, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise IndexError(f"a field of type {kind}")
        if position + length > len(message):
            raise IndexError("a field is cut off")
        yield key >> 3, message[position : position + length]
        position += length


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Returns an integer in groups of seven bits, the lowest first, and the position after it."""
    value = 0
    for index in range(MAX_VARINT_BYTES):
        byte = message[position + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, position + index + 1
    raise IndexError("an integer of more than 10 bytes")


def _to_signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def compute_masked_crc(data: bytes) -> bytes:
    """Returns the checksum of TFRecord: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & UINT32)
