"""Activations: what every layer computes from an image, one tile per channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.report.analysis.activations import (
    FeatureMapOutputs,
    LayerOutputs,
    standardize_vector,
    summarize_layer,
)
from service.report.analysis.architecture import Architecture
from service.report.analysis.examples import ReportExample
from service.report.analysis.forward import ForwardPass
from service.report.analysis.network import LayerInfo, Network
from service.report.drawing.album import Album, Drawing, Picture
from service.report.drawing.colours import SEQUENTIAL
from service.report.drawing.formatting import anchor, sizes
from service.report.drawing.sheets import (
    choose_encoding,
    choose_scaling,
    compute_layout,
    draw_channel_sheet,
    draw_vector,
)
from service.report.sections.examples import show_examples
from service.report.sections.layer_words import BRANCHES, name_block
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

LISTED_UNITS = 16  # largest number of units of a layer whose values are listed


def build_section(
    album: Album,
    provenance: Provenance,
    architecture: Architecture,
    examples: Sequence[ReportExample],
    forward_pass: ForwardPass,
    classes: Sequence[str],
    sheet_format: str,
) -> Section | None:
    """Builds the activations of every layer for some images.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        architecture: The network whose layers are shown, by block.
        examples: Images to show, the first ones of `forward_pass`.
        forward_pass: Outputs of the network for the examples.
        classes: Class names; labels are indices into them.
        sheet_format: Encoding of the sheets, see `ReportOptions.sheets`.

    Returns:
        The section; None if there are no examples.
    """
    if not examples:
        return None
    network = architecture.network
    outputs = {layer.name: forward_pass.layer_outputs[layer.name] for layer in network.layers}
    shown_examples = show_examples(album, provenance, examples, classes)
    pictures = iter(album.add_all(_draw_layers(provenance, network, examples, outputs, sheet_format)))
    layers = {
        layer.name: _describe_layer(layer, outputs[layer.name], len(examples), pictures, sheet_format)
        for layer in network.layers
    }
    table = [summarize_layer(layer, outputs[layer.name], len(examples)) for layer in network.layers]
    values = {
        "examples": [
            {"shown": shown, "outputs": _name_outputs(network, outputs, n, classes)}
            for n, shown in enumerate(shown_examples)
        ],
        "blocks": _list_blocks(architecture, layers),
        "table": table,
    }
    figures = {"rows": [example.row for example in examples], "layers": table}
    return Section(
        "activations",
        "Activations",
        values,
        figures,
        examples=shown_examples,
        anchors=frozenset(f"layer-{anchor(name)}" for name in layers),
    )


def _list_blocks(architecture: Architecture, layers: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Lists the layers by block, in the order in which they run.

    Returns:
        For each block with layers that are shown its name, title, and parts: the layers of one side branch
        with its title and end, or one layer of the main path without a title.
    """
    listed = []
    for block in architecture.blocks:
        parts = []
        for name in block.layers:
            for branch in block.branches:
                shown = [layers[layer] for layer in branch.layers if layer in layers]
                if branch.end == name and shown:
                    parts.append({"title": BRANCHES[branch.kind], "end": name, "layers": shown})
            if name in layers:
                parts.append({"title": "", "end": name, "layers": [layers[name]]})
        if parts:
            kinds = [layer.node.kind for layer in architecture.select(block.layers)]
            listed.append({"name": block.name, "title": name_block(block, kinds), "parts": parts})
    return listed


def _describe_shape(layer: LayerInfo, values: LayerOutputs, n: int) -> str:
    """Describes the output for image `n`, with the number of inactive channels."""
    if not isinstance(values, FeatureMapOutputs):
        units = layer.shape[0]
        return f"{units} unit" if units == 1 else f"{units} units"
    height, width, channels = layer.shape
    text = f"{channels} channel" if channels == 1 else f"{channels} channels"
    text += f" of {sizes((height, width))}"
    inactive = int(values.is_inactive[n].sum())
    return f"{text}, {inactive} inactive" if inactive else text


def _draw_layers(
    provenance: Provenance,
    network: Network,
    examples: Sequence[ReportExample],
    layers: Mapping[str, LayerOutputs],
    sheet_format: str,
) -> list[Drawing]:
    """Draws every layer for all examples, in order; a layer with a single unit has no picture."""
    drawings = []
    for layer in network.layers:
        values = layers[layer.name]
        for n, example in enumerate(examples):
            origin = provenance.describe_example(example, layer=layer.name)
            stem = "".join(letter if letter.isalnum() else "-" for letter in layer.name)
            text = f"{layer.name}: {_describe_shape(layer, values, n)}"
            if isinstance(values, FeatureMapOutputs):
                pixels = draw_channel_sheet(
                    values.tiles[n], values.is_inactive[n], choose_scaling(layer.shape, sheet_format)
                )
                kind = choose_encoding(layer.shape, sheet_format)
                drawings.append(Drawing(pixels, stem, f"{text}; {example.name}", origin, kind, SEQUENTIAL))
            elif layer.shape[0] > 1:
                units = values.values[n]
                text += f" from {units.min():.3g} to {units.max():.3g}"
                drawings.append(
                    Drawing(draw_vector(standardize_vector(units)), stem, f"{text}; {example.name}", origin)
                )
    return drawings


def _name_outputs(
    network: Network, layers: Mapping[str, LayerOutputs], n: int, classes: Sequence[str]
) -> dict[str, Any] | None:
    """Returns the outputs of the model for image `n` by class.

    Returns:
        Kind of the values, `logit` or `probability`, and a name and value per class; None if there are more
        than `LISTED_UNITS` classes. A single unit is that of the second class, and has a value for either.
    """
    outputs = layers[network.layers[-1].name]
    if isinstance(outputs, FeatureMapOutputs) or len(classes) > LISTED_UNITS:
        return None
    values = outputs.values[n].tolist()
    if network.has_one_unit:
        (value,) = values
        values = [-value if network.head == "logits" else 1 - value, value]
    kind = "logit" if network.head == "logits" else "probability"
    return {"kind": kind, "values": list(zip(classes, values, strict=True))}


def _describe_layer(
    layer: LayerInfo, values: LayerOutputs, count: int, pictures: Iterator[Picture], sheet_format: str
) -> dict[str, Any]:
    """Describes a layer on the page, with its output for each of the first `count` images."""
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "outputs": [_describe_output(layer, values, n, pictures, sheet_format) for n in range(count)],
    }


def _describe_output(
    layer: LayerInfo, values: LayerOutputs, n: int, pictures: Iterator[Picture], sheet_format: str
) -> dict[str, Any]:
    """Describes a layer's output for image `n`: its picture, and the values next to it."""
    description: dict[str, Any] = {
        "shape": _describe_shape(layer, values, n),
        "picture": None,
        "values": None,
        "sheet": None,
    }
    if isinstance(values, FeatureMapOutputs):
        layout = compute_layout(*layer.shape, choose_scaling(layer.shape, sheet_format))
        description["picture"] = next(pictures)
        description["sheet"] = layout.build_page_data(values.mean_activation[n], values.is_inactive[n])
        return description
    units = layer.shape[0]
    if units > 1:
        description["picture"] = next(pictures)
    if units <= LISTED_UNITS:
        description["values"] = values.values[n].tolist()
    return description
