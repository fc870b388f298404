"""Images listed in a table of text: `csv:FILE`, or `csv:DIR` with one file per split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.sources.base import SOURCES
from pipelines.sources.columns import find_column
from pipelines.sources.folder import read_file
from pipelines.sources.layout import SUFFIXES, is_image, reject_by_name
from pipelines.sources.options import SourceOptions
from pipelines.sources.splits import SPLITS, find_split_of_file, find_split_of_folder, join_names
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
_OUTSIDE = re.compile(r"[A-Za-z]:|[A-Za-z]+://")
OUTSIDE_REASON = "path outside of the source"


@dataclass(frozen=True)
class FileReader:
    """Reads image files below a folder.

    Attributes:
        root: Absolute path of the folder.
    """

    root: str

    def read(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Example | Rejected]:
        """Yields one image per row.

        Raises:
            DataError: A file has disappeared.
        """
        for row in rows:
            path = os.path.join(os.fsencode(self.root), row["path"])
            yield read_file(path, row["id"], row["label"], row["size"])


class _Listing(NamedTuple):
    """Rows of one table: paths as listed, labels, and splits where there is a column for them."""

    paths: list[str]
    labels: list[Any]
    splits: list[str] | None
    notes: list[str]


@SOURCES.register("csv")
def open_csv(argument: str, options: SourceOptions | None = None) -> TableSource:
    """Lists the images of a table, whose paths are relative to its folder.

    The table has a header. Columns are found by their usual names, or given by `--columns`; columns of 0 and
    1 after the file name are classes, as Roboflow exports them. Where the paths lack a folder or a suffix, as
    in many exports of Kaggle, these are found and printed; `--columns image=train/{id}.jpg` specifies them.

    Args:
        argument: Path of the table; or of a folder with a table per split: `train.csv`,
            `train/_classes.csv`.
        options: Columns and class names that the user specified.

    Raises:
        ConfigError: There is no such file.
        DataError: The table cannot be read, a column is missing, or the images are not found; see also
            `build_source`.
    """
    options = options or SourceOptions()
    name = f"csv:{argument}"
    path = Path(argument).expanduser().absolute()
    if path.is_dir():
        root = path
        files, notes = _find_tables(name, path, options.needs_train)
    elif path.is_file():
        root = path.parent
        files = {path: None}
        notes = []
    else:
        raise ConfigError("a CSV file or a folder", f"source={name} (no such file)", "check the path")
    items: list[Item] = []
    for file, split in files.items():
        table = _read_table(file)
        if split not in (None, "train") and len(table.column_names) < 2:
            notes.append(f"not read: {file.relative_to(root).as_posix()} (no column of labels)")
            continue
        listing = _read_listing(name, file, table, options)
        notes.extend(listing.notes)
        items.extend(_build_items(root, file, listing, split))
    if items and all((item.problem or "").startswith(OUTSIDE_REASON) for item in items):
        raise build_all_rejected_error(name, items, _suggest_place(root, items))
    unique_notes = dict.fromkeys(notes)  # the columns are usually the same in every table
    return build_source(name, items, FileReader(str(root)), options, unique_notes)


def _find_tables(source: str, root: Path, needs_train: bool) -> tuple[dict[Path, str | None], list[str]]:
    """Returns the tables of a folder with the split of each, and notes on the files not read."""
    tables = sorted([*root.glob("*.csv"), *root.glob("*/*.csv")])
    by_split: dict[str, list[Path]] = {}
    unread = []
    for table in tables:
        split = find_split_of_file(table.relative_to(root).as_posix())
        if split is None:
            unread.append(table.relative_to(root).as_posix())
        else:
            by_split.setdefault(split, []).append(table)
    shown = join_names(table.relative_to(root).as_posix() for table in tables) or "none"
    is_incomplete = not by_split or (needs_train and "train" not in by_split)
    if is_incomplete or any(len(files) > 1 for files in by_split.values()):
        fix = f"write csv:FILE, such as {source}/FILE.csv"
        raise DataError("one CSV file per split, and one for train", f"source={source}: files={shown}", fix)
    pairs = {split: by_split[split][0] for split in SPLITS if split in by_split}
    mapping = ", ".join(f"{split}={file.relative_to(root).as_posix()}" for split, file in pairs.items())
    notes = [f"splits: {mapping}"]
    if unread:
        notes.append(f"files not read: {join_names(unread)}")
    return {file: split for split, file in pairs.items()}, notes


def _read_listing(source: str, file: Path, table: pa.Table, options: SourceOptions) -> _Listing:
    requested = options.parse_columns()
    columns = table.column_names
    template = requested.get("image", "")
    if "{" in template:
        paths = _fill_template(source, template, table)
        image = template
        notes: list[str] = []
    else:
        image = str(find_column(source, "image", columns, requested))
        paths, notes = _locate_images(source, file.parent, image, table[image].to_pylist())
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


def _read_table(file: Path) -> pa.Table:
    """Reads a table of text with a header; all values as text.

    Raises:
        DataError: The file is empty, not UTF-8, has no header, or a row has too few or too many values.
    """
    fix = "save the table as UTF-8 CSV with a header"
    try:
        with file.open("rb") as stream:
            header = stream.readline().decode("utf-8-sig")
        delimiter = max(DELIMITERS, key=header.count)
        names = [name.strip().strip('"') for name in header.rstrip("\r\n").split(delimiter)]
        table = pa.csv.read_csv(
            file,
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


def _locate_images(source: str, root: Path, column: str, values: list[str]) -> tuple[list[str], list[str]]:
    """Completes the values of a column to paths of existing files.

    Returns:
        The paths inside `root`, and a note if a folder or suffix was added.

    Raises:
        DataError: The first values are no files under any folder and suffix, or under several.
    """
    sample = [value for value in values[:SAMPLE] if value]
    if not sample or any(_resolve(root, value) is None or (root / value).is_file() for value in sample):
        return values, []
    templates = []
    for folder in _list_folders(root, MAX_DEPTH):
        for suffix in ("", *sorted(os.fsdecode(suffix) for suffix in SUFFIXES)):
            if any((root / folder / f"{value}{suffix}").is_file() for value in sample):
                templates.append((folder, suffix))
    if len(templates) == 1:
        folder, suffix = templates[0]
        start = f"{folder}/" if folder else ""
        return [f"{start}{value}{suffix}" if value else "" for value in values], [
            f"images found as {start}{{{column}}}{suffix}"
        ]
    shown = " and ".join(f"{folder}/{{{column}}}{suffix}" for folder, suffix in templates[:3])
    received = f"source={source}: {column}={sample[0]} ({shown or 'no such file'})"
    fix = f"write --columns image=FOLDER/{{{column}}}.jpg"
    raise DataError("paths of image files, relative to the folder of the table", received, fix)


def _list_folders(root: Path, depth: int) -> list[str]:
    folders = [""]
    level = [""]
    for _ in range(depth):
        level = [
            f"{folder}/{path.name}".lstrip("/")
            for folder in level
            for path in sorted((root / folder).iterdir())
            if path.is_dir() and not path.name.startswith(".")
        ]
        folders.extend(level)
    return folders


def _resolve(root: Path, value: str) -> str | None:
    """Returns the path inside `root` with `/` between its parts, None if it leads out of it."""
    path = value.strip().replace("\\", "/")
    if path.startswith("/"):
        inside = os.path.relpath(path, root)
        return None if inside.startswith("..") else inside
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if _OUTSIDE.match(path) or ".." in parts or "\0" in path:
        return None
    return "/".join(parts)


def _build_items(root: Path, file: Path, listing: _Listing, split: str | None) -> Iterator[Item]:
    folder = file.parent.relative_to(root).as_posix()
    start = "" if folder == "." else f"{folder}/"
    for row, (value, label) in enumerate(zip(listing.paths, listing.labels, strict=True)):
        row_split = split or "train"
        problem = None
        if listing.splits is not None:
            found = find_split_of_folder(listing.splits[row])
            problem = None if found else f"unknown split: {listing.splits[row]!r}"
            row_split = found or row_split
        path = _resolve(file.parent, value)
        if not value.strip():
            yield Item(f"{file.name}, row {row + 1}", row_split, label, problem="no path of an image")
        elif path is None:
            yield Item(value, row_split, label, problem=f"{OUTSIDE_REASON}: {value}")
        else:
            path = f"{start}{path}"
            yield Item(
                path, row_split, label, size=_get_size(root / path), problem=problem or _check(root, path)
            )


def _suggest_place(root: Path, items: Sequence[Item]) -> str:
    """Returns how to repair a table whose paths all lead out of its folder."""
    paths = [item.id.strip().replace("\\", "/") for item in items]
    if any(_OUTSIDE.match(path) for path in paths):
        return "copy the images to the folder of the table, and write their paths relative to it"
    folders = {os.path.dirname(os.path.normpath(root / path)) for path in paths}
    folder = os.path.commonpath(folders)
    return f"move the table to {folder}, or a folder above it, and write the paths relative to the table"


def _check(root: Path, path: str) -> str | None:
    """Returns the reason why a path is not that of an image."""
    rejected = reject_by_name(path.encode("utf-8", "surrogateescape"))
    if rejected is not None:
        return rejected.reason
    return None if os.path.exists(root / path) else "no such file"


def _get_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1
