"""Decides which folder, file or value belongs to which split: the only place that knows their usual names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pipelines.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
WHOLE = "."  # in `--splits train=.`: the folder itself, whose subfolders are classes
IGNORED_FOLDERS = ("__MACOSX",)  # metadata that macOS adds to archives
EXAMPLE = "--splits train=Training,validation=Testing"

_NAMES = {
    "train": ("train", "training", "trn", "trainset", "trainingset"),
    "validation": ("validation", "valid", "val", "validate", "dev", "eval", "evaluation", "valset", "devset"),
    "test": ("test", "testing", "tst", "testset"),
}
_SPLIT_OF_NAME = {name: split for split, names in _NAMES.items() for name in names}
# Words next to the name of a split: `seg_train`, `training_set`, `test-images`.
_FILLERS = frozenset(
    [
        "seg",
        "set",
        "data",
        "dataset",
        "image",
        "images",
        "img",
        "imgs",
        "photo",
        "photos",
        "picture",
        "pictures",
        "split",
    ]
)
_SEPARATORS = re.compile(r"[\W\d_]+")
_CLASSES_LISTED = 2  # class folders whose subfolders are examined
_NAMES_SHOWN = 8


class FolderTree(Protocol):
    """Visible folders of a directory or an archive. Paths have `/` between their parts; the top is empty."""

    def list_folders(self, path: str) -> list[str]:
        """Returns the names of the folders directly inside a folder, sorted."""

    def has_images(self, path: str) -> bool:
        """Tells whether there are images directly inside a folder."""


@dataclass(frozen=True)
class SplitFolders:
    """Folders of the splits.

    Attributes:
        folders: Per split, the path of the folder that holds its class folders; empty for the top.
        unread: Folders at the top that belong to no split, with the reason.
    """

    folders: Mapping[str, str]
    unread: Mapping[str, str]

    def describe(self) -> list[str]:
        """Returns lines that say which folder was read as which split, and which folders were not read."""
        lines = []
        if list(self.folders.values()) != [""]:
            pairs = [f"{split}={folder or WHOLE}" for split, folder in self.folders.items()]
            lines.append(f"splits: {', '.join(pairs)}")
        if self.unread:
            reasons = [f"{folder!r} ({reason})" for folder, reason in self.unread.items()]
            lines.append(f"folders not read: {join_names(reasons)}")
        return lines


def parse_splits(text: str, needs_train: bool = True) -> dict[str, str]:
    """Parses `--splits train=Training,validation=Testing`.

    Args:
        text: Value of the option.
        needs_train: Whether it is an error if `train` has no folder.

    Raises:
        ConfigError: A split is unknown or named twice, a folder is missing, or `train` is needed and missing.
    """
    folders: dict[str, str] = {}
    for part in text.split(","):
        split, _, folder = part.partition("=")
        split = split.strip()
        folder = folder.strip().strip("/")
        if split not in SPLITS or not folder or split in folders:
            expected = f"SPLIT=FOLDER with a folder for each of {', '.join(SPLITS)} at most once"
            raise ConfigError(expected, f"splits={text}", f"write {EXAMPLE}, for example")
        folders[split] = folder
    if needs_train and "train" not in folders:
        raise ConfigError("a folder for train", f"splits={text}", "add train=FOLDER")
    return folders


def find_split_of_folder(name: str) -> str | None:
    """Returns the split that the name of a folder or a value stands for, in any letter case; None if none."""
    words = _split_words(name)
    splits = {_SPLIT_OF_NAME[word] for word in words if word in _SPLIT_OF_NAME}
    others = [word for word in words if word not in _SPLIT_OF_NAME and word not in _FILLERS]
    return splits.pop() if len(splits) == 1 and not others else None


def find_split_of_file(path: str) -> str | None:
    """Returns the split in the name of a file, else of its folder: `data/train-00000-of-00002.parquet`.

    None if there is none, or more than one.
    """
    folder, _, name = path.rpartition("/")
    for part in (name, folder.rpartition("/")[2]):
        splits = {_SPLIT_OF_NAME[word] for word in _split_words(part) if word in _SPLIT_OF_NAME}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def find_split_folders(
    source: str, tree: FolderTree, requested: str | None = None, needs_train: bool = True
) -> SplitFolders:
    """Decides which folders hold the splits, or that the folders at the top are the classes.

    The usual names are recognised in any letter case: `train` and `valid`, `Training` and `Testing`,
    `seg_train` and `seg_test`. A folder that repeats the name of its parent is skipped
    (`seg_train/seg_train/CLASS`). Without a folder named like a split, the folders at the top are classes.

    Args:
        source: Name of the source for messages.
        tree: Folders of the source.
        requested: Mapping that the user specified, such as `train=Training,validation=Testing`; `train=.`
            makes every folder at the top a class.
        needs_train: Whether it is an error if there is no folder for `train`.

    Raises:
        ConfigError: The mapping names a folder that does not exist.
        DataError: The folders look like splits and can be understood in more than one way.
    """
    tops = [name for name in tree.list_folders("") if name not in IGNORED_FOLDERS]
    if requested is not None:
        return _map_requested(source, tree, tops, parse_splits(requested, needs_train))

    named = _group_by_split(tops)
    if not named:
        _check_class_first(source, tree, tops)
        return SplitFolders({"train": ""}, {})
    return _map_named(source, tree, tops, named, needs_train)


def _group_by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names that stand for a split, per split."""
    named: dict[str, list[str]] = {}
    for name in names:
        split = find_split_of_folder(name)
        if split is not None:
            named.setdefault(split, []).append(name)
    return named


def _map_named(
    source: str, tree: FolderTree, tops: list[str], named: Mapping[str, list[str]], needs_train: bool
) -> SplitFolders:
    """Assigns folders to splits by their names.

    Raises:
        DataError: The folders can be understood in more than one way.
    """
    folders: dict[str, str] = {}
    unread: dict[str, str] = {}
    for split in SPLITS:
        candidates = named.get(split, [])
        if len(candidates) > 1:
            raise _build_error(source, tops, named, f"{len(candidates)} folders for {split}")
        if not candidates:
            continue
        folder = _descend(tree, candidates[0], split)
        if tree.list_folders(folder):
            folders[split] = folder
        else:
            unread[candidates[0]] = "no class folders in it"
    others = [top for top in tops if find_split_of_folder(top) is None]
    if not needs_train and not folders:
        received = f"source={source}: no class folders in {join_names(unread)}"
        fix = "arrange the images as DIR/SPLIT/CLASS/IMAGE; photos:DIR predicts images without classes"
        raise DataError("class folders inside the folders of the splits", received, fix)
    if needs_train and "train" not in folders:
        reason = "no class folders in train" if "train" in named else "none for train"
        raise _build_error(source, tops, named, reason)
    with_images = [top for top in others if _holds_images(tree, top)]
    if len(named) == 1 and with_images:
        raise _build_error(
            source, tops, named, f"{join_names(with_images)} may be classes next to {next(iter(named))}"
        )
    unread.update((top, "not the name of a split") for top in others)
    return SplitFolders(folders, unread)


def join_names(names: Iterable[str]) -> str:
    """Joins names for a message, and counts those beyond the first few."""
    names = list(names)
    hidden = len(names) - _NAMES_SHOWN
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if hidden <= 0 else f"{shown} and {hidden} more"


def _split_words(name: str) -> list[str]:
    folded = unicodedata.normalize("NFC", name).casefold()
    return [word for word in _SEPARATORS.split(folded) if word]


def _map_requested(
    source: str, tree: FolderTree, tops: list[str], requested: Mapping[str, str]
) -> SplitFolders:
    folders: dict[str, str] = {}
    for split, folder in requested.items():
        path = "" if folder == WHOLE else folder
        if not tree.list_folders(path):
            known = join_names(tops) or "none"
            received = f"source={source}: {split}={folder} (folders: {known})"
            raise ConfigError(f"a folder for {split} that holds class folders", received, "correct --splits")
        folders[split] = path
    ordered = {split: folders[split] for split in SPLITS if split in folders}
    read = {path.partition("/")[0] for path in ordered.values()}
    unread = {} if "" in read else {top: "not in --splits" for top in tops if top not in read}
    return SplitFolders(ordered, unread)


def _descend(tree: FolderTree, folder: str, split: str) -> str:
    """Returns the folder with the class folders: archives often repeat a folder, `seg_train/seg_train`."""
    while not tree.has_images(folder):
        names = tree.list_folders(folder)
        if len(names) != 1 or find_split_of_folder(names[0]) != split:
            break
        folder = f"{folder}/{names[0]}"
    return folder


def _holds_images(tree: FolderTree, folder: str) -> bool:
    children = [f"{folder}/{name}" for name in tree.list_folders(folder)]
    return any(tree.has_images(path) for path in (folder, *children))


def _check_class_first(source: str, tree: FolderTree, tops: list[str]) -> None:
    """Refuses `CLASS/train/IMAGE`, where every class would silently be read as one split.

    Raises:
        DataError: The first class folders hold nothing but folders named like splits.
    """
    for top in tops[:_CLASSES_LISTED]:
        names = tree.list_folders(top)
        if not names or tree.has_images(top) or any(find_split_of_folder(name) is None for name in names):
            return
    if len(tops) < _CLASSES_LISTED:
        return
    received = f"source={source}: {tops[0]}/{tree.list_folders(tops[0])[0]} (a split inside a class)"
    fix = "arrange the images as DIR/SPLIT/CLASS/IMAGE; or write --splits train=. to read all as train"
    raise DataError("class folders inside the folders of the splits", received, fix)


def _build_error(source: str, tops: list[str], named: Mapping[str, list[str]], reason: str) -> DataError:
    """Returns the error for a layout that can be understood in more than one way."""
    examples = {split: folders[0] for split, folders in named.items()}
    if reason.startswith("no"):  # the folder named like train is none
        examples["train"] = "FOLDER"
    pairs = [f"{split}={examples[split]}" for split in SPLITS if split in examples]
    fix = (
        f"specify the splits, for example --splits {','.join(pairs)}; "
        "or write --splits train=. if every folder is a class, whatever its name"
    )
    received = f"source={source}: folders={join_names(tops)} ({reason})"
    return DataError("folders that can be told apart as splits or as classes", received, fix)
