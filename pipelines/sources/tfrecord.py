"""TFRecord files of `tf.train.Example`: `tfrecord:PATTERN`, with the usual keys or those of shard sets."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipelines.errors import DataError
from pipelines.records import BBOX_COLUMN, Box, Example, Rejected
from pipelines.remote.errors import ObjectMissingError
from pipelines.remote.files import read_file
from pipelines.remote.ranges import open_object
from pipelines.remote.store import read_range
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.sources.base import SOURCES, build_read_error
from pipelines.sources.columns import find_column
from pipelines.sources.layout import MAX_FILE
from pipelines.sources.locations import compute_stamp, map_files
from pipelines.sources.options import SourceOptions
from pipelines.sources.patterns import expand_pattern, find_splits_of_files
from pipelines.sources.table import Item, TableSource, build_source
from pipelines.sources.tfexample import (
    FOOTER_BYTES,
    DamagedRecordError,
    Values,
    check_record,
    find_records,
    parse_example,
    stream_records,
)
from pipelines.storage import parse_json

DAMAGE_FIX = "copy the file again, or export it again"
STREAM_BUFFER = 2**23  # bytes per request while all records of an object are listed
GZIP = b"\x1f\x8b"
INDEX_SUFFIX = ".index.arrow"  # of the files next to the TFRecord files of our shard sets


class _Keys(NamedTuple):
    """Keys of the features with image, label and identifier."""

    image: str
    label: str | None
    id: str | None


@dataclass(frozen=True)
class RecordReader:
    """Reads images from TFRecord files.

    Attributes:
        paths: Paths or URIs of the files.
        key: Key of the image.
    """

    paths: tuple[str, ...]
    key: str

    def read(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Example | Rejected]:
        """Yields one image per row; with several requests in flight if the files are in a store.

        Damaged records are rejected.

        Raises:
            DataError: A file has disappeared.
        """
        return map_files(self.paths, self._read_row, rows, itemgetter("size"))

    def _read_row(self, row: Mapping[str, Any]) -> Example | Rejected:
        path = parse_location(self.paths[row["file"]])
        try:
            content = memoryview(_read_part(path, row["offset"], row["size"] + FOOTER_BYTES))
            record = content[: row["size"]]
            check_record(bytes(record), bytes(content[row["size"] :]))
            features = parse_example(record)
        except DamagedRecordError as error:
            return Rejected(row["id"], str(error))
        except OSError as error:
            raise build_read_error(str(path), error) from None
        image = bytes(features[self.key][0])  # type: ignore[arg-type]
        return Example(image, row["label"], row["id"], _read_box(features))


@SOURCES.register("tfrecord")
def open_tfrecords(argument: str, options: SourceOptions | None = None) -> TableSource:
    """Lists the records of TFRecord files, without TensorFlow.

    Args:
        argument: Pattern of the paths or URIs of the files, such as `data/train-*.tfrecord`. A split in their
            names (`train`, `val`, ...) is the split of their records. Class names are read from the manifest
            of a shard set next to the files, whose index files (`*.index.arrow`) are skipped.
        options: Keys and class names that the user specified.

    Raises:
        ConfigError: A file does not exist.
        DataError: A file is damaged or cut off, a key is missing, or an image has several labels; see also
            `build_source`.
    """
    options = options or SourceOptions()
    name = f"tfrecord:{argument}"
    paths = [path for path in expand_pattern(name, argument, "*.tfrecord*") if not _is_index(path)]
    splits, notes = find_splits_of_files(name, paths)
    first = next((record for path in paths for record in _read_records(path)), None)
    if first is None:
        raise DataError("records", f"source={name}: records=0", "check the pattern")
    keys = _find_keys(name, first[2], options)
    notes.append(f"keys: image={keys.image}, label={keys.label or 'none'}")

    def list_items(index: int) -> list[Item]:
        path = paths[index]
        file_items = []
        for offset, length, features in _read_records(path):
            item = Item(_name_record(path, offset), splits[index], None, index, offset, length)
            file_items.append(_build_item(features, keys, item))
        return file_items

    items: list[Item] = []
    for file_items in map_files(map(str, paths), list_items, range(len(paths))):
        items.extend(file_items)
    if len({item.id for item in items}) < len(items):
        items = [item._replace(id=_name_record(paths[item.file], item.offset)) for item in items]
    class_names = None if options.class_names else _read_manifest_names(paths[0])
    if class_names:
        notes.append("class names of the manifest next to the files")
    reader = RecordReader(tuple(map(str, paths)), keys.image)
    source = build_source(name, items, reader, options, notes, class_names=class_names)
    return replace(source, stamp=compute_stamp(paths))


def _name_record(path: Location, offset: int) -> str:
    return f"{path.name}/{offset:012d}"


def _is_index(path: Location) -> bool:
    return path.name.endswith(INDEX_SUFFIX)


def _map_file(path: Path) -> memoryview:
    """Maps a file to memory, for as long as there are views of it.

    Raises:
        DataError: The file cannot be read, or is compressed.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(GZIP))
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if head else b""
    except OSError as error:
        raise build_read_error(path, error) from None
    if head == GZIP:
        raise _build_compressed_error(path)
    return memoryview(content)


def _read_part(path: Location, start: int, size: int) -> bytes:
    """Reads some bytes of a file; fewer if a local file is cut off.

    Raises:
        OSError: A local file cannot be read.
        GlassboxError: An object cannot be read, or is cut off.
    """
    if isinstance(path, Uri):
        return read_range(path, start, size)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _read_records(path: Location) -> Iterator[tuple[int, int, dict[str, Values]]]:
    """Yields offset, length and features of every record of a file.

    Raises:
        DataError: The file is damaged or cut off, or a record is no `tf.train.Example`.
    """
    offset = 0
    try:
        if isinstance(path, Uri):
            for offset, record in stream_records(_open_stream(path)):
                yield offset, len(record), parse_example(record)
            return
        content = _map_file(path)
        for offset, length in find_records(content):
            yield offset, length, parse_example(content[offset : offset + length])
    except DamagedRecordError as error:
        received = f"{path}: {error} (after byte {offset})"
        raise DataError("a whole TFRecord file", received, DAMAGE_FIX) from None


def _find_keys(source: str, features: Mapping[str, Values], options: SourceOptions) -> _Keys:
    requested = options.parse_columns()
    names = [name for name, values in features.items() if values]
    image = str(find_column(source, "image", names, requested))
    label = find_column(source, "label", names, requested, options.needs_labels)
    return _Keys(image, label, find_column(source, "id", names, requested, is_required=False))


def _build_item(features: Mapping[str, Values], keys: _Keys, item: Item) -> Item:
    """Completes an item with the label and identifier of a record."""
    labels = [
        bytes(value) if isinstance(value, memoryview) else value
        for value in (features.get(keys.label, []) if keys.label else [])
    ]
    images = features.get(keys.image, [])
    problem = item.problem
    if not images or not isinstance(images[0], memoryview) or not len(images[0]):
        problem = "no bytes of an image"
    elif len(images[0]) > MAX_FILE:
        problem = f"larger than {MAX_FILE >> 20} MiB: {len(images[0])} bytes"
    identifiers = features.get(keys.id, []) if keys.id else []
    identifier = item.id
    if identifiers and isinstance(identifiers[0], memoryview):
        identifier = bytes(identifiers[0]).decode("utf-8", "backslashreplace") or item.id
    return item._replace(id=identifier, label=labels, problem=problem)


def _read_box(features: Mapping[str, Values]) -> Box | None:
    """Returns the bounding box of a record of ours."""
    values = [value for value in features.get(BBOX_COLUMN, []) if isinstance(value, float)]
    return (values[0], values[1], values[2], values[3]) if len(values) == 4 else None


def _open_stream(uri: Uri) -> IO[bytes]:
    """Opens an object to be read from the start to the end.

    Raises:
        DataError: The object does not exist, or is compressed.
    """
    file = open_object(uri, STREAM_BUFFER)
    if file.read(len(GZIP)) == GZIP:
        raise _build_compressed_error(uri)
    file.seek(0)
    return file


def _build_compressed_error(path: Location) -> DataError:
    return DataError("an uncompressed TFRecord file", f"{path} (compressed)", "decompress it with gunzip")


def _read_manifest_names(path: Location) -> tuple[str, ...] | None:
    """Returns the class names in the manifest next to a file of one of our shard sets; None without one."""
    try:
        names = parse_json(read_file(path.parent / "manifest.json"))["classes"]
    except (OSError, ObjectMissingError, ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names))
