"""Where examples come from. One file per source; `open_source` finds it by the word before the colon."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pipelines.errors import ConfigError, suggest
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


SOURCES: Registry[Callable[[str], Source]] = Registry("source")  # opened with what follows the colon
UNLABELLED_SOURCES: Registry[Callable[[str], Source]] = Registry(
    "source without classes"
)  # nothing can be learned from them
DATASETS: Registry[Callable[[], Source]] = Registry("data set")  # known by their name alone
FORMS = "folder:DIR, archive:FILE, https://HOST/FILE#sha256=DIGEST, idx:DIR, tfds:NAME, synthetic:evidence or cats_and_dogs"


def open_source(name: str, labelled: bool = True) -> Source:
    """Opens a source from its ``kind:argument`` name, or a data set known by its name alone.

    Args:
        name: What the user asked for.
        labelled: Whether it must have classes; where it need not, ``photos:DIR`` is one as well.

    Raises:
        ConfigError: The kind is unknown, or its argument is missing.
        DataError: The source is there but cannot be used.
    """
    from pipelines.sources import archive, cats_and_dogs, download, folder, idx, photos, synthetic, tfds  # noqa: F401 (importing registers them)

    kind, _, argument = name.partition(":")
    if kind in DATASETS.names() and not argument:
        return DATASETS.get(kind)()
    kinds = dict.fromkeys(SOURCES.names(), SOURCES) | (
        {} if labelled else dict.fromkeys(UNLABELLED_SOURCES.names(), UNLABELLED_SOURCES)
    )
    if kind in kinds and argument:
        return kinds[kind].get(kind)(argument)
    forms, known, path = (
        FORMS if labelled else f"photos:DIR, {FORMS}",
        (*kinds, *DATASETS.names()),
        Path(name).expanduser(),
    )
    fix = f"write {forms}"
    if kind not in known:
        fix = (
            f"write {'folder' if path.is_dir() else 'archive'}:{name}"
            if name and path.exists()
            else f"{suggest(kind, known)}; {fix}"
        )
    raise ConfigError("a known source", f"source={name}", fix)
