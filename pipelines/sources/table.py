"""Sources described by a table: one row per image with its label and the place of its bytes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.records import Example, Rejected
from pipelines.sources.classes import find_classes, normalise_name
from pipelines.sources.layout import (
    PATH,
    build_table,
    compute_fingerprint,
    divide_table,
    hash_path,
    sort_rows,
)
from pipelines.sources.options import SourceOptions
from pipelines.sources.splits import join_names
from pipelines.storage import hash_json

SCHEMA = pa.schema(
    [
        PATH,
        *(pa.field(name, pa.int64(), nullable=False) for name in ("label", "file", "offset", "size")),
        pa.field("problem", pa.string()),
    ]
)
NO_LABEL = "no label"


class Item(NamedTuple):
    """One image of a table.

    Attributes:
        id: Unique name of the image.
        split: Split that it belongs to.
        label: Label as found: a name, a number, a list of them, or None.
        file: Number of the file that holds it.
        offset: Place in that file; for an object of a store that is one image, a hash of its version.
        size: Number of bytes there, or another number that its reader needs.
        problem: Reason why the image cannot be used, or None.
    """

    id: str
    split: str
    label: Any
    file: int = 0
    offset: int = 0
    size: int = 0
    problem: str | None = None


class RowReader(Protocol):
    """Reads the images of table rows. Must be picklable."""

    def read(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Example | Rejected]:
        """Yields one item per row; a row has the columns of `SCHEMA` and `id`."""


@dataclass(frozen=True)
class TableSource:
    """Images described by a table, built by `build_source`.

    Attributes:
        name: Name of the source, `KIND:ARGUMENT`.
        classes: Class names in the order of their labels.
        splits: Per split, a table with the columns of `SCHEMA` in reading order.
        reader: Reads the images of rows.
        notes: Sentences about what was decided.
        stamp: Digest over the versions of files that are objects of a store; empty for local files.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, pa.Table]
    reader: RowReader
    notes: tuple[str, ...] = ()
    stamp: str = ""

    def counts(self) -> Mapping[str, int]:
        """Returns the number of images per split, including those that cannot be used."""
        return {split: len(rows) for split, rows in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields images `start` to `stop` of a split.

        Raises:
            DataError: A file has disappeared or is damaged.
        """
        rows = self.splits[split].slice(start, stop - start).to_pylist()
        for row in rows:
            row["id"] = row["path"].decode()
        images = self.reader.read([row for row in rows if row["problem"] is None])
        for row in rows:
            if row["problem"] is None:
                yield next(images)
            else:
                yield Rejected(row["id"], row["problem"])

    def labels(self, split: str) -> NDArray[np.int32]:
        """Returns the label of every image, -1 if it cannot be used: int32 `[n]`."""
        table = self.splits[split]
        labels: NDArray[np.int32] = table["label"].to_numpy().astype(np.int32)
        labels[pc.is_valid(table["problem"]).to_numpy()] = -1
        return labels

    def divide(self, is_held_out: NDArray[np.bool_], note: str) -> TableSource:
        """Returns the source with some rows of the train split as validation split: bool `[n]`."""
        return replace(self, splits=divide_table(self.splits, is_held_out), notes=(*self.notes, note))

    def fingerprint(self) -> str:
        """Returns a digest over names, labels, places and sizes of all images.

        It does not detect files of the same size with other images on a disk; in a store, it covers etags.
        """
        digest = compute_fingerprint(self.classes, self.splits, ["label", "offset", "size"])
        return hash_json([digest, self.stamp]) if self.stamp else digest


def build_source(
    name: str,
    items: Sequence[Item],
    reader: RowReader,
    options: SourceOptions,
    notes: Iterable[str] = (),
    order_by_place: bool = False,
    class_names: tuple[str, ...] | None = None,
) -> TableSource:
    """Builds a source from a list of images: derives classes and labels, and sorts into reading order.

    Args:
        name: Name of the source, `KIND:ARGUMENT`.
        items: All images, in any order.
        reader: Reads the images of rows.
        options: Class names that the user specified, and whether the images need labels.
        notes: Sentences about what was decided before.
        order_by_place: Whether images that are stored next to each other (equal `file` and `size`) stay
            together, because single ones are expensive to read. Otherwise every image has a place of its own
            in the order, by the hash of its name as in a folder.
        class_names: Class names that the source itself has, in the order of their labels; those of the user
            come first. None to derive them from the labels.

    Returns:
        The source. Where labels are not needed and no image has one, it has no classes; all labels are -1.

    Raises:
        DataError: An image has several labels, no image can be used, there are fewer than two classes, or a
            class has no training images.
    """
    items = [_simplify_label(name, item) for item in items]
    is_labelled = options.needs_labels or any(item.label is not None for item in items)
    if not is_labelled:
        items = [_accept_without_label(item) for item in items]
    items = _reject_repeated(name, items)
    if not is_labelled:
        splits = _build_splits(items, lambda label: -1, order_by_place)
        return TableSource(name, (), splits, reader, (*notes, "no labels"))
    class_names = _choose_names(items, options.class_names or class_names)
    if class_names is not None:
        find_label = _build_lookup(class_names)
        items = [_reject_unknown(item, find_label(item.label)) for item in items]
    if items and all(item.problem is not None for item in items):
        raise build_all_rejected_error(name, items, "correct the table, or use another one")
    images: dict[bytes, Counter[str]] = {}
    for item in items:
        if item.problem is None:
            label = item.label if class_names is None else class_names[find_label(item.label)]
            images.setdefault(os.fsencode(str(label)), Counter())[item.split] += 1
    classes = find_classes(name, images, class_names, "name the labels with --columns label=COLUMN")
    if class_names is None:
        find_label = _build_lookup(classes.names)
    splits = _build_splits(items, find_label, order_by_place)
    return TableSource(name, classes.names, splits, reader, (*notes, *classes.notes))


def _build_splits(
    items: Sequence[Item], find_label: Callable[[Any], int], order_by_place: bool
) -> dict[str, pa.Table]:
    """Builds the table of every split that has images, in reading order."""
    splits = {}
    for split in ("train", "validation", "test"):
        rows = []
        hashes = []
        for item in items:
            if item.split != split:
                continue
            label = -1 if item.problem else find_label(item.label)
            path = item.id.encode("utf-8", "backslashreplace")
            rows.append((path, label, item.file, item.offset, item.size, item.problem))
            hashes.append(hash_path(b"%d/%d" % (item.file, item.size) if order_by_place else path))
        if rows:
            table = build_table(rows, SCHEMA)
            splits[split] = _sort(table, np.array(hashes, np.uint64), order_by_place)
    return splits


def _sort(table: pa.Table, hashes: NDArray[np.uint64], order_by_place: bool) -> pa.Table:
    if order_by_place:
        order = np.lexsort((table["offset"].to_numpy(), hashes))
    else:
        order = sort_rows(table, np.arange(len(table)), hashes)
    return table.take(order).combine_chunks()


def _simplify_label(name: str, item: Item) -> Item:
    """Returns an item whose label is a name in composed characters or a number.

    Raises:
        DataError: There are several labels.
    """
    label = item.label
    if isinstance(label, bytes):
        label = label.decode("utf-8", "backslashreplace")
    if isinstance(label, list | tuple | np.ndarray):
        if len(label) > 1:
            raise build_several_labels_error(name, item.id, label)
        return _simplify_label(name, item._replace(label=label[0] if len(label) else None))
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, str):
        label = normalise_name(label.strip())
    if item.problem is None and (label is None or label == "" or label != label):  # NaN differs from itself
        return item._replace(label=None, problem=NO_LABEL)
    return item._replace(label=label)


def _accept_without_label(item: Item) -> Item:
    has_only_no_label = (item.problem or "").partition(": ")[0] == NO_LABEL
    return item._replace(problem=None) if has_only_no_label else item


def build_several_labels_error(name: str, image: str, labels: Iterable[Any]) -> DataError:
    """Returns the error for an image with more than one label."""
    received = f"source={name}: id={image}: labels={', '.join(map(str, labels))}"
    return DataError("one label per image", received, "choose one label for every image, or leave such out")


def build_all_rejected_error(name: str, items: Sequence[Item], fix: str) -> DataError:
    """Returns the error for a source of which every image has a problem, with the number of each reason.

    Args:
        name: Name of the source, `KIND:ARGUMENT`.
        items: All images of the source.
        fix: How the user can repair the source.
    """
    reasons = Counter(str(item.problem).partition(": ")[0] for item in items)
    counts = [f"{reason} ({count})" for reason, count in reasons.most_common()]
    first = items[0]
    received = f"source={name}: rejected all {len(items)} images: {join_names(counts)}; the first: {first.id}"
    return DataError("images that can be used", received, fix)


def _reject_repeated(name: str, items: Iterable[Item]) -> list[Item]:
    """Marks images that are listed again.

    Raises:
        DataError: An image is listed with different labels.
    """
    first_items: dict[str, Item] = {}
    unique = []
    for item in items:
        first = first_items.setdefault(item.id, item)
        if first is not item and item.problem is None:
            if first.problem is None and first.label != item.label:
                raise build_several_labels_error(name, item.id, (first.label, item.label))
            where = "" if first.split == item.split else f", in {first.split} and in {item.split}"
            item = item._replace(problem=f"listed more than once{where}")
        unique.append(item)
    return unique


def _choose_names(items: Iterable[Item], class_names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Returns the class names; numbers in their order if all labels are numbers; None to derive them."""
    if class_names is not None:
        return class_names
    labels = {str(item.label) for item in items if item.problem is None}
    if not labels or not all(label.isascii() and label.isdecimal() for label in labels):
        return None
    return tuple(sorted(labels, key=lambda label: (int(label), label)))


class _LabelLookup:
    """Finds the label of a class by its name, whatever its letter case, or else by its number.

    Args:
        names: Class names in the order of their labels.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._exact = {name: label for label, name in enumerate(names)}
        self._folded = {name.casefold(): label for label, name in enumerate(names)}
        self._count = len(names)

    def __call__(self, label: Any) -> int:
        """Returns the index of a class, -1 if it is unknown."""
        text = str(label)
        if text in self._exact:
            return self._exact[text]
        if text.casefold() in self._folded:
            return self._folded[text.casefold()]
        is_index = text.isascii() and text.isdecimal() and int(text) < self._count
        return int(text) if is_index else -1


def _build_lookup(names: tuple[str, ...]) -> _LabelLookup:
    return _LabelLookup(names)


def _reject_unknown(item: Item, label: int) -> Item:
    if item.problem is None and label < 0:
        return item._replace(problem=f"unknown label: {item.label!r}")
    return item
