"""File patterns with ranges: `data/train-{0000..0009}.tar`, `{train,val}-*.tar`."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.sources.splits import SPLITS, find_split_of_file, join_names

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_FILES = 1_000_000


def expand_pattern(source: str, pattern: str, file_pattern: str) -> list[Path]:
    """Returns the files that a pattern stands for, in order.

    Args:
        source: Name of the source for messages.
        pattern: Path with `{0000..0009}`, `{a,b}`, `*` and `?`.
        file_pattern: Usual pattern of such files in a folder, for the message if `pattern` is a folder.

    Raises:
        ConfigError: A file of a range is missing, no file fits, or the pattern is a folder.
    """
    paths: list[Path] = []
    missing = []
    for name in _expand_braces(str(Path(pattern).expanduser())):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        existing = [Path(path).absolute() for path in found if Path(path).is_file()]
        if not existing:
            missing.append(name)
        paths.extend(existing)
    if missing and Path(missing[0]).is_dir():
        kind = source.partition(":")[0]
        fix = f"write '{kind}:{missing[0]}/{file_pattern}', with the quotes in a shell"
        raise ConfigError("a pattern of files", f"source={source} (a directory)", fix)
    if missing:
        received = f"source={source} (no such file: {join_names(missing)})"
        raise ConfigError("files that exist", received, "correct the pattern, and quote it in the shell")
    return list(dict.fromkeys(paths))


def find_splits_of_files(source: str, paths: list[Path]) -> tuple[list[str], list[str]]:
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
