"""Images listed in a table of text: `csv:FILE`, or `csv:DIR` with one file per split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.csv

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.remote.files import is_file, read_file
from pipelines.remote.ranges import map_ahead
from pipelines.remote.store import list_folder
from pipelines.remote.uri import Location, Uri, is_uri, parse_location
from pipelines.sources.base import SOURCES
from pipelines.sources.columns import find_column
from pipelines.sources.folder import read_file as read_image
from pipelines.sources.layout import SUFFIXES, is_image, reject_by_name
from pipelines.sources.locations import find_objects, hash_version, map_files, parse_source_location
from pipelines.sources.options import SourceOptions
from pipelines.sources.splits import SPLITS, find_split_of_file, find_split_of_folder, join_names
from pipelines.sources.store_folder import LISTINGS, read_object
from pipelines.sources.table import (
    Item,
    TableSource,
    build_all_rejected_error,
    build_several_labels_error,
    build_source,
)

DELIMITERS = (",", "\t", ";")
SAMPLE = 20  # rows from which the folder and suffix of the images are found
MAX_DEPTH = 2  # of the folders next to the table in which images are looked for
_FIELD = re.compile(r"\{([^{}]+)\}")
_OUTSIDE = re.compile(r"[A-Za-z]:|[A-Za-z][\w+.-]*://")
OUTSIDE_REASON = "path outside of the source"
NO_FILE = "no such file"
UNKNOWN_SIZE = -2  # of an object before it is looked up
STORE_SCHEMES = ("s3://", "gs://", "az://")  # of images outside of the folder of the table


@dataclass(frozen=True)
class FileReader:
    """Reads image files below a folder, and objects of stores.

    Attributes:
        root: Absolute path or URI of the folder.
    """

    root: str

    def read(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Example | Rejected]:
        """Yields one image per row; with several requests in flight if some are in a store.

        Raises:
            DataError: A file has disappeared.
        """
        locations = [self.root, *(row["id"] for row in rows)]
        return map_files(locations, self._read_row, rows, itemgetter("size"))

    def _read_row(self, row: Mapping[str, Any]) -> Example | Rejected:
        location = _join(parse_location(self.root), row["id"])
        if isinstance(location, Uri):
            return read_object(location, row["id"], row["label"], row["size"], row["offset"])
        path = os.path.join(os.fsencode(self.root), row["path"])
        return read_image(path, row["id"], row["label"], row["size"])


class _File(NamedTuple):
    """Size of a file in bytes, and a hash of its version if it is an object of a store, else 0."""

    size: int
    version: int = 0


class _Folder(Protocol):
    """The folder of a table. Paths are inside it and have `/` between their parts."""

    root: Location

    def list_tables(self) -> list[str]:
        """Returns the CSV files in the folder and in its subfolders, sorted."""

    def list_folders(self, path: str) -> list[str]:
        """Returns the names of the visible folders directly inside a folder, sorted."""

    def prepare(self, paths: Iterable[str]) -> None:
        """Called with the files that will be found, so that they are looked up at the same time."""

    def find(self, path: str) -> _File | None:
        """Finds a file; None if there is none."""


class _Directory:
    """A folder on a disk.

    Args:
        root: Absolute path of the folder that holds the tables and the images.
    """

    def __init__(self, root: Path) -> None:
        self.root: Location = root
        self._path = root

    def list_tables(self) -> list[str]:
        tables = [*self._path.glob("*.csv"), *self._path.glob("*/*.csv")]
        return sorted(table.relative_to(self._path).as_posix() for table in tables)

    def list_folders(self, path: str) -> list[str]:
        entries = (self._path / path).iterdir()
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def prepare(self, paths: Iterable[str]) -> None:
        """Does nothing."""

    def find(self, path: str) -> _File | None:
        try:
            return _File((self._path / path).stat().st_size)
        except (OSError, ValueError):
            return None


class _Level(NamedTuple):
    """The visible folders and files directly inside a folder of a store."""

    folders: list[str]
    files: dict[str, _File]


class _StoreFolder:
    """A folder of an object store. Of the folders below it, only those that a table names are listed.

    Args:
        root: URI of the folder.
    """

    def __init__(self, root: Uri) -> None:
        self.root: Location = root
        self._uri = root
        self._levels: dict[str, _Level] = {}

    def list_tables(self) -> list[str]:
        root = self._get_level("")
        self._list_levels(root.folders)
        paths = [
            *root.files,
            *(f"{name}/{file}" for name in root.folders for file in self._levels[name].files),
        ]
        return sorted(path for path in paths if path.endswith(".csv"))

    def list_folders(self, path: str) -> list[str]:
        return self._get_level(path).folders

    def prepare(self, paths: Iterable[str]) -> None:
        """Lists the folders of the files, several at a time."""
        self._list_levels(path.rpartition("/")[0] for path in paths)

    def find(self, path: str) -> _File | None:
        folder, _, name = path.rpartition("/")
        return self._get_level(folder).files.get(name)

    def _get_level(self, path: str) -> _Level:
        self._list_levels([path])
        return self._levels[path]

    def _list_levels(self, paths: Iterable[str]) -> None:
        missing = [path for path in dict.fromkeys(paths) if path not in self._levels]
        self._levels |= zip(missing, map_ahead(self._list_level, missing, LISTINGS), strict=True)

    def _list_level(self, path: str) -> _Level:
        if any(part.startswith(".") for part in path.split("/")):
            return _Level([], {})
        names, objects = list_folder(self._uri / path if path else self._uri)
        files = {info.uri.name: _File(info.size, hash_version(info)) for info in objects}
        return _Level(
            folders=[name for name in names if not name.startswith(".")],
            files={name: file for name, file in files.items() if not name.startswith(".")},
        )


def _join(root: Location, path: str) -> Location:
    """Returns the location of a path inside a folder, or of a URI as it is."""
    return parse_location(path) if is_uri(path) else root / path


class _Listing(NamedTuple):
    """Rows of one table: paths as listed, labels, and splits where there is a column for them."""

    paths: list[str]
    labels: list[Any]
    splits: list[str] | None
    notes: list[str]


@SOURCES.register("csv")
def open_csv(argument: str, options: SourceOptions | None = None) -> TableSource:
    """Lists the images of a table, whose paths are relative to its folder, or URIs of object stores.

    The table has a header. Columns are found by their usual names, or given by `--columns`; columns of 0 and
    1 after the file name are classes, as Roboflow exports them. Where the paths lack a folder or a suffix, as
    in many exports of Kaggle, these are found and printed; `--columns image=train/{id}.jpg` specifies them.

    Args:
        argument: Path or URI of the table; or of a folder with a table per split: `train.csv`,
            `train/_classes.csv`.
        options: Columns and class names that the user specified.

    Raises:
        ConfigError: There is no such file.
        DataError: The table cannot be read, a column is missing, or the images are not found; see also
            `build_source`.
    """
    options = options or SourceOptions()
    name = f"csv:{argument}"
    location = parse_source_location("csv", argument)
    folder, table_name = _open_folder(name, location)
    if table_name is None:
        files, notes = _find_tables(name, folder, options.needs_train)
    else:
        files = {table_name: None}
        notes = []
    items: list[Item] = []
    for file, split in files.items():
        table = _read_table(folder.root / file)
        if split not in (None, "train") and len(table.column_names) < 2:
            notes.append(f"not read: {file} (no column of labels)")
            continue
        listing = _read_listing(name, folder, file, table, options)
        notes.extend(listing.notes)
        items.extend(_build_items(folder, file, listing, split))
    items = _look_up_objects(items)
    if items and all((item.problem or "").startswith(OUTSIDE_REASON) for item in items):
        raise build_all_rejected_error(name, items, _suggest_place(folder.root, items))
    unique_notes = dict.fromkeys(notes)  # the columns are usually the same in every table
    return build_source(name, items, FileReader(str(folder.root)), options, unique_notes)


def _open_folder(source: str, location: Location) -> tuple[_Folder, str | None]:
    """Returns the folder of a table, and the name of the table; None if the location is a folder of some.

    Raises:
        ConfigError: There is neither a file nor a folder.
    """
    if isinstance(location, Path) and location.is_dir():
        return _Directory(location), None
    if not is_file(location):
        if isinstance(location, Path) or location.name.endswith(".csv"):
            raise ConfigError("a CSV file or a folder", f"source={source} (no such file)", "check the path")
        return _StoreFolder(location), None
    parent = location.parent
    return _Directory(parent) if isinstance(parent, Path) else _StoreFolder(parent), location.name


def _find_tables(source: str, folder: _Folder, needs_train: bool) -> tuple[dict[str, str | None], list[str]]:
    """Returns the tables of a folder with the split of each, and notes on the files not read."""
    tables = folder.list_tables()
    by_split: dict[str, list[str]] = {}
    unread = []
    for table in tables:
        split = find_split_of_file(table)
        if split is None:
            unread.append(table)
        else:
            by_split.setdefault(split, []).append(table)
    shown = join_names(tables) or "none"
    is_incomplete = not by_split or (needs_train and "train" not in by_split)
    if is_incomplete or any(len(files) > 1 for files in by_split.values()):
        fix = f"write csv:FILE, such as {source}/FILE.csv"
        raise DataError("one CSV file per split, and one for train", f"source={source}: files={shown}", fix)
    pairs = {split: by_split[split][0] for split in SPLITS if split in by_split}
    mapping = ", ".join(f"{split}={file}" for split, file in pairs.items())
    notes = [f"splits: {mapping}"]
    if unread:
        notes.append(f"files not read: {join_names(unread)}")
    return {file: split for split, file in pairs.items()}, notes


def _read_listing(
    source: str, folder: _Folder, file: str, table: pa.Table, options: SourceOptions
) -> _Listing:
    requested = options.parse_columns()
    columns = table.column_names
    template = requested.get("image", "")
    if "{" in template:
        paths = _fill_template(source, template, table)
        image = template
        notes: list[str] = []
    else:
        image = str(find_column(source, "image", columns, requested))
        base = file.rpartition("/")[0]
        paths, notes = _locate_images(source, folder, base, image, table[image].to_pylist())
    split = find_column(source, "split", columns, requested, is_required=False)
    label, labels = _read_labels(source, table, image, split, options, paths)
    chosen = f"columns: image={image}, label={label or 'none'}" + (f", split={split}" if split else "")
    splits = None if split is None else table[split].to_pylist()
    return _Listing(paths, labels, splits, [chosen, *notes])


def _fill_template(source: str, template: str, table: pa.Table) -> list[str]:
    """Returns the template with the values of every row in place of `{COLUMN}`."""
    fields = _FIELD.findall(template)
    for name in fields:
        find_column(source, "image", table.column_names, {"image": name})
    paths = []
    for row in table.select(fields).to_pylist():
        path = template
        for name in fields:
            path = path.replace(f"{{{name}}}", row[name])
        paths.append(path)
    return paths


def _read_table(file: Location) -> pa.Table:
    """Reads a table of text with a header; all values as text.

    Raises:
        DataError: The file is empty, not UTF-8, has no header, or a row has too few or too many values.
    """
    fix = "save the table as UTF-8 CSV with a header"
    try:
        content = read_file(file)
        header = content.partition(b"\n")[0].decode("utf-8-sig")
        delimiter = max(DELIMITERS, key=header.count)
        names = [name.strip().strip('"') for name in header.rstrip("\r\n").split(delimiter)]
        table = pa.csv.read_csv(
            pa.BufferReader(content),
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError("a table with a header", f"{file}: {reason}", fix) from None
    if any(is_image(name.encode()) for name in names):
        received = f"{file}: first line={join_names(names)}, which looks like data"
        raise DataError(
            "a table with a header", received, "add a first line such as image,label to the table"
        )
    if len(set(names)) < len(names):
        raise DataError("different names of columns", f"{file}: columns={', '.join(names)}", fix)
    return table


def _read_labels(
    source: str,
    table: pa.Table,
    image: str,
    split: str | None,
    options: SourceOptions,
    paths: list[str],
) -> tuple[str | None, list[Any]]:
    """Returns the name of the label column, and the label of every row; None where there is none."""
    requested = options.parse_columns()
    others = [name for name in table.column_names if name not in (image, split)]
    if "label" not in requested:
        flags = {name: [value.strip() for value in table[name].to_pylist()] for name in others}
        if len(others) > 1 and all(set(values) <= {"0", "1"} for values in flags.values()):
            return "columns of 0 and 1", _read_flags(source, flags, paths)
        if len(others) == 1 and "{" not in image and options.needs_labels:
            return others[0], table[others[0]].to_pylist()
    label = find_column(source, "label", others, requested, options.needs_labels)
    labels = [None] * len(table) if label is None else table[label].to_pylist()
    return label, labels


def _read_flags(source: str, flags: Mapping[str, list[str]], paths: list[str]) -> list[str | None]:
    """Returns the name of the only column with a 1 in every row, None without one."""
    labels: list[str | None] = []
    for row, path in enumerate(paths):
        names = [name for name, values in flags.items() if values[row] == "1"]
        if len(names) > 1:
            raise build_several_labels_error(source, path, names)
        labels.append(names[0] if names else None)
    return labels


def _locate_images(
    source: str, folder: _Folder, base: str, column: str, values: list[str]
) -> tuple[list[str], list[str]]:
    """Completes the values of a column to paths of existing files.

    Args:
        source: Name of the source for messages.
        folder: Folder of the source.
        base: Path of the folder of the table inside it.
        column: Name of the column.
        values: Values of the column.

    Returns:
        The paths inside the folder of the table, and a note if a folder or suffix was added.

    Raises:
        DataError: The first values are no files under any folder and suffix, or under several.
    """
    sample = [value for value in values[:SAMPLE] if value]
    if not sample or any(_is_final(folder, base, value) for value in sample):
        return values, []
    start = f"{base}/" if base else ""
    templates = []
    for inner in _list_folders(folder, base, MAX_DEPTH):
        for suffix in ("", *sorted(os.fsdecode(suffix) for suffix in SUFFIXES)):
            path = f"{start}{inner}/" if inner else start
            if any(folder.find(f"{path}{value}{suffix}") is not None for value in sample):
                templates.append((inner, suffix))
    if len(templates) == 1:
        inner, suffix = templates[0]
        start = f"{inner}/" if inner else ""
        return [f"{start}{value}{suffix}" if value else "" for value in values], [
            f"images found as {start}{{{column}}}{suffix}"
        ]
    shown = " and ".join(f"{inner}/{{{column}}}{suffix}" for inner, suffix in templates[:3])
    received = f"source={source}: {column}={sample[0]} ({shown or 'no such file'})"
    fix = f"write --columns image=FOLDER/{{{column}}}.jpg"
    raise DataError("paths of image files, relative to the folder of the table", received, fix)


def _is_final(folder: _Folder, base: str, value: str) -> bool:
    """Tells whether a value is the path of a file, a URI, or leads out of the folder of the table."""
    path = _resolve(folder.root, base, value)
    return path is None or is_uri(path) or folder.find(path) is not None


def _list_folders(folder: _Folder, base: str, depth: int) -> list[str]:
    """Lists the folders below the folder of the table, and itself, as paths inside it."""
    start = f"{base}/" if base else ""
    folders = [""]
    level = [""]
    for _ in range(depth):
        level = [
            f"{inner}/{name}".lstrip("/")
            for inner in level
            for name in folder.list_folders(f"{start}{inner}".rstrip("/"))
        ]
        folders.extend(level)
    return folders


def _resolve(root: Location, base: str, value: str) -> str | None:
    """Returns the path inside `root` with `/` between its parts, or a URI; None if it leads elsewhere."""
    path = value.strip().replace("\\", "/")
    if is_uri(path):
        return path if path.startswith(STORE_SCHEMES) else None
    if path.startswith("/"):
        inside = os.path.relpath(path, root) if isinstance(root, Path) else ".."
        return None if inside.startswith("..") else inside
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if _OUTSIDE.match(path) or ".." in parts or "\0" in path:
        return None
    return "/".join([*filter(None, [base]), *parts])


def _build_items(folder: _Folder, file: str, listing: _Listing, split: str | None) -> Iterator[Item]:
    base, _, name = file.rpartition("/")
    resolved = (_resolve(folder.root, base, value) for value in listing.paths)
    folder.prepare(path for path in resolved if path is not None and not is_uri(path))
    for row, (value, label) in enumerate(zip(listing.paths, listing.labels, strict=True)):
        row_split = split or "train"
        problem = None
        if listing.splits is not None:
            found = find_split_of_folder(listing.splits[row])
            problem = None if found else f"unknown split: {listing.splits[row]!r}"
            row_split = found or row_split
        path = _resolve(folder.root, base, value)
        if not value.strip():
            yield Item(f"{name}, row {row + 1}", row_split, label, problem="no path of an image")
        elif path is None:
            yield Item(value, row_split, label, problem=f"{OUTSIDE_REASON}: {value}")
        elif is_uri(path):
            yield Item(path, row_split, label, size=UNKNOWN_SIZE, problem=problem or _check_name(path))
        else:
            found_file = folder.find(path)
            problem = problem or _check_name(path) or (None if found_file else NO_FILE)
            size, version = found_file or _File(-1)
            yield Item(path, row_split, label, offset=version, size=size, problem=problem)


def _look_up_objects(items: list[Item]) -> list[Item]:
    """Completes the items that are URIs with the size of the object.

    Raises:
        GlassboxError: A store cannot be reached, or denies access.
    """
    rows = [row for row, item in enumerate(items) if item.size == UNKNOWN_SIZE and item.problem is None]
    objects = find_objects(parse_location(items[row].id) for row in rows)
    for row, info in zip(rows, objects, strict=True):
        if info is None:
            items[row] = items[row]._replace(size=-1, problem=NO_FILE)
        else:
            items[row] = items[row]._replace(offset=hash_version(info), size=info.size)
    return items


def _suggest_place(root: Location, items: Sequence[Item]) -> str:
    """Returns how to repair a table whose paths all lead out of its folder."""
    paths = [item.id.strip().replace("\\", "/") for item in items]
    if any(_OUTSIDE.match(path) for path in paths) or isinstance(root, Uri):
        return "copy the images to the folder of the table, and write their paths relative to it"
    folders = {os.path.dirname(os.path.normpath(root / path)) for path in paths}
    folder = os.path.commonpath(folders)
    return f"move the table to {folder}, or a folder above it, and write the paths relative to the table"


def _check_name(path: str) -> str | None:
    """Returns the reason why a path cannot be that of an image."""
    rejected = reject_by_name(path.encode("utf-8", "surrogateescape"))
    return None if rejected is None else rejected.reason
