"""Packs gradients into a few flat buffers, so that a step needs few large sums over the replicas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod

import tensorflow as tf

MAX_BYTES = 256 << 20  # per buffer: far beyond the size at which a sum reaches full bandwidth
FLOAT_BYTES = 4


class Packing:
    """The places of tensors of known shapes in a few flat float32 buffers.

    Call it inside a compiled function, where packing is a single copy at the speed of memory.

    Args:
        shapes: Shape of each tensor.
        max_bytes: Size up to which tensors share a buffer. A larger tensor has a buffer of its own.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], max_bytes: int = MAX_BYTES) -> None:
        self._shapes = [tuple(shape) for shape in shapes]
        self._groups = group_sizes([prod(shape) for shape in self._shapes], max_bytes // FLOAT_BYTES)

    @property
    def sizes(self) -> list[int]:
        """Number of values in each buffer."""
        return [sum(prod(self._shapes[index]) for index in group) for group in self._groups]

    def pack(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Copies tensors into buffers, float32 `[size]` each."""
        buffers = []
        for group in self._groups:
            flat = [tf.reshape(tf.cast(tensors[index], tf.float32), [-1]) for index in group]
            buffers.append(tf.concat(flat, axis=0))
        return buffers

    def unpack(self, buffers: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the tensors of some buffers in their shapes, float32."""
        tensors = []
        for group, buffer in zip(self._groups, buffers, strict=True):
            sizes = [prod(self._shapes[index]) for index in group]
            bounds = accumulate(sizes, initial=0)
            for index, (start, stop) in zip(group, pairwise(bounds), strict=True):
                tensors.append(tf.reshape(buffer[start:stop], self._shapes[index]))
        return tensors


def group_sizes(sizes: Sequence[int], limit: int) -> list[range]:
    """Groups consecutive tensors so that no group exceeds a limit, unless it holds a single tensor.

    Args:
        sizes: Size of each tensor.
        limit: Maximum sum of the sizes of a group.

    Returns:
        Indices of the tensors of each group.
    """
    groups: list[range] = []
    start = 0
    total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            groups.append(range(start, index))
            start = index
            total = 0
        total += size
    if sizes:
        groups.append(range(start, len(sizes)))
    return groups
