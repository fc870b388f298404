"""The graph of a network's operations: which operation receives the output of which."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import keras

from service.inference.graph import replay_graph
from service.report.analysis.network import Network, make_unique

IMAGE = ""  # name of the image as a source of the graph


@dataclass(frozen=True)
class Node:
    """One operation of a network, in the graph of all.

    Attributes:
        name: Path of the operation, as in `LayerInfo.name`.
        kind: Class name, such as `Conv2D`.
        sources: Names of the operations whose outputs it receives, `IMAGE` for the image, in the order of the
            arguments.
        input_shapes: Shape of each of these outputs for one image, without the batch.
        shape: Shape of the output for one image, without the batch.
        dtype: Type of the output, such as `float32`.
        operation: The Keras layer or operation.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtype: str
    operation: Any = field(compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class _Value:
    """Stands for a tensor while the graph is replayed: it only knows where it comes from."""

    source: str
    shape: tuple[int, ...]


def count_positions(shape: tuple[int, ...]) -> int:
    """Counts the positions of an output: `H * W` of `(H, W, C)`, `T` of `(T, C)`, 1 of a vector."""
    return math.prod(shape[:-1])


def trace_graph(network: Network) -> tuple[Node, ...]:
    """Traces how the operations of a network are connected, without running any of them.

    The graph is replayed with stand-ins for tensors. Tensors themselves do not tell: an operation such as
    dropout returns the very tensor that it receives, and so would hide a shortcut around it.

    Args:
        network: The network under analysis.

    Returns:
        The operations in the order in which they run, those of nested models in their place.
    """
    nodes: dict[str, Node] = {}
    tensors = network.symbolic_trace.outputs

    def connect(path: str, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = make_unique(path, nodes)
        values = [value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, _Value)]
        outputs = keras.tree.flatten(tensors[name])
        nodes[name] = Node(
            name=name,
            kind=type(operation).__name__,
            sources=tuple(value.source for value in values),
            input_shapes=tuple(value.shape for value in values),
            shape=tuple(outputs[0].shape[1:]),
            dtype=keras.backend.standardize_dtype(outputs[0].dtype),
            operation=operation,
        )
        return keras.tree.map_structure(lambda tensor: _Value(name, tuple(tensor.shape[1:])), tensors[name])

    replay_graph(network.model, _Value(IMAGE, network.shape), connect)
    return tuple(nodes.values())
