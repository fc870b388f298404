"""Random numbers without a state: those of an image depend on seed, epoch and row, on nothing else."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

ROUNDS = 10
MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


class Number(IntEnum):
    """Which of an image's random numbers decides what.

    Every decision has a number of its own, so that widening one range moves no other. New ones go to the
    end: another order would change every run.
    """

    THETA = 0
    TX = 1
    TY = 2
    SHEAR = 3
    ZX = 4
    ZY = 5
    FLIP = 6
    FLIP_VERTICAL = 7
    CROP_AREA = 8
    CROP_RATIO = 9
    CROP_Y = 10
    CROP_X = 11
    BRIGHTNESS = 12
    CONTRAST = 13
    SATURATION = 14
    HUE = 15
    ERASE = 16
    ERASE_AREA = 17
    ERASE_RATIO = 18
    ERASE_Y = 19
    ERASE_X = 20
    MIXUP_OR_CUTMIX = 21
    MIXUP = 22
    CUTMIX = 23
    CUT_Y = 24
    CUT_X = 25


BLOCKS = -(-len(Number) // 4)  # a block of the generator is four numbers


def philox4x32(counter: ArrayLike, key: ArrayLike) -> Words:
    """Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    Args:
        counter: 32-bit words, `[4, ...]`.
        key: 32-bit words, `[2]`.

    Returns:
        Random 32-bit words in uint64, `[4, ...]`.
    """
    words = np.asarray(counter, np.uint64)
    column = (2, *[1] * (words.ndim - 1))
    keys = (
        np.asarray(key, np.uint64) + KEY_STEPS * np.arange(ROUNDS, dtype=np.uint64)[:, None]
    ) & LOW  # of every round
    multipliers = MULTIPLIERS.reshape(column)
    even, odd = words[0::2], words[1::2]
    for round_key in keys.reshape(ROUNDS, *column):
        crossed = (even * multipliers)[::-1]  # 32 x 32 bits: fits into 64
        even, odd = (crossed >> HALF) ^ odd ^ round_key, crossed & LOW
    return np.stack([even, odd], axis=1).reshape(words.shape)


def uniform(seed: int, epoch: int, rows: ArrayLike) -> Floats:
    """The random numbers of some rows: the key is the seed, the counter is the row, the epoch and a block number.

    Args:
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        rows: Integers `[n]`.

    Returns:
        float64 `[4 * BLOCKS, n]` in [0, 1), to be indexed with a `Number`.
    """
    row = np.asarray(rows, np.int64).astype(np.uint64)
    counter = np.empty((4, BLOCKS, len(row)), np.uint64)
    counter[0], counter[1], counter[2] = row & LOW, row >> HALF, epoch
    counter[3] = np.arange(BLOCKS, dtype=np.uint64)[:, None]
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return words.swapaxes(0, 1).reshape(4 * BLOCKS, len(row)) / 2.0**32
