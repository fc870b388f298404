"""How much a training step has to compute, counted from the layers, and how much the chip can."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from gpu_lab import Lab, seconds_each

DTYPES = {
    "float32": "float32",
    "mixed_bfloat16": "bfloat16",
    "mixed_float16": "float16",
}  # what matrix products compute in


def operations(model: Any) -> tuple[float, float]:
    """Multiplications and additions of an image in convolutions and dense layers, each counting one.

    Going back costs as much again for the gradient of the weights, and as much for that of the input, which the first layer does not need.

    Args:
        model: A Keras model; models inside it count too.

    Returns:
        Of the forward pass, and of a training step.
    """
    each = [amount for layer in model._flatten_layers(include_self=False) if (amount := _of(layer)) > 0]
    return sum(each), 3 * sum(each) - each[0] if each else 0.0


def _of(layer: Any) -> float:
    kind = type(layer).__name__
    if kind not in ("Conv2D", "DepthwiseConv2D", "Dense"):
        return 0.0
    inputs, outputs = layer.input.shape[1:], layer.output.shape[1:]
    if kind == "Dense":
        return 2.0 * int(np.prod(inputs)) * outputs[-1]
    height, width = layer.kernel_size
    seen = (
        1 if kind == "DepthwiseConv2D" else inputs[-1] // layer.groups
    )  # channels that an output value is made of
    return 2.0 * height * width * seen * int(np.prod(outputs))


def peak(lab: Lab, precision: str) -> float:
    """Operations a second of the fastest of many products of two large matrices in a precision."""
    import tensorflow as tf

    size, at_once = lab.pick(8192, 2048, 128), lab.pick(8, 1, 1)
    dtype = DTYPES[precision]
    with tf.device(lab.device):
        left, right = (tf.cast(tf.random.stateless_normal((size, size), (seed, 0)), dtype) for seed in (0, 1))
        product = tf.function(lambda a, b: tf.matmul(a, b))
        times, ends = [], time.perf_counter() + lab.pick(1.0, 1.5, 0.0)
        while len(times) < 3 or time.perf_counter() < ends:
            times.append(
                seconds_each(lambda: [product(left, right) for _ in range(at_once)], 0.0, warm=False)
            )
    return 2.0 * size**3 * at_once / min(times)
