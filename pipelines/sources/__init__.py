"""Where examples come from. One file per source; `open_source` finds it by the word before the colon."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pipelines.errors import ConfigError
from pipelines.records import Example, Rejected
from pipelines.registry import Registry


class Source(Protocol):
    """A finite, ordered collection of labelled images that can be read in ranges. Must be picklable."""

    @property
    def name(self) -> str:
        """What the user asked for, such as ``folder:photos``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; an example's label is an index into them."""

    def counts(self) -> Mapping[str, int]:
        """Number of candidate images per split: ``train`` and, where there is one, ``validation``."""

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields candidates `start` to `stop` of a split, in an order that never changes."""

    def fingerprint(self) -> str:
        """A digest that changes when the source's content may have changed."""


SOURCES: Registry[Callable[[str], Source]] = Registry("source")


def open_source(name: str) -> Source:
    """Opens a source from its ``kind:argument`` name.

    Raises:
        ConfigError: The kind is unknown or the argument is missing.
        DataError: The source is there but cannot be used.
    """
    from pipelines.sources import folder, idx, synthetic, tfds  # noqa: F401 (importing registers them)

    kind, colon, argument = name.partition(":")
    if not colon and Path(name).expanduser().is_dir():
        raise ConfigError("a source as kind:argument", f"source={name}", f"write folder:{name}")
    if not colon or not argument:
        raise ConfigError("a source as kind:argument", f"source={name}", "write folder:DIR, idx:DIR, tfds:NAME or synthetic:evidence")
    return SOURCES.get(kind)(argument)
