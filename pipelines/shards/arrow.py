"""Shards as uncompressed Arrow IPC files, which can be read at any row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pipelines.errors import DataError
from pipelines.open_file import DAMAGE_FIX, OpenFile
from pipelines.records import BBOX_COLUMN, RECORD_SCHEMA, Box, Record, Shape, compute_checksum

BATCH_BYTES = 64 * 2**20  # images of one record batch; Arrow allows 2 GiB, but a worker has less memory
DIGEST_KEY = b"digest"  # in the metadata of a record batch, see `_compute_digest`
DIGEST_COLUMNS = ("id", BBOX_COLUMN, "shape")  # those that the checksums of rows do not cover
COLUMNS = tuple(name for name in RECORD_SCHEMA.names if name != "image")


@dataclass(frozen=True)
class RowColumns:
    """Where the images of the `n` rows of a shard are, and what is stored about them.

    Attributes:
        labels: int32 `[n]`, class indices.
        starts: int64 `[n]`, offset of every image in the file that holds the images.
        sizes: int32 `[n]`, number of bytes of every image.
        checksums: uint64 `[n]`, as written by `pipelines.records.compute_checksum`.
        shapes: int32 `[n, 3]`, height, width and channels.
    """

    labels: NDArray[np.int32]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int32]
    checksums: NDArray[np.uint64]
    shapes: NDArray[np.int32]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.labels)


@dataclass(frozen=True)
class ShardRows(RowColumns):
    """The `n` rows of an open shard.

    Attributes:
        file: File that holds the images.
        table: Arrow table with the columns of identifiers and bounding boxes.
    """

    file: OpenFile
    table: Any

    def read_image(self, row: int) -> bytes:
        """Reads the stored bytes of one image, without checking them.

        Raises:
            DataError: The file was truncated after it was opened.
        """
        return self.file.read(int(self.starts[row]), int(self.sizes[row]))

    def is_sound(self, row: int, image: bytes) -> bool:
        """Tells whether image and label of a row have the checksum that was written with them."""
        return compute_checksum(image, int(self.labels[row])) == int(self.checksums[row])

    def id(self, row: int) -> str:
        """Returns the identifier of one row."""
        return str(self.table["id"][row].as_py())

    def bbox(self, row: int) -> Box | None:
        """Returns the bounding box `(ymin, xmin, ymax, xmax)` in [0, 1] of one row, or None."""
        box = self.table[BBOX_COLUMN][row].as_py()
        return None if box is None else (box[0], box[1], box[2], box[3])


def write_arrow(path: Path, records: Iterable[Record], images: ImageBuffer | None = None) -> int:
    """Writes records to a file; the same records give the same bytes.

    A shard is one record batch, or several if its images take more than `BATCH_BYTES`.

    Args:
        path: File to create.
        records: Rows of the shard, which need not fit in memory at once.
        images: Memory for the images, which nobody else uses meanwhile; None to obtain it.

    Returns:
        Number of rows written.
    """
    rows = 0
    images = images or ImageBuffer()
    images.clear()
    columns = ColumnBuilder()
    with open_writer(path, RECORD_SCHEMA) as write:

        def write_batch() -> None:
            write([images.build_column(), *columns.build()])
            images.clear()
            columns.clear()

        for record in records:
            if not columns.has_room(record.image):
                write_batch()
            images.add(record.image)
            columns.add(record)
            rows += 1
        if columns.rows:
            write_batch()
    return rows


def read_arrow(path: Path) -> tuple[RowColumns, Any]:
    """Reads all columns of a shard file except the images.

    Returns:
        Columns of numbers, and an Arrow table with identifiers and bounding boxes.

    Raises:
        DataError: `write_arrow` did not write the file, or its columns are damaged. Images are not checked.
    """
    with report_damage(path):
        batches = read_batches(path, RECORD_SCHEMA, COLUMNS)
        starts, sizes = _find_images(path)
        return build_row_columns(starts, sizes, batches, path.stat().st_size), build_table(batches)


def read_arrow_table(path: Path) -> Any:
    """Reads the Arrow table with identifiers and bounding boxes of a shard file.

    Raises:
        DataError: `write_arrow` did not write the file, or its columns are damaged.
    """
    with report_damage(path):
        return build_table(read_batches(path, RECORD_SCHEMA, COLUMNS))


def _find_images(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Finds the images in a shard file that `write_arrow` wrote: their offsets and sizes, each `[n]`."""
    # Arrow reads a column of images only as a whole, so the file is mapped for a moment. Only the offsets
    # are touched.
    with pa.memory_map(str(path)) as stream:
        content = stream.read_buffer()
    file = pa.ipc.open_file(pa.BufferReader(content))
    starts = []
    sizes = []
    for index in range(file.num_record_batches):
        images = file.get_batch(index).column("image")
        _, ends_buffer, data = images.buffers()
        ends = np.frombuffer(ends_buffer, np.int32, len(images) + 1).astype(np.int64)
        base = data.address - content.address if data.size else 0
        starts.append(base + ends[:-1])
        sizes.append(np.diff(ends).astype(np.int32))
    return _concatenate(starts, np.int64), _concatenate(sizes, np.int32)


@contextmanager
def open_writer(path: Path, schema: Any) -> Iterator[Any]:
    """Opens a file and yields a function that writes a list of columns to it as a record batch."""
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:

        def write(arrays: list[Any]) -> None:
            batch = pa.record_batch(arrays, schema=schema)
            writer.write_batch(batch, custom_metadata={DIGEST_KEY: _compute_digest(batch)})

        yield write


class ColumnBuilder:
    """Collects the rows of a record batch without their images.

    Attributes:
        rows: Number of rows.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Removes all rows."""
        self.rows = 0
        self._image_bytes = 0
        self._labels: list[int] = []
        self._ids: list[bytes] = []
        self._boxes: list[Box | None] = []
        self._shapes: list[Shape] = []
        self._checksums: list[int] = []

    def has_room(self, image: bytes) -> bool:
        """Tells whether one more image keeps the record batch within `BATCH_BYTES`, or is its first."""
        return not self.rows or self._image_bytes + len(image) <= BATCH_BYTES

    def add(self, record: Record) -> None:
        """Adds a row."""
        self.rows += 1
        self._image_bytes += len(record.image)
        self._labels.append(record.label)
        self._ids.append(record.id.encode())
        self._boxes.append(record.bbox)
        self._shapes.append(record.shape)
        self._checksums.append(compute_checksum(record.image, record.label))

    def build(self) -> list[Any]:
        """Builds all columns of `RECORD_SCHEMA` except the image."""
        # Nulls get defined bytes too, so that the same records give the same file.
        boxes = build_number_column([box or (0.0,) * 4 for box in self._boxes], np.float32)
        has_box = np.array([box is not None for box in self._boxes])
        validity = None if has_box.all() else pa.py_buffer(np.packbits(has_box, bitorder="little"))
        box_type = RECORD_SCHEMA.field(BBOX_COLUMN).type
        shapes = build_number_column(self._shapes, np.int32)
        shape_type = RECORD_SCHEMA.field("shape").type
        return [
            build_number_column(self._labels, np.int32),
            _build_bytes_column(self._ids, pa.string()),
            pa.Array.from_buffers(box_type, self.rows, [validity], children=[boxes]),
            pa.Array.from_buffers(shape_type, self.rows, [None], children=[shapes]),
            build_number_column(self._checksums, np.uint64),
        ]


class ImageBuffer:
    """Collects the images of a record batch, in memory that the next batch and the next shard use again.

    Memory that is new to a process takes as long to obtain as a file of that size takes to read, so images
    are not kept one by one.
    """

    def __init__(self) -> None:
        self._data = np.empty(BATCH_BYTES, np.uint8)
        self._ends = [0]

    def add(self, image: bytes) -> None:
        """Adds an image; one that is larger than `BATCH_BYTES` must be the first."""
        start = self._ends[-1]
        end = start + len(image)
        if end > len(self._data):
            self._data = np.empty(end, np.uint8)
        self._data[start:end] = np.frombuffer(image, np.uint8)
        self._ends.append(end)

    def build_column(self) -> Any:
        """Builds the column of images, which is valid until the next call of `add`."""
        return _build_variable_column(pa.binary(), self._ends, self._data[: self._ends[-1]])

    def clear(self) -> None:
        """Removes all images."""
        self._ends = [0]


def build_number_column(values: ArrayLike, dtype: DTypeLike) -> Any:
    """Builds a column of numbers."""
    # Not with `pa.array`, which would import pandas: a second in every worker.
    array = np.array(values, dtype).ravel()
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), array.size, [None, pa.py_buffer(array)])


def _build_bytes_column(values: list[bytes], kind: Any) -> Any:
    """Builds a column of bytes or text."""
    return _build_variable_column(kind, np.cumsum([0, *map(len, values)]), b"".join(values))


def _build_variable_column(kind: Any, ends: ArrayLike, data: bytes | NDArray[np.uint8]) -> Any:
    """Builds a column of values of different sizes, given where each ends in `data`, after a zero."""
    offsets = np.array(ends, np.int32)
    return pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def read_batches(path: Path, schema: Any, columns: Sequence[str]) -> list[Any]:
    """Reads some columns of a file, batch by batch, and checks its `DIGEST_COLUMNS`.

    Args:
        path: Arrow IPC file.
        schema: All columns that the file must have.
        columns: Names of the columns to read, among them `DIGEST_COLUMNS`. No others are read.

    Raises:
        ValueError: The file has other columns, or they are damaged.
    """
    with pa.OSFile(str(path), "rb") as stream:
        if not pa.ipc.open_file(stream).schema.equals(schema):
            raise ValueError(f"the columns are not {', '.join(schema.names)}")
        fields = [schema.get_field_index(name) for name in columns]
        file = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=fields))
        batches = []
        for index in range(file.num_record_batches):
            batch, metadata = file.get_batch_with_custom_metadata(index)
            batch.validate()
            if metadata is None or metadata.to_dict().get(DIGEST_KEY) != _compute_digest(batch):
                raise ValueError(f"damaged columns in record batch {index}")
            batches.append(batch)
    return batches


def build_row_columns(
    starts: NDArray[np.int64],
    sizes: NDArray[np.signedinteger[Any]],
    batches: list[Any],
    file_bytes: int,
) -> RowColumns:
    """Builds the columns of a shard's rows.

    Args:
        starts: int64 `[n]`, offset of every image in the file that holds the images.
        sizes: int32 or int64 `[n]`, number of bytes of every image.
        batches: Record batches with all other columns.
        file_bytes: Size of the file that holds the images.

    Raises:
        ValueError: An image exceeds the file.
    """
    check_ranges(starts, sizes, file_bytes)
    return RowColumns(
        labels=read_column(batches, "label", np.int32),
        starts=starts,
        sizes=sizes.astype(np.int32, copy=False),
        checksums=read_column(batches, "checksum", np.uint64),
        shapes=read_column(batches, "shape", np.int32, 3).reshape(-1, 3),  # [n * 3] -> [n, 3]
    )


def build_table(batches: list[Any]) -> Any:
    """Builds the Arrow table with identifiers and bounding boxes."""
    return pa.Table.from_batches(batches, None if batches else RECORD_SCHEMA).select(["id", BBOX_COLUMN])


def check_ranges(starts: NDArray[np.int64], sizes: NDArray[np.signedinteger[Any]], file_bytes: int) -> None:
    """Checks that all images lie inside their file.

    Raises:
        ValueError: An image exceeds the file.
    """
    if not len(starts):
        return
    # Each alone first, because the sum of two large numbers may be negative.
    largest = max(starts.max(), sizes.max())
    if min(starts.min(), sizes.min()) < 0 or max(largest, (starts + sizes).max()) > file_bytes:
        raise ValueError("an image outside of the file")


def read_column(batches: list[Any], name: str, dtype: DTypeLike, width: int = 1) -> NDArray[Any]:
    """Returns a column of numbers over all record batches, `[n * width]`; a view of a single batch."""
    parts = []
    for batch in batches:
        values = batch.column(name).buffers()[-1]
        parts.append(np.frombuffer(values, dtype, len(batch) * width))
    return _concatenate(parts, dtype)


def _concatenate(parts: list[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
    """Concatenates any number of arrays, without copying if there is only one."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.empty(0, dtype), *parts])


@contextmanager
def report_damage(path: Path) -> Iterator[None]:
    """Turns errors of Arrow and NumPy about a damaged file into a `DataError` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[0].rstrip(".")
        raise DataError("an undamaged Arrow IPC file", f"{path}: {reason}", DAMAGE_FIX) from None


def _compute_digest(batch: Any) -> bytes:
    """Returns the XXH3-64 of the columns that the checksums of the rows do not cover."""
    state = xxhash.xxh3_64()
    for name in DIGEST_COLUMNS:
        values = batch.column(name)
        validity, *rest = values.buffers()
        if values.null_count:
            state.update(validity)
        for buffer in rest:
            state.update(buffer or b"")
    return state.hexdigest().encode()
