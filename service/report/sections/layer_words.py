"""Layers, blocks and receptive fields of a network in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from service.inference.graph import activation_name
from service.report.analysis.architecture import LayerFigures
from service.report.analysis.blocks import Block
from service.report.analysis.operation_graph import Node, count_positions
from service.report.drawing.formatting import TIMES, sizes

# Names of layers whose class name is not what everyone calls them.
KINDS = {
    "Add": "sum",
    "AveragePooling2D": "average pooling",
    "BatchNormalization": "batch normalization",
    "Concatenate": "concatenation",
    "Cropping2D": "cropping",
    "EinsumDense": "dense layer",
    "GetItem": "selection",
    "GlobalAveragePooling1D": "mean over all positions",
    "GlobalAveragePooling2D": "mean over all positions",
    "GlobalMaxPooling2D": "maximum over all positions",
    "LayerNormalization": "layer normalization",
    "LayerScale": "scaling of channels",
    "Multiply": "product",
    "Normalization": "normalization of the pixels",
    "ReLU": "ReLU",
    "Rescaling": "rescaling",
    "StochasticDepth": "dropout of the branch",
    "ZeroPadding2D": "padding",
}
CONVOLUTIONS = {
    "Conv1D": "convolution",
    "Conv2D": "convolution",
    "Conv3D": "convolution",
    "Conv2DTranspose": "transposed convolution",
    "DepthwiseConv2D": "depthwise convolution",
    "SeparableConv2D": "separable convolution",
}
POOLINGS = {"MaxPooling2D": "max pooling", "AveragePooling2D": "average pooling"}
ATTENTIONS = {"MultiHeadAttention": "self-attention", "GroupedQueryAttention": "grouped attention"}
ACTIVATIONS = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "gelu": "GELU",
    "elu": "ELU",
    "selu": "SELU",
    "silu": "SiLU",
    "swish": "SiLU",
}
TITLES = {
    "input": "Preprocessing",
    "patches": "Patch embedding",
    "convolution": "Convolutions",
    "residual": "Residual block",
    "transformer": "Transformer block",
    "parallel": "Parallel branches",
    "dense": "Dense layers",
    "other": "Layers",
    "head": "Classifier",
}
BRANCHES = {"shortcut": "Shortcut", "gate": "Gate (squeeze-and-excitation)", "branch": "Side branch"}


def describe_layer(node: Node) -> str:
    """Describes what a layer computes, such as `3 x 3 convolution, stride 2, ReLU`."""
    parts = [_describe_kind(node), *_describe_steps(node.operation)]
    function = activation_name(node.operation)
    if node.kind != "Activation" and function != "linear" and hasattr(node.operation, "activation"):
        parts.append(ACTIVATIONS.get(function, function))
    return ", ".join(parts)


def _describe_kind(node: Node) -> str:
    operation = node.operation
    if node.kind in CONVOLUTIONS:
        name = CONVOLUTIONS[node.kind]
        groups = getattr(operation, "groups", 1)
        if groups > 1:
            is_depthwise = groups == node.input_shapes[0][-1]
            name = f"depthwise {name}" if is_depthwise else f"{name} in {groups} groups"
        return f"{sizes(operation.kernel_size)} {name}"
    if node.kind in POOLINGS:
        return f"{sizes(operation.pool_size)} {POOLINGS[node.kind]}"
    if node.kind in ATTENTIONS:
        heads = getattr(operation, "num_heads", None) or operation.num_query_heads
        return f"{ATTENTIONS[node.kind]} with {heads} {'head' if heads == 1 else 'heads'}"
    if node.kind == "Dense":
        return "dense layer" if count_positions(node.shape) == 1 else "dense layer at every position"
    if node.kind == "Activation":
        function = activation_name(operation)
        return ACTIVATIONS.get(function, function)
    return KINDS.get(node.kind) or _split_words(node.kind)


def _describe_steps(operation: Any) -> list[str]:
    steps = []
    for attribute, word in (("strides", "stride"), ("dilation_rate", "dilation")):
        value = getattr(operation, attribute, None)
        if isinstance(value, tuple | list) and any(step != 1 for step in value):
            steps.append(f"{word} {value[0] if len(set(value)) == 1 else sizes(value)}")
    return steps


def _split_words(kind: str) -> str:
    """Splits a class name into words: `GaussianNoise` is `gaussian noise`; abbreviations stay."""
    words = "".join(f" {letter}" if letter.isupper() else letter for letter in kind).strip()
    return kind if len(words.split()) > len(kind) / 2 else words.lower()


def name_block(block: Block, kinds: Sequence[str]) -> str:
    """Names the type of a block, such as `Residual block`.

    Args:
        block: Block of the network.
        kinds: Class names of the layers of its main path.
    """
    title = TITLES[block.kind]
    if block.kind == "convolution" and sum("Conv" in kind for kind in kinds) == 1:
        title = "Convolution"
    if block.kind == "other" and set(kinds) <= {*POOLINGS, "ZeroPadding2D"}:
        title = "Pooling"
    if any(branch.kind == "gate" for branch in block.branches):
        title += " with squeeze-and-excitation"
    return title


def describe_block(block: Block, layers: Sequence[LayerFigures]) -> str:
    """Describes the layers on the main path of a block that have weights or change its size.

    Args:
        block: Block of the network.
        layers: Figures of the layers of its main path, in order.
    """
    words = [describe_layer(layer.node) for layer in layers if _is_essential(layer.node)]
    steps = []
    for text, repeats in groupby(words or [describe_layer(layer.node) for layer in layers]):
        count = len(list(repeats))
        steps.append(text if count == 1 else f"{count}{TIMES}{text}")
    return " \N{RIGHTWARDS ARROW} ".join(steps)


def _is_essential(node: Node) -> bool:
    if node.kind in CONVOLUTIONS or node.kind in POOLINGS or node.kind in ATTENTIONS:
        return True
    return node.kind in ("Dense", "EinsumDense", "Embedding", "Flatten") or node.kind.startswith("Global")


def describe_field(layer: LayerFigures, image: Sequence[int]) -> str:
    """Describes the receptive field of a layer: its size and stride in pixels.

    Args:
        layer: Figures of the layer.
        image: Height and width of the image, in pixels.
    """
    field = layer.field
    if field is None or all(size >= side for size, side in zip(field.stride, image, strict=False)):
        return "whole image"
    size = TIMES.join(f"{side:g}" for side in field.size)
    strides = TIMES.join(f"{step:g}" for step in dict.fromkeys(field.stride))
    text = f"{size}, stride {strides}"
    return f"{text}, and the whole image" if field.is_global else text
