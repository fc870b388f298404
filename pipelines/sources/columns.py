"""Chooses the columns of a table that hold image, label, split and identifier."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipelines.errors import DataError
from pipelines.sources.splits import join_names

# Names per role, in groups: a later group counts only if no column has a name of an earlier one.
NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "image": (
        ("image", "img", "image/encoded", "image_raw", "image_bytes"),
        ("path", "image_path", "img_path", "file_path", "filepath", "filepaths", "paths"),
        ("file", "file_name", "filename", "filenames", "image_name", "image_file", "image/filename"),
        ("image_id", "id", "id_code"),
    ),
    "label": (
        ("label", "labels", "class", "class_name", "category", "target", "image/class/text"),
        ("label_name", "class_label", "y", "breed", "species", "cls", "image/class/label"),
        ("class_id", "classid", "label_id", "category_id", "class_index"),
    ),
    "split": (("split", "set", "subset", "data_set", "dataset", "partition"),),
    "id": (("image/filename", "id", "filename", "file_name", "image_id"),),
}


def find_column(
    source: str, role: str, columns: Sequence[str], requested: Mapping[str, str], is_required: bool = True
) -> str | None:
    """Returns the column of a role: the requested one, else the one of a usual name.

    Args:
        source: Name of the source for messages.
        role: `image`, `label`, `split` or `id`.
        columns: Names of all columns.
        requested: Columns that the user specified, by role.
        is_required: Whether it is an error if no column has a usual name.

    Raises:
        DataError: The requested column does not exist, several columns fit, or none does.
    """
    shown = join_names(columns)
    if role in requested:
        if requested[role] not in columns:
            received = f"source={source}: {role}={requested[role]} (columns: {shown})"
            raise DataError(f"a column for {role}", received, "correct --columns")
        return requested[role]
    by_name: dict[str, list[str]] = {}
    for column in columns:
        by_name.setdefault(_fold(column), []).append(column)
    for group in NAMES[role]:
        fitting = [column for name in group for column in by_name.get(name, ())]
        if len(fitting) == 1 or (fitting and not is_required):
            return fitting[0]
        if fitting:
            received = f"source={source}: {' and '.join(fitting)} may each be the {role}"
            raise DataError(f"one column for {role}", received, f"write --columns {role}={fitting[0]}")
    if not is_required:
        return None
    fix = f"write --columns {role}=COLUMN"
    raise DataError(f"a column for {role}", f"source={source}: columns={shown}", fix)


def _fold(column: str) -> str:
    return re.sub(r"[\s\-]+", "_", column.strip().lower())
