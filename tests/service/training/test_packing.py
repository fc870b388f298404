"""Packing of gradients into a few flat buffers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from service.training.packing import Packing, group_sizes

SHAPES = [(2, 3), (), (4,), (1, 1, 2), (5,)]


def make_tensors() -> list[tf.Tensor]:
    rng = np.random.default_rng(0)
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in SHAPES]


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []),
        ([3], [[0]]),
        ([4, 4, 2], [[0, 1, 2]]),
        ([4, 4, 3], [[0, 1], [2]]),
        ([11, 1, 12, 12, 10], [[0], [1], [2], [3], [4]]),
        ([0, 10, 0, 1], [[0, 1, 2], [3]]),
    ],
)
def test_a_group_stays_below_the_limit_unless_it_is_one_tensor(
    sizes: list[int], groups: list[list[int]]
) -> None:
    assert [list(group) for group in group_sizes(sizes, 10)] == groups


@pytest.mark.parametrize("max_bytes", [4, 28, 40, 1000])
def test_tensors_come_back_as_they_were(max_bytes: int) -> None:
    packing = Packing(SHAPES, max_bytes)
    tensors = make_tensors()
    buffers = tf.function(packing.pack, jit_compile=True)(tensors)
    assert [buffer.shape[0] for buffer in buffers] == packing.sizes
    assert sum(packing.sizes) == 18
    returned = tf.function(packing.unpack, jit_compile=True)(buffers)
    for tensor, expected in zip(returned, tensors, strict=True):
        assert tensor.shape == expected.shape
        assert tensor.numpy().tobytes() == expected.numpy().tobytes()


def test_all_small_tensors_share_a_buffer() -> None:
    assert Packing(SHAPES).sizes == [18]


def test_gradients_of_an_embedding_become_dense() -> None:
    slices = tf.IndexedSlices(tf.constant([[1.0, 2.0]]), tf.constant([1]), tf.constant([2, 2]))
    packing = Packing([(2, 2)])
    (buffer,) = packing.pack([slices])
    assert buffer.numpy().tolist() == [0.0, 0.0, 1.0, 2.0]
