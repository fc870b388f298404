"""Decides which set of a mix every position of an epoch is taken from."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.input.windows import draw_words

BLOCK = 1024  # positions in which the sets have their exact shares, in a random order
STREAM = 2**63  # stream of the words that shuffle the sets; those of the rows are far below


class Mixture:
    """The set of every position of one epoch: each set exactly as often as it is drawn, evenly spread.

    An epoch is divided into blocks of about `BLOCK` positions, each with the share of every set in a random
    order, which depends on seed, epoch and block alone.

    Args:
        draws: Images of every set in one epoch.
        seed: Seed of the shuffling.
        epoch: Number of the epoch.
    """

    def __init__(self, draws: Sequence[int], seed: int, epoch: int) -> None:
        self._seed = seed
        self._epoch = epoch
        counts = np.array(draws, np.int64)
        blocks = max(1, -(-int(counts.sum()) // BLOCK))
        # Draws of every set before each block, [blocks + 1, sets]
        self._counts = np.arange(blocks + 1)[:, None] * counts // blocks
        self._starts = self._counts.sum(axis=1)  # first position of each block
        self._read_block = lru_cache(maxsize=4)(self._shuffle_block)

    def _shuffle_block(self, block: int) -> NDArray[np.int64]:
        counts = self._counts[block + 1] - self._counts[block]
        start = int(self._starts[block])
        words = draw_words(self._seed, self._epoch, STREAM, start, int(counts.sum()))
        return np.repeat(np.arange(len(counts)), counts)[np.argsort(words, kind="stable")]

    def _find_block(self, position: int) -> int:
        return min(int(np.searchsorted(self._starts, position, side="right")), len(self._starts) - 1) - 1

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the set of every position from `start` to `stop`."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            block = self._find_block(start)
            begin = int(self._starts[block])
            end = min(stop, int(self._starts[block + 1]))
            parts.append(self._read_block(block)[start - begin : end - begin])
            start = end
        return np.concatenate(parts)

    def count(self, position: int) -> NDArray[np.int64]:
        """Returns the draws of every set before a position, int64 `[sets]`."""
        block = self._find_block(position)
        before = self._read_block(block)[: position - int(self._starts[block])]
        counts: NDArray[np.int64] = self._counts[block] + np.bincount(before, minlength=self._counts.shape[1])
        return counts

    def find_position(self, set_index: int, draw: int) -> int:
        """Returns the position of a draw of a set.

        Args:
            set_index: Index of the set.
            draw: Number of the draw in the epoch, from 0.
        """
        block = int(np.searchsorted(self._counts[:, set_index], draw, side="right")) - 1
        places = np.flatnonzero(self._read_block(block) == set_index)
        return int(self._starts[block] + places[draw - self._counts[block, set_index]])


def compute_draws(
    rows: Sequence[int], weights: Sequence[float], epoch_images: int | None = None
) -> tuple[int, ...]:
    """Computes how many images of every set an epoch has.

    Args:
        rows: Number of images of every set.
        weights: Weight of every set; only their ratios matter.
        epoch_images: Images of an epoch; None ends it when the first of the sets has been seen once.

    Returns:
        Images of every set. Without `epoch_images`, one set is drawn exactly once and no other more often.

    Raises:
        ConfigError: A set would have no image in an epoch.
    """
    exact = [Fraction(str(weight)) for weight in weights]  # the decimal number, as it was written
    if epoch_images is None:
        passes = min(Fraction(count) / weight for count, weight in zip(rows, exact, strict=True))
        draws = [int(passes * weight) for weight in exact]
    else:
        shares = [epoch_images * weight / sum(exact) for weight in exact]
        draws = [int(share) for share in shares]
        by_remainder = sorted(range(len(shares)), key=lambda index: draws[index] - shares[index])
        for index in by_remainder[: epoch_images - sum(draws)]:
            draws[index] += 1
    if 0 in draws:
        raise ConfigError(
            "a mix with images of every set in an epoch",
            f"weight={weights[draws.index(0)]:g} ({sum(draws):,} images in an epoch)",
            "choose a larger weight or a larger data.epoch_images, or leave this set out",
        )
    return tuple(draws)
