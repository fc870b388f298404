"""One shard as an Arrow IPC file: uncompressed, so that it can be mapped into memory and read at any row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pipelines.errors import DataError
from pipelines.records import RECORD_SCHEMA, Box, Record, compute_checksum

BATCH_BYTES = 64 * 2**20  # of images; Arrow's limit is 2 GiB, the memory of a worker is less
DIGEST_KEY = b"digest"  # of a record batch, see `_compute_digest`
DIGEST_COLUMNS = ("id", "evidence", "shape")  # what the checksum of a row does not cover
DAMAGE_FIX = "copy the file again, or build the shard set again"


@dataclass(frozen=True)
class ShardRows:
    """The rows of an open shard; images and columns lie in files mapped into memory, and nothing is held open.

    Attributes:
        data: The mapped file that holds the images.
        starts: int64 `[n]`, where in `data` an image begins.
        sizes: int64 `[n]`, bytes of an image.
        labels: int32 `[n]`.
        checksums: uint64 `[n]`, `pipelines.records.compute_checksum` of image and label; not yet held against them.
        shapes: int32 `[n, 3]`, height, width and channels.
        table: The columns `id` and `evidence`.
    """

    data: memoryview
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]
    checksums: NDArray[np.uint64]
    shapes: NDArray[np.int32]
    table: Any

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def image(self, row: int) -> memoryview:
        """The stored bytes of one image, neither copied nor checked."""
        start = int(self.starts[row])
        return self.data[start : start + int(self.sizes[row])]

    def is_sound(self, row: int) -> bool:
        """Whether image and label are what was written."""
        return compute_checksum(self.image(row), int(self.labels[row])) == int(self.checksums[row])

    def id(self, row: int) -> str:
        """The identifier of one row."""
        return str(self.table["id"][row].as_py())

    def evidence(self, row: int) -> Box | None:
        """The box `(ymin, xmin, ymax, xmax)` in [0, 1] of one row, None where unknown."""
        box = self.table["evidence"][row].as_py()
        return None if box is None else (box[0], box[1], box[2], box[3])


def write_arrow(path: Path, records: Iterable[Record]) -> int:
    """Writes records to a file; the same records give the same bytes.

    A shard is one record batch, or several where its images take more than `BATCH_BYTES`.

    Args:
        path: The file to make.
        records: The rows, consumed as they come.

    Returns:
        Number of rows.
    """
    rows = 0
    with open_writer(path, RECORD_SCHEMA) as write:
        for group in group_records(records):
            write([_build_bytes_column([record.image for record in group], pa.binary()), *build_columns(group)])
            rows += len(group)
    return rows


def open_arrow(path: Path) -> ShardRows:
    """Maps a shard file into memory.

    Raises:
        DataError: It is not a file of `write_arrow`, or its columns are damaged. Images are not looked at.
    """
    with report_damage(path):
        whole = map_file(path)
        batches = read_batches(whole, RECORD_SCHEMA)
        images = [batch.column(0) for batch in batches]
        ends = [
            np.frombuffer(image.buffers()[1], np.int32, len(image) + 1).astype(np.int64) for image in images
        ]
        bases = [
            data.address - whole.address if data.size else 0
            for data in (image.buffers()[2] for image in images)
        ]
        starts = [base + end[:-1] for base, end in zip(bases, ends, strict=True)]
        return build_shard_rows(
            whole, concatenate(starts, np.int64), concatenate([np.diff(end) for end in ends], np.int64), batches
        )


@contextmanager
def open_writer(path: Path, schema: Any) -> Iterator[Any]:
    """Yields a function that writes a list of columns as a record batch, with its digest."""
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:

        def write(arrays: list[Any]) -> None:
            batch = pa.record_batch(arrays, schema=schema)
            writer.write_batch(batch, custom_metadata={DIGEST_KEY: _compute_digest(batch)})

        yield write


def build_columns(records: list[Record]) -> list[Any]:
    """The columns of `RECORD_SCHEMA` but for the image, `[len(records)]`."""
    boxes = np.array(
        [record.evidence or (0.0,) * 4 for record in records], np.float32
    )  # defined bytes under a null too
    known = np.array([record.evidence is not None for record in records])
    validity = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    evidence, shape = RECORD_SCHEMA.field("evidence").type, RECORD_SCHEMA.field("shape").type
    shapes = build_number_column([record.shape for record in records], np.int32)
    return [
        build_number_column([record.label for record in records], np.int32),
        _build_bytes_column([record.id.encode() for record in records], pa.string()),
        pa.Array.from_buffers(evidence, len(records), [validity], children=[build_number_column(boxes, np.float32)]),
        pa.Array.from_buffers(shape, len(records), [None], children=[shapes]),
        build_number_column([compute_checksum(record.image, record.label) for record in records], np.uint64),
    ]


def build_number_column(values: ArrayLike, dtype: DTypeLike) -> Any:
    """A column of numbers. From buffers, because `pa.array` imports pandas, which takes a worker a second."""
    array = np.array(values, dtype).ravel()
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), array.size, [None, pa.py_buffer(array)])


def _build_bytes_column(values: list[bytes], kind: Any) -> Any:
    """A column of bytes or text."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))]
    )


def map_file(path: Path) -> Any:
    """The bytes of a file, mapped into memory; the descriptor is closed, the map lives as long as the buffer."""
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def read_batches(whole: Any, schema: Any) -> list[Any]:
    """The record batches of a mapped file, of which the columns `DIGEST_COLUMNS` are checked.

    Raises:
        ValueError: The file holds other columns, or they are damaged.
    """
    file = pa.ipc.open_file(pa.BufferReader(whole))
    if not file.schema.equals(schema):
        raise ValueError(f"other columns than {', '.join(schema.names)}")
    batches = []
    for index in range(file.num_record_batches):
        batch, metadata = file.get_batch_with_custom_metadata(index)
        batch.validate()
        if metadata is None or metadata.to_dict().get(DIGEST_KEY) != _compute_digest(batch):
            raise ValueError(f"damaged columns in record batch {index}")
        batches.append(batch)
    return batches


def build_shard_rows(
    data: Any, starts: NDArray[np.int64], sizes: NDArray[np.int64], batches: list[Any]
) -> ShardRows:
    """Rows from where the images lie in `data` and the other columns.

    Raises:
        ValueError: An image lies outside of `data`.
    """
    if len(starts) and not 0 <= starts.min() <= (starts + sizes).max() <= data.size:
        raise ValueError("an image outside of the file")
    return ShardRows(
        data=memoryview(data).cast("B"),  # Arrow says signed bytes
        starts=starts,
        sizes=sizes,
        labels=read_column(batches, "label", np.int32),
        checksums=read_column(batches, "checksum", np.uint64),
        shapes=read_column(batches, "shape", np.int32, 3).reshape(-1, 3),  # [n * 3] -> [n, 3]
        table=pa.Table.from_batches(batches, None if batches else RECORD_SCHEMA),
    )


def read_column(batches: list[Any], name: str, dtype: DTypeLike, width: int = 1) -> NDArray[Any]:
    """A column of numbers over all record batches, `[n * width]`; a view where there is one batch."""
    return concatenate(
        [np.frombuffer(batch.column(name).buffers()[-1], dtype, len(batch) * width) for batch in batches],
        dtype,
    )


def concatenate(parts: list[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
    """One array of several, without copying where there is only one."""
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])


@contextmanager
def report_damage(path: Path) -> Iterator[None]:
    """What Arrow and NumPy find wrong with a file, as an error of the user's."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError("an undamaged Arrow IPC file", f"{path}: {reason}", DAMAGE_FIX) from None


def group_records(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in groups of at most `BATCH_BYTES` of images, but at least one record."""
    waiting: list[Record] = []
    size = 0
    for record in records:
        if waiting and size + len(record.image) > BATCH_BYTES:
            yield waiting
            waiting, size = [], 0
        waiting.append(record)
        size += len(record.image)
    if waiting:
        yield waiting


def _compute_digest(batch: Any) -> bytes:
    """XXH3-64 of the columns that the checksums of the rows do not cover."""
    state = xxhash.xxh3_64()
    for values in map(batch.column, DIGEST_COLUMNS):
        validity, *rest = values.buffers()
        for buffer in (validity if values.null_count else None, *rest):
            state.update(buffer or b"")
    return state.hexdigest().encode()
