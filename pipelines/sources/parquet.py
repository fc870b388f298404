"""Images in Parquet files: `parquet:FILE` or `parquet:DIR`, such as data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.remote.files import is_file
from pipelines.remote.store import list_objects
from pipelines.remote.uri import Location, parse_location
from pipelines.sources.base import SOURCES
from pipelines.sources.columns import find_column
from pipelines.sources.layout import MAX_FILE
from pipelines.sources.locations import compute_stamp, map_files, open_location, parse_source_location
from pipelines.sources.options import SourceOptions
from pipelines.sources.patterns import find_splits_of_files
from pipelines.sources.splits import find_split_of_folder
from pipelines.sources.table import Item, TableSource, build_source
from pipelines.storage import parse_json

DAMAGE_FIX = "copy the file again, or export it again"
FOOTER_BUFFER = 2**16  # bytes per request, unless more is read at once
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class ParquetReader:
    """Reads the image column of Parquet files, one row group at a time.

    Attributes:
        paths: Paths or URIs of the files.
        column: Name of the image column: bytes, or a struct with `bytes`.
    """

    paths: tuple[str, ...]
    column: str

    def read(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Example | Rejected]:
        """Yields one image per row; rows of one group follow each other.

        Raises:
            DataError: A file has disappeared or is damaged.
        """
        place = None
        images: Any = None
        start = 0
        for row in rows:
            if place != (row["file"], row["size"]):
                place = (row["file"], row["size"])
                images, start = self._read_group(*place)
            image = images[row["offset"] - start].as_py()
            content = image["bytes"] if isinstance(image, dict) else image
            if content is None:
                yield Rejected(row["id"], "no bytes of an image")
            elif len(content) > MAX_FILE:
                yield Rejected(row["id"], f"larger than {MAX_FILE >> 20} MiB: {len(content)} bytes")
            else:
                yield Example(content, row["label"], row["id"])

    def _read_group(self, file: int, group: int) -> tuple[Any, int]:
        """Returns the images of a row group, and the number of its first row in the file."""
        path = self.paths[file]
        try:
            with _open_parquet(parse_location(path)) as parquet:
                start = sum(parquet.metadata.row_group(index).num_rows for index in range(group))
                return parquet.read_row_group(group, columns=[self.column])[self.column], start
        except PARQUET_ERRORS as error:
            raise _build_damage_error(path, error) from None


@SOURCES.register("parquet")
def open_parquet(argument: str, options: SourceOptions | None = None) -> TableSource:
    """Lists the rows of Parquet files with a column of images and one of labels.

    Images are bytes, or structs `{bytes, path}` as on the Hugging Face Hub, whose class names are read as
    well. Row groups are read in a fixed random order, and the rows of a group one after the other.

    Args:
        argument: Path or URI of a file, or of a folder. A split in the names of its files is the split of
            their rows; a column `split` does the same.
        options: Columns and class names that the user specified.

    Raises:
        ConfigError: There is no such file, or no Parquet file in the folder.
        DataError: A file is damaged, a column is missing or of another type; see also `build_source`.
    """
    options = options or SourceOptions()
    name = f"parquet:{argument}"
    root = parse_source_location("parquet", argument)
    paths = _find_files(root)
    if not paths:
        raise ConfigError("a Parquet file or a folder of some", f"source={name} (none)", "check the path")
    splits, notes = find_splits_of_files(name, paths)
    requested = options.parse_columns()
    schema = _read_schema(paths[0])
    image = str(find_column(name, "image", schema.names, requested))
    label = find_column(name, "label", schema.names, requested, options.needs_labels)
    split_column = find_column(name, "split", schema.names, requested, is_required=False)
    _check_image_type(name, image, schema)
    known_names = _read_hugging_face_names(schema, label)
    chosen = f"columns: image={image}, label={label or 'none'}"
    chosen += f", split={split_column}" if split_column else ""
    notes.append(chosen)
    if known_names and options.class_names is None:
        notes.append(f"class names of the file: {len(known_names)}")

    items: list[Item] = []
    columns = (image, label, split_column)
    for file_items in map_files(
        map(str, paths),
        lambda index: list(_list_rows(paths[index], root, index, splits[index], columns)),
        range(len(paths)),
    ):
        items.extend(file_items)
    if len({item.id for item in items}) < len(items):
        items = [item._replace(id=_name_row(paths[item.file], root, item.offset)) for item in items]
    reader = ParquetReader(tuple(map(str, paths)), image)
    source = build_source(name, items, reader, options, notes, order_by_place=True, class_names=known_names)
    return replace(source, stamp=compute_stamp(paths))


def _find_files(root: Location) -> list[Location]:
    """Returns the Parquet file, or those below a folder, sorted."""
    if isinstance(root, Path):
        files: list[Location] = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
        return [file for file in files if isinstance(file, Path) and file.is_file()]
    if is_file(root):
        return [root]
    return sorted(info.uri for info in list_objects(root) if info.uri.name.endswith(".parquet"))


def _open_parquet(path: Location) -> pq.ParquetFile:
    return pq.ParquetFile(path if isinstance(path, Path) else open_location(path, FOOTER_BUFFER))


def _read_schema(path: Location) -> pa.Schema:
    try:
        with _open_parquet(path) as parquet:
            return parquet.schema_arrow
    except PARQUET_ERRORS as error:
        raise _build_damage_error(str(path), error) from None


def _check_image_type(source: str, column: str, schema: pa.Schema) -> None:
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and "bytes" in {field.name for field in kind}:
        return
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return
    received = f"source={source}: {column} of type {kind}"
    fix = "name such a column with --columns image=COLUMN; write csv:FILE for a list of paths"
    raise DataError("a column of bytes, or of structs with bytes", received, fix)


def _read_hugging_face_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """Returns the class names that the Hugging Face library stores in the metadata of the file."""
    try:
        content = parse_json((schema.metadata or {})[b"huggingface"])
        names = content["info"]["features"][label]["names"]
        return tuple(map(str, names)) or None
    except (ValueError, KeyError, TypeError):
        return None


def _list_rows(
    path: Location, root: Location, index: int, split: str, columns: tuple[str, str | None, str | None]
) -> Iterator[Item]:
    """Lists the rows of a file without reading the images.

    Raises:
        DataError: The file is damaged, or has other columns than the first one.
    """
    image, label, split_column = columns
    try:
        parquet = _open_parquet(path)
        if not {name for name in columns if name} <= set(parquet.schema_arrow.names):
            raise ValueError(f"columns {', '.join(parquet.schema_arrow.names)}")
        has_paths = "path" in _list_fields(parquet.schema_arrow.field(image).type)
        names = [name for name in (label, split_column, f"{image}.path" if has_paths else None) if name]
        number = 0
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=names)
            labels = table[label].to_pylist() if label else [None] * len(table)
            paths = _read_paths(table, image) if has_paths else [None] * len(table)
            row_splits = table[split_column].to_pylist() if split_column else [split] * len(table)
            for row_label, row_path, row_split in zip(labels, paths, row_splits, strict=True):
                found = find_split_of_folder(str(row_split))
                problem = None if found else f"unknown split: {row_split!r}"
                identifier = row_path or _name_row(path, root, number)
                yield Item(identifier, found or split, row_label, index, number, group, problem)
                number += 1
    except PARQUET_ERRORS as error:
        raise _build_damage_error(str(path), error) from None


def _list_fields(kind: pa.DataType) -> list[str]:
    return [field.name for field in kind] if pa.types.is_struct(kind) else []


def _read_paths(table: pa.Table, image: str) -> list[str | None]:
    return [None if value is None else value["path"] for value in table[image].to_pylist()]


def _name_row(path: Location, root: Location, number: int) -> str:
    name = path.name if path == root else str(path.relative_to(root))  # type: ignore[arg-type]
    return f"{name}/{number:08d}"


def _build_damage_error(path: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return DataError("a whole Parquet file", f"{path}: {reason}", DAMAGE_FIX)
