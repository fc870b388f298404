"""File patterns with ranges: `data/train-{0000..0009}.tar`, `{train,val}-*.tar`."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.remote.ranges import map_ahead
from pipelines.remote.store import has_objects, list_folder, stat
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.sources.locations import parse_source_location
from pipelines.sources.splits import SPLITS, find_split_of_file, join_names

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_FILES = 1_000_000


def expand_pattern(source: str, pattern: str, file_pattern: str) -> list[Location]:
    """Returns the files that a pattern stands for, in order.

    Args:
        source: Name of the source for messages.
        pattern: Path or URI with `{0000..0009}`, `{a,b}`, `*` and `?`.
        file_pattern: Usual pattern of such files in a folder, for the message if `pattern` is a folder.

    Raises:
        ConfigError: A file of a range is missing, no file fits, or the pattern is a folder.
        GlassboxError: A store cannot be reached, or denies access.
    """
    parse_source_location(source.partition(":")[0], pattern)  # refuses what cannot be read
    location = parse_location(pattern)
    if isinstance(location, Path):
        names = _expand_braces(str(location.expanduser()))
        found = _find_local_files(names)
    else:
        names = _expand_braces(pattern)
        found = _find_objects(names)
    paths: list[Location] = []
    missing = []
    for name, files in zip(names, found, strict=True):
        if not files:
            missing.append(name)
        paths.extend(files)
    if missing and _is_folder(missing[0]):
        kind = source.partition(":")[0]
        fix = f"write '{kind}:{missing[0].rstrip('/')}/{file_pattern}', with the quotes in a shell"
        raise ConfigError("a pattern of files", f"source={source} (a directory)", fix)
    if missing:
        received = f"source={source} (no such file: {join_names(missing)})"
        raise ConfigError("files that exist", received, "correct the pattern, and quote it in the shell")
    return list(dict.fromkeys(paths))


def _find_local_files(names: list[str]) -> Iterator[Sequence[Location]]:
    """Yields the files that each of some paths with `*` and `?` stands for, in order."""
    for name in names:
        candidates = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        yield [Path(path).absolute() for path in candidates if Path(path).is_file()]


def _find_objects(names: list[str]) -> Iterator[Sequence[Location]]:
    """Yields the objects that each of some URIs with `*` and `?` stands for, in order."""
    return map_ahead(_find_matching_objects, names)


def _find_matching_objects(name: str) -> list[Uri]:
    """Returns the objects of which every segment matches that of the URI, in order."""
    pattern = parse_location(name)
    if not isinstance(pattern, Uri):
        return []
    if not glob.has_magic(pattern.key):
        return [pattern] if stat(pattern) else []
    segments = pattern.key.split("/")
    magic = next(index for index, segment in enumerate(segments) if glob.has_magic(segment))
    folders = [replace(pattern, key="/".join(segments[:magic]))]
    for segment in segments[magic:-1]:
        folders = [
            folder / inner
            for folder in folders
            for inner in list_folder(folder)[0]
            if fnmatchcase(inner, segment)
        ]
    return [
        info.uri
        for folder in folders
        for info in list_folder(folder)[1]
        if fnmatchcase(info.uri.name, segments[-1])
    ]


def _is_folder(name: str) -> bool:
    location = parse_location(name)
    return location.is_dir() if isinstance(location, Path) else has_objects(location)


def find_splits_of_files(source: str, paths: Sequence[Location]) -> tuple[list[str], list[str]]:
    """Returns the split of every file by its name, and notes; without any such name, all are `train`.

    Raises:
        ConfigError: Only some of the names tell a split.
    """
    splits = [find_split_of_file(path.name) for path in paths]
    if not any(splits):
        return ["train"] * len(paths), []
    unclear = [path.name for path, split in zip(paths, splits, strict=True) if split is None]
    if unclear:
        received = f"source={source}: files={join_names(unclear)}"
        raise ConfigError("a split in the name of every file, or of none", received, "rename these files")
    known = [split for split in splits if split is not None]
    counts = [f"{split} ({known.count(split)})" for split in SPLITS if split in known]
    return known, [f"files of every split, by their names: {', '.join(counts)}"]


def _expand_braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    start = pattern[: match.start()]
    end = pattern[match.end() :]
    bounds = _RANGE.fullmatch(match[1])
    choices = match[1].split(",")
    if bounds:
        first, last = bounds.groups()
        if not 0 <= int(last) - int(first) < MAX_FILES:
            raise ConfigError(
                "a range from the lower to the higher number", f"pattern={pattern}", "swap them"
            )
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [name for choice in choices for name in _expand_braces(f"{start}{choice}{end}")]
