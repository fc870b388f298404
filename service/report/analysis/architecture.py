"""The architecture of a network: its blocks, and what every layer computes, holds and costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.report.analysis.blocks import Block, find_blocks
from service.report.analysis.multiply_adds import count_multiply_adds
from service.report.analysis.network import Network
from service.report.analysis.operation_graph import IMAGE, Node, count_positions, trace_graph
from service.report.analysis.receptive_field import ReceptiveField, compute_receptive_fields


@dataclass(frozen=True)
class LayerFigures:
    """Figures of one operation.

    Attributes:
        node: The operation in the graph.
        parameters: Number of weights; 0 for a further run of a layer that is listed before.
        trainable_parameters: Number of weights that training changes.
        multiply_adds: Multiply-adds for one image; None if the kind of layer is not known.
        field: Receptive field of a position; None for an output without positions, such as a vector, which
            depends on the whole image.
    """

    node: Node
    parameters: int
    trainable_parameters: int
    multiply_adds: int | None
    field: ReceptiveField | None


@dataclass(frozen=True)
class Architecture:
    """The layers of a network in blocks.

    Attributes:
        network: The network itself.
        layers: Figures of all operations by name, in the order in which they run.
        blocks: Blocks that hold every operation once.
    """

    network: Network
    layers: dict[str, LayerFigures]
    blocks: tuple[Block, ...]

    @property
    def parameters(self) -> int:
        """Number of weights of the network."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def trainable_parameters(self) -> int:
        """Number of weights that training changes."""
        return sum(layer.trainable_parameters for layer in self.layers.values())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one image, of all layers of known kind."""
        return sum(layer.multiply_adds or 0 for layer in self.layers.values())

    @property
    def unknown_layers(self) -> list[str]:
        """Names of the layers whose multiply-adds are not known."""
        return [name for name, layer in self.layers.items() if layer.multiply_adds is None]

    def select(self, names: Iterable[str]) -> list[LayerFigures]:
        """Returns the figures of some layers."""
        return [self.layers[name] for name in names]


def describe_architecture(network: Network) -> Architecture:
    """Describes the architecture of a network; nothing is run.

    Args:
        network: The network under analysis.
    """
    nodes = trace_graph(network)
    fields = _spread_fields(nodes, compute_receptive_fields(network))
    counted: set[int] = set()
    layers = {}
    for node in nodes:
        is_first = id(node.operation) not in counted
        counted.add(id(node.operation))
        layers[node.name] = LayerFigures(
            node=node,
            parameters=_count(node, "weights") if is_first else 0,
            trainable_parameters=_count(node, "trainable_weights") if is_first else 0,
            multiply_adds=count_multiply_adds(node),
            field=fields[node.name],
        )
    return Architecture(network, layers, find_blocks(nodes))


def _count(node: Node, attribute: str) -> int:
    weights = getattr(node.operation, attribute, None) or ()
    return sum(math.prod(weight.shape) for weight in weights)


def _spread_fields(
    nodes: Sequence[Node], fields: dict[str, ReceptiveField]
) -> dict[str, ReceptiveField | None]:
    """Gives operations that only pass their input on, such as dropout, the field of that input."""
    spread: dict[str, ReceptiveField | None] = {IMAGE: None}
    for node in nodes:
        field = fields.get(node.name)
        if field is None and count_positions(node.shape) > 1 and node.sources:
            field = spread[node.sources[0]]
        spread[node.name] = field
    return spread
