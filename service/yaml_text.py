"""Parses YAML that somebody else may have written: bounded in depth and size, and with one kind of error."""

from __future__ import annotations

from typing import Any

import yaml

# The parser in C is ten times as fast, which counts for a job over a thousand runs.
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 50  # the library in C ends the process at some ten thousand levels
MAX_NODES = 200_000  # with every alias as what it stands for, which a few lines can make billions of
# What the constructors of values such as `2001-99-99` and `!!bool x` raise.
VALUE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


def parse_yaml(text: str, loader: Any = FAST_LOADER) -> Any:
    """Parses a YAML document.

    Args:
        text: Content of a file, or the value of a `key=value` override.
        loader: A safe loader of PyYAML.

    Raises:
        YAMLError: The document is not valid, nested too deeply, or too large.
    """
    try:
        _check_size(text, loader)
        return yaml.load(text, Loader=loader)
    except VALUE_ERRORS as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None


def _check_size(text: str, loader: Any) -> None:
    """Counts the nodes of a document without building them.

    Raises:
        YAMLError: There are too many, they are nested too deeply, or one contains itself.
    """
    sizes: dict[str | None, int] = {}
    anchors: list[str | None] = []  # of the open collections
    counts = [0]  # nodes of the document and of each open collection so far
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor)
            counts.append(1)
        elif isinstance(event, yaml.CollectionEndEvent):
            size = counts.pop()
            sizes[anchors.pop()] = size
            counts[-1] += size
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1
            counts[-1] += 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise yaml.YAMLError(f"*{event.anchor} is a part of itself")
            counts[-1] += sizes.get(event.anchor, 1)
        if len(counts) > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} levels")
        if counts[-1] > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values")
