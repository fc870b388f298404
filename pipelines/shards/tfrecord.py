"""One shard as a TFRecord file of `tf.train.Example`, with an index beside it for reading at any row.

Any TensorFlow program reads it without the index:

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "id": tf.io.FixedLenFeature([], tf.string),
        "shape": tf.io.FixedLenFeature([3], tf.int64),
        "evidence": tf.io.VarLenFeature(tf.float32),  # four numbers, or none
    }
    tf.data.TFRecordDataset(files).map(lambda record: tf.io.parse_single_example(record, features))

The wire format (https://www.tensorflow.org/tutorials/load_data/tfrecord) is written here rather than by TensorFlow, whose import
takes seconds and half a gigabyte in every worker of a build; the bytes are those that `tf.io.TFRecordWriter` would write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa

from pipelines.records import RECORD_SCHEMA, Record
from pipelines.shards.arrow import (
    ShardRows,
    build_columns,
    build_number_column,
    build_shard_rows,
    group_records,
    map_file,
    open_writer,
    read_batches,
    read_column,
    report_damage,
)

INDEX_SCHEMA = pa.schema(
    [
        *(field for field in RECORD_SCHEMA if field.name != "image"),
        pa.field("offset", pa.int64(), nullable=False),  # of the bytes of the image in the TFRecord file
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)
MASK = 0xFFFFFFFF


def write_tfrecord(path: Path, index: Path, records: Iterable[Record]) -> int:
    """Writes records to a file and where their images lie to another; the same records give the same bytes.

    Args:
        path: The TFRecord file to make.
        index: The Arrow file to make: every column but the image, and its offset and bytes.
        records: The rows, consumed as they come.

    Returns:
        Number of rows.
    """
    rows, at = 0, 0
    with path.open("wb") as stream, open_writer(index, INDEX_SCHEMA) as write:
        for group in group_records(records):
            offsets = []
            for record in group:
                before, after = _example(record)
                payload = before + record.image + after
                length = struct.pack("<Q", len(payload))
                offsets.append(at + 12 + len(before))
                at += stream.write(b"".join((length, _masked(length), payload, _masked(payload))))
            sizes = [len(record.image) for record in group]
            write([*build_columns(group), build_number_column(offsets, np.int64), build_number_column(sizes, np.int64)])
            rows += len(group)
    return rows


def open_tfrecord(path: Path, index: Path) -> ShardRows:
    """Maps a shard file into memory, by its index.

    Raises:
        DataError: The index is not what `write_tfrecord` wrote, or is that of another file. Images are not looked at.
    """
    with report_damage(index):
        batches = read_batches(map_file(index), INDEX_SCHEMA)
        starts, sizes = read_column(batches, "offset", np.int64), read_column(batches, "bytes", np.int64)
        return build_shard_rows(map_file(path), starts, sizes, batches)


def _example(record: Record) -> tuple[bytes, bytes]:
    """The serialised `tf.train.Example` of a record: what stands before its image, and what after."""
    evidence = struct.pack(f"<{len(record.evidence or ())}f", *(record.evidence or ()))
    floats = _field(2, _field(1, evidence) if evidence else b"")
    before = _entry("evidence", floats) + _entry("id", _field(1, _field(1, record.id.encode())))
    after = _entry("label", _integers(record.label)) + _entry("shape", _integers(*record.shape))
    size = len(record.image)
    head = b"\x0a" + _varint(size)  # BytesList.value
    for number in (1, 2):  # Feature.bytes_list, then the value of the map entry behind its key
        size_inside = len(head) + size
        head = bytes([number << 3 | 2]) + _varint(size_inside) + head
    head = _field(1, b"image") + head
    head = b"\x0a" + _varint(len(head) + size) + head  # Features.feature
    before += head
    return b"\x0a" + _varint(len(before) + size + len(after)) + before, after  # Example.features


def _entry(key: str, feature: bytes) -> bytes:
    """One entry of the map `Features.feature`."""
    return _field(1, _field(1, key.encode()) + _field(2, feature))


def _integers(*values: int) -> bytes:
    """A `Feature` of whole numbers."""
    return _field(3, _field(1, b"".join(map(_varint, values))))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of the Protocol Buffers wire format."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first."""
    groups_of_seven = bytearray()
    while value > 127:
        groups_of_seven.append(value & 127 | 128)
        value >>= 7
    groups_of_seven.append(value)
    return bytes(groups_of_seven)


def _masked(data: bytes) -> bytes:
    """The checksum of TFRecord: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & MASK)
