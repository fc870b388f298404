"""Counts the floating-point operations of a training step from the layers, and measures the device's peak."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from gpu_context import CheckContext, measure_seconds

# Data types of matrix products by precision policy.
DTYPES = {"float32": "float32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}
MIN_PRODUCTS = 3


def count_operations(model: Any) -> tuple[float, float]:
    """Counts multiplications and additions per image in convolutions and dense layers.

    The backward pass costs as much as the forward pass for the gradients of the weights, and as much again
    for the gradients of the inputs, which the first layer does not need.

    Args:
        model: A Keras model, which may contain other models.

    Returns:
        The operations of a forward pass and of a training step.
    """
    operations = [_count_layer_operations(layer) for layer in model._flatten_layers(include_self=False)]
    operations = [count for count in operations if count > 0]
    if not operations:
        return 0.0, 0.0
    forward = sum(operations)
    return forward, 3 * forward - operations[0]


def _count_layer_operations(layer: Any) -> float:
    kind = type(layer).__name__
    if kind not in ("Conv2D", "DepthwiseConv2D", "Dense"):
        return 0.0
    input_shape = layer.input.shape[1:]
    output_shape = layer.output.shape[1:]
    if kind == "Dense":
        return 2.0 * int(np.prod(input_shape)) * output_shape[-1]
    height, width = layer.kernel_size
    # Input channels that contribute to one output value.
    channels = 1 if kind == "DepthwiseConv2D" else input_shape[-1] // layer.groups
    return 2.0 * height * width * channels * int(np.prod(output_shape))


def measure_peak(context: CheckContext, precision: str) -> float:
    """Measures operations per second of the fastest of many products of two large matrices."""
    import tensorflow as tf

    size = context.choose(8192, 2048, 128)
    products_per_call = context.choose(8, 1, 1)
    dtype = DTYPES[precision]
    with tf.device(context.device):
        left = tf.cast(tf.random.stateless_normal((size, size), (0, 0)), dtype)
        right = tf.cast(tf.random.stateless_normal((size, size), (1, 0)), dtype)
        multiply = tf.function(lambda a, b: tf.matmul(a, b))

        def call() -> None:
            for _ in range(products_per_call):
                multiply(left, right)

        seconds: list[float] = []
        deadline = time.perf_counter() + context.choose(1.0, 1.5, 0.0)
        while len(seconds) < MIN_PRODUCTS or time.perf_counter() < deadline:
            seconds.append(measure_seconds(call, 0.0, warm_up=False))
    return 2.0 * size**3 * products_per_call / min(seconds)
