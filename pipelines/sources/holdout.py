"""Holds out a share of every class of a source that has no validation split."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.records import Example, Rejected
from pipelines.sources.base import Source

CHUNK = 65536  # rows examined at a time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DividedSource:
    """A source whose splits are rows of its train split.

    Attributes:
        source: Source that the rows are read from.
        rows: Per split, int64 `[n]`: rows of `train`, ascending.
        notes: Notes of the source, and one on the share held out.
    """

    source: Source
    rows: Mapping[str, NDArray[np.int64]]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the source."""
        return self.source.classes

    def counts(self) -> Mapping[str, int]:
        """Returns the number of candidates per split, with those splits that stay as they are."""
        unchanged = {split: n for split, n in self.source.counts().items() if split not in self.rows}
        return {split: len(rows) for split, rows in self.rows.items()} | unchanged

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields candidates `start` to `stop`, one run of consecutive rows of the source after the other."""
        if split not in self.rows:
            yield from self.source.read(split, start, stop)
            return
        rows = self.rows[split][start:stop]
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(run):
                yield from self.source.read("train", int(run[0]), int(run[-1]) + 1)

    def fingerprint(self) -> str:
        """Returns the digest of the source."""
        return self.source.fingerprint()


def hold_out(source: Source, share: float) -> Source:
    """Divides the train split of a source in two if it has no validation split, and logs that it did.

    The share is taken from every class, so that a rare class is in both splits. Sources without `labels`
    stay as they are.

    Args:
        source: Source to divide.
        share: Share of every class that becomes the validation split; 0 for none.
    """
    counts = source.counts()
    get_labels = getattr(source, "labels", None)
    if not share or counts.get("validation") or not counts.get("train") or get_labels is None:
        return source
    is_held_out = select_held_out(get_labels("train"), share)
    if not is_held_out.any():
        return source
    note = f"no validation split: {100 * share:.3g} % of each class of train held out"
    logger.info("%s: %s", source.name, note)
    divide: Any = getattr(source, "divide", None)
    if divide is not None:
        divided: Source = divide(is_held_out, note)
        return divided
    rows = {"train": np.flatnonzero(~is_held_out), "validation": np.flatnonzero(is_held_out)}
    return DividedSource(source, rows, (*getattr(source, "notes", ()), note))


def select_held_out(labels: ArrayLike, share: float) -> NDArray[np.bool_]:
    """Selects the last rows of every class: the rounded share, at least one, and never the whole class.

    Args:
        labels: Integers `[n]`, -1 for a row without a class, which is never held out.
        share: Share of every class.

    Returns:
        Whether each row is held out, `[n]`.
    """
    labels = np.asarray(labels, None if len(labels) else np.int32)  # type: ignore[arg-type]
    starts = range(0, len(labels), CHUNK)  # temporary arrays with a value per row would be too large
    counts = np.zeros(max(labels.max(initial=-1) + 1, 1), np.int64)
    for start in starts:
        part = labels[start : start + CHUNK]
        counts += np.bincount(part[part >= 0], minlength=len(counts))
    held_out = np.minimum(np.maximum([round(count * share) for count in counts.tolist()], 1), counts - 1)
    stays = counts - held_out  # images of each class that stay
    before = np.zeros(len(counts), np.int64)  # images of each class in the rows before
    is_held_out = np.zeros(len(labels), bool)
    for start in starts:
        part = labels[start : start + CHUNK]
        order = np.argsort(part, kind="stable")  # the rows of a class, in their order
        order = order[np.searchsorted(part[order], 0) :]  # those with a class
        classes = part[order]
        number = np.arange(len(order)) - np.searchsorted(classes, classes)  # of each row in its class
        is_held_out[start + order] = before[classes] + number >= stays[classes]
        before += np.bincount(classes, minlength=len(counts))
    return is_held_out
