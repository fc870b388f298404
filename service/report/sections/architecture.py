"""Network: the graph of its blocks, and what every layer computes, holds and costs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import Any

from service.report.analysis.architecture import Architecture, LayerFigures
from service.report.analysis.blocks import Block, SideBranch
from service.report.analysis.layer_times import LayerTimes
from service.report.analysis.operation_graph import count_positions
from service.report.drawing.formatting import percent, quantity, sizes
from service.report.sections.layer_words import (
    BRANCHES,
    describe_block,
    describe_field,
    describe_layer,
    name_block,
)
from service.report.sections.section import Section

WORDS = ("million", "billion", "trillion")
# The drawing of a block: a box that is as wide as its feature maps, in pixels.
WIDEST_BOX = 60
NARROWEST_BOX = 6
MOST_CARDS = 4  # boxes behind each other, for the channels
SHARE_WORTH_NAMING = 0.1  # of the time, for a block to be named in the summary


def build_section(architecture: Architecture, times: LayerTimes | None) -> Section:
    """Builds the graph of a network.

    Args:
        architecture: Layers of the network in blocks.
        times: Measured times of the layers; None if they were not measured.
    """
    image_shape = architecture.network.shape
    rows = [
        _describe_row([_describe_block(block, architecture, image_shape, times) for block in blocks])
        for blocks in group_equal_blocks(architecture)
    ]
    layers = [
        _describe_layer(layer, image_shape, times, block.name)
        for block in architecture.blocks
        for layer in architecture.select(block.all_layers)
    ]
    values = {
        "summary": summarize(architecture, times),
        "image": sizes(image_shape),
        "rows": rows,
        "times": times,
        "has_gates": any(branch.kind == "gate" for block in architecture.blocks for branch in block.branches),
        "unknown": architecture.unknown_layers,
    }
    figures = {
        "parameters": architecture.parameters,
        "trainable_parameters": architecture.trainable_parameters,
        "multiply_adds": architecture.multiply_adds,
        "layers": [layer["figures"] for layer in layers],
        "times_measured": None if times is None else {"device": times.device, "images": times.images},
    }
    return Section("architecture", "The network at a glance", values, figures)


def summarize(architecture: Architecture, times: LayerTimes | None) -> str:
    """Summarizes size and cost of a network in plain sentences.

    Args:
        architecture: Layers of the network in blocks.
        times: Measured times of the layers; None if they were not measured.
    """
    layers = _count(len(architecture.layers), "layer")
    blocks = _count(len(architecture.blocks), "block")
    parameters = quantity(architecture.parameters, WORDS)
    multiply_adds = quantity(architecture.multiply_adds, WORDS)
    text = (
        f"{layers} in {blocks} with {parameters} parameters (weights), {_describe_trainable(architecture)}. "
        f"One image of {sizes(architecture.network.shape)} takes {multiply_adds} multiply-adds "
        "(a multiplication and an addition each)."
    )
    if times is not None:
        shares = {
            _name_row(blocks): sum(_sum_shares(block.all_layers, times) for block in blocks)
            for blocks in group_equal_blocks(architecture)
        }
        slowest = sorted(shares, key=lambda name: -shares[name])[:2]
        named = [name for name in slowest if shares[name] >= SHARE_WORTH_NAMING] or slowest[:1]
        parts = [f"{percent(shares[name], 0)} of the time is spent in {name}" for name in named]
        text += f" {', and '.join(parts)}."
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _describe_trainable(architecture: Architecture) -> str:
    fixed = architecture.parameters - architecture.trainable_parameters
    if fixed == 0:
        return "all of them trainable"
    if architecture.trainable_parameters == 0:
        return "none of them trainable"
    return f"{quantity(architecture.trainable_parameters, WORDS)} of them trainable"


def _sum_shares(names: Sequence[str], times: LayerTimes) -> float:
    return sum(times.compute_share(name) for name in names)


def group_equal_blocks(architecture: Architecture) -> list[list[Block]]:
    """Groups consecutive blocks that are equal: layers of the same kinds and sizes, connected the same way.

    Names, receptive fields and times may differ, and so may what only matters in training, such as the rate
    of a dropout.

    Args:
        architecture: Layers of the network in blocks.

    Returns:
        The blocks in order; most groups have one.
    """
    groups = groupby(architecture.blocks, key=lambda block: _describe_structure(block, architecture))
    return [list(blocks) for _, blocks in groups]


def _describe_structure(block: Block, architecture: Architecture) -> Hashable:
    """Describes what equal blocks have in common: their layers, and where side branches join them."""
    layers = tuple(
        (
            describe_layer(layer.node),
            layer.node.input_shapes,
            layer.node.shape,
            layer.node.dtype,
            layer.parameters,
            layer.trainable_parameters,
            layer.multiply_adds,
        )
        for layer in architecture.select(block.all_layers)
    )
    branches = tuple(
        (branch.kind, len(branch.layers), block.layers.index(branch.end)) for branch in block.branches
    )
    return block.kind, layers, branches


def _name_row(blocks: Sequence[Block]) -> str:
    """Names a row in a sentence."""
    if blocks[0].kind == "head":
        return "the classifier"
    return blocks[0].name if len(blocks) == 1 else _join_names(blocks[0].name, blocks[-1].name)


def _join_names(first: str, last: str) -> str:
    """Joins the names of the first and the last of equal blocks; a nested model is named once."""
    return f"{first} \N{EN DASH} {last.rpartition('/')[2]}"


def _describe_row(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Describes a row of the graph: a block, or equal blocks with their sums."""
    first = blocks[0]
    last = blocks[-1]
    if len(blocks) == 1:
        return first | {"blocks": blocks}
    return last | {
        "blocks": blocks,
        "name": _join_names(first["name"], last["name"]),
        "parameters": first["parameters"] * len(blocks),
        "multiply_adds": None if first["multiply_adds"] is None else first["multiply_adds"] * len(blocks),
        "time_share": None if first["time_share"] is None else sum(block["time_share"] for block in blocks),
    }


def _describe_block(
    block: Block, architecture: Architecture, image_shape: Sequence[int], times: LayerTimes | None
) -> dict[str, Any]:
    layers = architecture.select(block.all_layers)
    main_path = architecture.select(block.layers)
    last = main_path[-1]
    multiply_adds = [layer.multiply_adds for layer in layers]
    return {
        "name": block.name,
        "kind": block.kind,
        "title": name_block(block, [layer.node.kind for layer in main_path]),
        "words": describe_block(block, main_path),
        "shape": sizes(last.node.shape),
        "parameters": sum(layer.parameters for layer in layers),
        "multiply_adds": None if None in multiply_adds else sum(multiply_adds),
        "field": describe_field(last, image_shape),
        "time_share": None if times is None else _sum_shares(block.all_layers, times),
        "box": _draw_box(last, image_shape),
        "has_shortcut": any(branch.kind == "shortcut" for branch in block.branches),
        "layers": [_describe_layer(layer, image_shape, times, block.name) for layer in main_path],
        "branches": [
            _describe_branch(branch, architecture, image_shape, times, block.name)
            for branch in block.branches
        ],
    }


def _describe_branch(
    branch: SideBranch,
    architecture: Architecture,
    image_shape: Sequence[int],
    times: LayerTimes | None,
    block: str,
) -> dict[str, Any]:
    layers = architecture.select(branch.layers)
    return {
        "kind": branch.kind,
        "title": BRANCHES[branch.kind],
        "end": branch.end,
        "layers": [_describe_layer(layer, image_shape, times, block) for layer in layers],
    }


def _describe_layer(
    layer: LayerFigures, image_shape: Sequence[int], times: LayerTimes | None, block: str
) -> dict[str, Any]:
    node = layer.node
    words = describe_layer(node)
    share = None if times is None else times.compute_share(node.name)
    is_trainable = layer.trainable_parameters > 0 if layer.parameters else None
    field = None if layer.field is None else layer.field
    figures = {
        "layer": node.name,
        "block": block,
        "kind": node.kind,
        "words": words,
        "inputs": list(node.sources),
        "shape": list(node.shape),
        "parameters": layer.parameters,
        "multiply_adds": layer.multiply_adds,
        "receptive_field": None if field is None else list(field.size),
        "receptive_field_stride": None if field is None else list(field.stride),
        "sees_whole_image": field is None or field.is_global,
        "trainable": is_trainable,
        "dtype": node.dtype,
        "time_share": share,
    }
    return figures | {
        "words": words,
        "shape": sizes(node.shape),
        "field": describe_field(layer, image_shape),
        "figures": figures,
    }


def _draw_box(layer: LayerFigures, image_shape: Sequence[int]) -> dict[str, int]:
    """Chooses the size of a block in the drawing.

    Returns:
        Width in pixels: the side of the feature maps as a share of the image's, on a square root scale; and
        the number of cards behind each other: the more, the more channels.
    """
    shape = layer.node.shape
    side = math.sqrt(count_positions(shape) / count_positions(tuple(image_shape)))
    width = NARROWEST_BOX + (WIDEST_BOX - NARROWEST_BOX) * math.sqrt(min(side, 1.0))
    cards = 1 + math.floor(math.log2(max(shape[-1], 1)) / 3)
    return {"width": round(width), "cards": min(cards, MOST_CARDS)}
