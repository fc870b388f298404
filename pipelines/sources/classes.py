"""Derives classes from names of folders or from labels in tables: merged spellings, order, unknown names."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipelines.errors import DataError
from pipelines.sources.splits import join_names

LAYOUT_FIX = "arrange the images as DIR/CLASS/IMAGE or DIR/train/CLASS/IMAGE"


class ClassFolders(NamedTuple):
    """Classes of folders.

    Attributes:
        names: Class names in the order of their labels.
        labels: Label of every folder.
        notes: Sentences about what was decided.
    """

    names: tuple[str, ...]
    labels: dict[bytes, int]
    notes: tuple[str, ...]


def find_classes(
    source: str,
    images: Mapping[bytes, Counter[str]],
    class_names: tuple[str, ...] | None = None,
    fix: str = LAYOUT_FIX,
) -> ClassFolders:
    """Derives the classes from the names of folders, or of any other labels.

    Args:
        source: Name of the source for messages.
        images: Per folder, its number of images in every split.
        class_names: Names of all classes in the order of their labels; None for the sorted names of the
            folders. Names that differ only in case stay apart if they are listed here.
        fix: What the error for fewer than two classes advises.

    Raises:
        DataError: There are fewer than two classes, a name is not UTF-8 or not in `class_names`, or a class
            has no training images.
    """
    names_of_folders = {folder: _decode_name(source, folder) for folder in images}
    groups = _group_spellings(names_of_folders, images, class_names or ())
    notes = []
    for name, folders in groups.items():
        if len(folders) > 1:
            spellings = " and ".join(_show_spelling(os.fsdecode(folder)) for folder in folders)
            notes.append(
                f"merged into the class {name!r}: {spellings} "
                "(list both in a file for --classes to keep them apart)"
            )
    names = class_names or tuple(sorted(groups))
    unknown = sorted(set(groups) - set(names))
    if unknown:
        received = f"source={source}: unknown class {join_names(map(repr, unknown))}"
        raise DataError("classes that the file of class names lists", received, "add them to that file")
    if len(groups) < 2:
        received = f"source={source}: classes={', '.join(groups) or 'none'}"
        raise DataError("images of at least two classes", received, fix)

    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for name, folders in groups.items():
        for folder in folders:
            counts[name].update(images[folder])
    has_train = any(count["train"] for count in counts.values())
    without_images = [name for name in names if not counts[name]["train"]]
    if has_train and without_images:
        raise build_empty_class_error(source, without_images)
    has_validation = any(count["validation"] for count in counts.values())
    not_validated = [name for name in names if not counts[name]["validation"]]
    if has_validation and not_validated:
        notes.append(f"warning: no validation images of class {join_names(map(repr, not_validated))}")
    label_of_name = {name: label for label, name in enumerate(names)}
    labels = {folder: label_of_name[name] for name, folders in groups.items() for folder in folders}
    return ClassFolders(names, labels, tuple(notes))


def build_empty_class_error(source: str, names: Iterable[str]) -> DataError:
    """Returns the error for classes that cannot be learned, because no training image shows them."""
    received = f"source={source}: no training images of class {join_names(map(repr, names))}"
    return DataError(
        "training images of every class", received, "add training images, or remove what is left of the class"
    )


def normalise_name(name: str) -> str:
    """Returns a name with composed characters (NFC), as most systems but macOS write them."""
    return unicodedata.normalize("NFC", name)


def _show_spelling(name: str) -> str:
    """Returns a name in quotes; with escapes if its characters are decomposed, which no terminal shows."""
    return repr(name) if name == normalise_name(name) else ascii(name)


def _decode_name(source: str, folder: bytes) -> str:
    name = os.fsdecode(folder)
    if name.encode("utf-8", "replace") != folder:
        raise DataError(
            "class folders named in UTF-8", f"source={source}: class={name!r}", "rename the folder"
        )
    return normalise_name(name)


def _group_spellings(
    names: Mapping[bytes, str], images: Mapping[bytes, Counter[str]], class_names: Iterable[str]
) -> dict[str, list[bytes]]:
    """Groups folders by class, named by one of the requested names, else by the most frequent spelling."""
    requested = {name.casefold(): name for name in class_names}
    exact = set(class_names)
    groups: dict[str, list[bytes]] = {}
    for folder in sorted(names):
        name = names[folder]
        key = name if name in exact else requested.get(name.casefold(), name.casefold())
        groups.setdefault(key, []).append(folder)
    by_class = {}
    for key, folders in groups.items():
        largest = max(folders, key=lambda folder: images[folder].total())  # the first of equal ones
        by_class[key if key in exact else names[largest]] = folders
    return by_class
