"""A counter-based random number generator: the numbers of an image depend on seed, epoch and row alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

ROUNDS = 10
MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
BLOCK = 4  # random numbers per counter value
FOLD_BLOCK = 0xFFFFFFFF  # block number that `fold_in` uses and `uniform` never reaches


def philox4x32(counter: ArrayLike, key: ArrayLike) -> Words:
    """Computes Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        counter: 32-bit words, `[4, ...]`.
        key: 32-bit words, `[2]`.

    Returns:
        Random 32-bit words in uint64, `[4, ...]`.
    """
    words = np.asarray(counter, np.uint64)
    column = (2, *[1] * (words.ndim - 1))
    steps = KEY_STEPS * np.arange(ROUNDS, dtype=np.uint64)[:, None]
    round_keys = (np.asarray(key, np.uint64) + steps) & LOW  # [ROUNDS, 2]
    multipliers = MULTIPLIERS.reshape(column)
    even = words[0::2]
    odd = words[1::2]
    for round_key in round_keys.reshape(ROUNDS, *column):
        products = (even * multipliers)[::-1]  # 32 x 32 bits fit into 64
        even = products >> HALF
        even ^= odd
        even ^= round_key
        products &= LOW
        odd = products
    return np.stack([even, odd], axis=1).reshape(words.shape)


def uniform(seed: int, epoch: int, rows: ArrayLike, count: int) -> Floats:
    """Returns uniform random numbers for some rows.

    The key is the seed; the counter holds row, epoch and block. Number i of an image does not depend on
    `count`.

    Args:
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        rows: Row numbers of the split, integers `[n]`.
        count: Numbers per image; rounded up to a multiple of 4.

    Returns:
        float64 `[count, n]` in [0, 1).
    """
    row = np.asarray(rows, np.int64).astype(np.uint64)
    blocks = -(-count // BLOCK)
    counter = np.empty((4, blocks, len(row)), np.uint64)
    counter[0] = row & LOW
    counter[1] = row >> HALF
    counter[2] = epoch
    counter[3] = np.arange(blocks, dtype=np.uint64)[:, None]
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return words.swapaxes(0, 1).reshape(BLOCK * blocks, len(row)) / 2.0**32


def fold_in(seed: int, name: str) -> int:
    """Derives the seed of a named stream, as `jax.random.fold_in` does: independent for every name.

    Args:
        seed: 0 to 2**64 - 1.
        name: Any text; its SHA-256 is used.

    Returns:
        A seed, 0 to 2**64 - 1.
    """
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    counter = (digest & 0xFFFFFFFF, digest >> 32, 0, FOLD_BLOCK)
    low, high, *_ = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).tolist()
    return int(low) | int(high) << 32
