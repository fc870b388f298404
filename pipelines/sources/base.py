"""The protocol that every source implements, and the registries of all sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pipelines.errors import DataError
from pipelines.records import Example, Rejected
from pipelines.registry import Registry


class Source(Protocol):
    """A finite, ordered collection of labelled images that can be read in ranges.

    Ray sends a source to its workers, so it must be picklable, and its data must be reachable from them.

    A source may also have

    - `notes`, a tuple of sentences about what it decided, which are printed and recorded in the manifest;
    - `labels(split)`, the labels of all candidates as integers (-1: none) without reading images, from which
      a validation split is held out class by class. Without it, the end of `train` is;
    - `select(split, start, stop)`, a small source that reads only these candidates, under the same numbers.
      It is sent with each task. Without it, the whole source is sent to every worker once;
    - `check_unchanged()`, which raises a `DataError` if the source changed since it was opened. Without it,
      the source is opened again at the end of a build, and its fingerprint compared.
    """

    @property
    def name(self) -> str:
        """Name for messages and the manifest, such as `folder:photos`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the label of an example is an index into them."""

    def counts(self) -> Mapping[str, int]:
        """Returns the number of candidate images per split: `train`, optionally `validation` and `test`."""

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields candidates `start` to `stop` of a split, one item each, in an order that never changes."""

    def fingerprint(self) -> str:
        """Returns a digest that changes when the content of the source may have changed."""


SOURCES: Registry[Callable[..., Source]] = Registry("source", group="glassbox.sources")  # `KIND:ARGUMENT`
UNLABELLED_SOURCES: Registry[Callable[[str], Source]] = Registry("source without classes")
DATASETS: Registry[Callable[[], Source]] = Registry("data set")  # known by name, without an argument


def build_change_error(name: str) -> DataError:
    """Returns the error for a source that changed while a shard set was built from it.

    Args:
        name: Name of the source, and what changed if that is known.
    """
    return DataError(
        "a source that does not change while it is read",
        f"source={name} (changed since the build began)",
        "build again when nothing changes it any more",
    )


def build_read_error(path: Path | str, error: OSError, expected: str = "a file") -> DataError:
    """Returns the error for a file of a source that the operating system cannot read.

    Args:
        path: Path of the file.
        error: What the operating system reports.
        expected: Kind of file for the message, with its article.
    """
    return DataError(f"{expected} that can be read", f"{path}: {error.strerror or error}", "check the file")


def build_listing_error(error: OSError) -> DataError:
    """Returns the error for a folder of a source that the operating system cannot list.

    Args:
        error: What the operating system reports; its file may be bytes, as the folder was named.
    """
    received = f"folder={os.fsdecode(error.filename)}: {error.strerror}"
    return DataError("a folder that can be listed", received, "change its permissions")
