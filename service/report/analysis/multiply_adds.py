"""Multiply-adds: how many multiplications, each followed by an addition, an operation takes for one image.

Counted are convolutions, dense layers, attention and matrix products, as in the tables of the papers that
networks come from; normalization, activations, pooling and sums are left out, which take little beside them.
"""

from __future__ import annotations

import math
from typing import Any

from service.report.analysis.operation_graph import Node, count_positions


def count_multiply_adds(node: Node) -> int | None:
    """Counts the multiply-adds of an operation for one image.

    Args:
        node: The operation with the shapes of its inputs and output.

    Returns:
        Their number; None for a layer that has matrices as weights, but is not known.
    """
    operation = node.operation
    if node.kind in ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D"):
        # Every weight is used once at every position of the output: [h, w, C_in / groups, C_out] of a
        # convolution, [h, w, C_in, multiplier] of a depthwise one.
        return count_positions(node.shape) * _count_weights(operation.kernel)
    if node.kind in ("SeparableConv1D", "SeparableConv2D"):
        weights = _count_weights(operation.depthwise_kernel) + _count_weights(operation.pointwise_kernel)
        return count_positions(node.shape) * weights
    if node.kind in ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"):
        # Every weight is used once at every position of the input.
        return count_positions(node.input_shapes[0]) * _count_weights(operation.kernel)
    if node.kind == "Dense":
        return count_positions(node.shape) * _count_weights(operation.kernel)
    if node.kind == "EinsumDense":
        return _count_einsum(operation.equation, node.input_shapes[0], tuple(operation.kernel.shape))
    if node.kind == "MultiHeadAttention":
        return _count_attention(node, operation.num_heads, operation.num_heads, operation.key_dim)
    if node.kind == "GroupedQueryAttention":
        heads = operation.num_query_heads, operation.num_key_value_heads
        return _count_attention(node, *heads, operation.head_dim)
    if node.kind == "Matmul" and len(node.input_shapes) == 2:
        return math.prod(node.shape) * node.input_shapes[0][-1]
    return None if _has_matrices(node) else 0


def _count_weights(kernel: Any) -> int:
    shape: tuple[int, ...] = tuple(kernel.shape)
    return math.prod(shape)


def _count_einsum(equation: str, inputs: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Counts the products of `EinsumDense`: one for each combination of all its indices but the batch."""
    operands, _ = equation.replace(" ", "").split("->")
    input_axes, kernel_axes = operands.split(",")
    # Axes behind dots, the batch among them, come first and are in the input alone.
    input_axes = input_axes.replace("...", "")
    named = len(input_axes) if "..." in operands else len(input_axes) - 1
    sizes = dict(zip(reversed(input_axes), reversed(inputs), strict=False))
    sizes |= dict(zip(kernel_axes, kernel, strict=True))
    unnamed = inputs[: len(inputs) - named]
    return math.prod(sizes.values()) * math.prod(unnamed)


def _count_attention(node: Node, query_heads: int, key_heads: int, key_size: int) -> int:
    """Counts projections of queries, keys, values and outputs, scores, and sums of values.

    Arguments are `[T, C]` each: queries, values, and keys if they differ from the values.
    """
    query = node.input_shapes[0]
    value = node.input_shapes[1]
    key = node.input_shapes[2] if len(node.input_shapes) > 2 else value
    value_size = getattr(node.operation, "value_dim", None) or key_size
    queries = count_positions(query)
    keys = count_positions(value)
    projections = queries * query[-1] * query_heads * key_size
    projections += keys * key[-1] * key_heads * key_size
    projections += keys * value[-1] * key_heads * value_size
    projections += queries * query_heads * value_size * node.shape[-1]
    pairs = queries * keys * query_heads
    return projections + pairs * (key_size + value_size)


def _has_matrices(node: Node) -> bool:
    """Tells whether a layer has trainable weights of more than one value per channel, other than a table."""
    weights: list[Any] = getattr(node.operation, "trainable_weights", None) or []
    if node.kind in ("Embedding", "LayerNormalization"):
        return False
    return any(len(weight.shape) > 1 for weight in weights)
