"""Shards as TFRecord files of `tf.train.Example`, each with an index file for reading at any row.

Any TensorFlow program can read the shards without the index:

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "id": tf.io.FixedLenFeature([], tf.string),
        "shape": tf.io.FixedLenFeature([3], tf.int64),
        "evidence": tf.io.VarLenFeature(tf.float32),  # the bounding box: four numbers, or none
    }
    tf.data.TFRecordDataset(files).map(lambda record: tf.io.parse_single_example(record, features))

This module writes the wire format (https://www.tensorflow.org/tutorials/load_data/tfrecord) itself, because
importing TensorFlow takes seconds and half a gigabyte in every worker of a build. The bytes are those that
`tf.io.TFRecordWriter` would write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.records import BBOX_COLUMN, RECORD_SCHEMA, Record
from pipelines.shards.arrow import (
    ColumnBuilder,
    RowColumns,
    build_number_column,
    build_row_columns,
    build_table,
    open_writer,
    read_batches,
    read_column,
    report_damage,
)
from pipelines.sources.tfexample import compute_masked_crc

INDEX_SCHEMA = pa.schema(
    [
        *(field for field in RECORD_SCHEMA if field.name != "image"),
        pa.field("offset", pa.int64(), nullable=False),  # of the image in the TFRecord file
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)


def write_tfrecord(path: Path, index: Path, records: Iterable[Record]) -> int:
    """Writes records to one file and the offsets of their images to another; equal records give equal bytes.

    Args:
        path: TFRecord file to create.
        index: Arrow file to create, with every column except the image, and the image's offset and size.
        records: Rows of the shard, which need not fit in memory at once.

    Returns:
        Number of rows written.
    """
    rows = 0
    position = 0
    columns = ColumnBuilder()
    offsets: list[int] = []
    sizes: list[int] = []
    with path.open("wb") as stream, open_writer(index, INDEX_SCHEMA) as write:

        def write_batch() -> None:
            places = [build_number_column(values, np.int64) for values in (offsets, sizes)]
            write([*columns.build(), *places])
            columns.clear()
            offsets.clear()
            sizes.clear()

        for record in records:
            if not columns.has_room(record.image):
                write_batch()
            before, after = _serialize(record)
            payload = before + record.image + after
            length = struct.pack("<Q", len(payload))
            header = length + compute_masked_crc(length)
            columns.add(record)
            offsets.append(position + len(header) + len(before))
            sizes.append(len(record.image))
            position += stream.write(b"".join((header, payload, compute_masked_crc(payload))))
            rows += 1
        if columns.rows:
            write_batch()
    return rows


def read_index(index: Path, file_bytes: int) -> tuple[RowColumns, Any]:
    """Reads the index file of a shard.

    Args:
        index: Arrow file with the offsets of the images and all other columns.
        file_bytes: Size of the TFRecord file with the images.

    Returns:
        Columns of numbers, and an Arrow table with identifiers and bounding boxes.

    Raises:
        DataError: The index was not written by `write_tfrecord`, or belongs to another file. Images are not
            checked.
    """
    with report_damage(index):
        batches = read_batches(index, INDEX_SCHEMA, INDEX_SCHEMA.names)
        starts = read_column(batches, "offset", np.int64)
        sizes = read_column(batches, "bytes", np.int64)
        return build_row_columns(starts, sizes, batches, file_bytes), build_table(batches)


def _serialize(record: Record) -> tuple[bytes, bytes]:
    """Returns the bytes of the `tf.train.Example` of a record before and after the image.

    The image comes last in each of the messages around it, so all of them start with a head that counts it.
    """
    box = b"" if record.bbox is None else struct.pack("<4f", *record.bbox)
    floats = _encode_field(2, _encode_field(1, box) if box else b"")
    identifier = _encode_field(1, _encode_field(1, record.id.encode()))
    before = _encode_entry(BBOX_COLUMN, floats) + _encode_entry("id", identifier)
    after = _encode_entry("label", _encode_integers(record.label))
    after += _encode_entry("shape", _encode_integers(*record.shape))

    size = len(record.image)
    head = _encode_head(1, size)  # BytesList.value
    head = _encode_head(1, len(head) + size) + head  # Feature.bytes_list
    head = _encode_head(2, len(head) + size) + head  # value of the map entry, after its key
    head = _encode_field(1, b"image") + head
    head = _encode_head(1, len(head) + size) + head  # Features.feature
    before += head
    return _encode_head(1, len(before) + size + len(after)) + before, after  # Example.features


def _encode_entry(key: str, feature: bytes) -> bytes:
    """Encodes one entry of the map `Features.feature`."""
    return _encode_field(1, _encode_field(1, key.encode()) + _encode_field(2, feature))


def _encode_integers(*values: int) -> bytes:
    """Encodes a `Feature` of integers."""
    return _encode_field(3, _encode_field(1, b"".join(map(_encode_varint, values))))


def _encode_field(number: int, content: bytes) -> bytes:
    """Encodes a length-delimited field of the Protocol Buffers wire format."""
    return _encode_head(number, len(content)) + content


def _encode_head(number: int, size: int) -> bytes:
    """Encodes the head of a length-delimited field: its number and the size of its content."""
    return bytes([number << 3 | 2]) + _encode_varint(size)


def _encode_varint(value: int) -> bytes:
    """Encodes a non-negative integer in groups of seven bits, the lowest first."""
    septets = bytearray()
    while value > 127:
        septets.append(value & 127 | 128)
        value >>= 7
    septets.append(value)
    return bytes(septets)
