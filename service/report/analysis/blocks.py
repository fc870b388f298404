"""Blocks of a network: its layers in the groups that its author thought of, and side branches within them.

They are found from the graph (what runs in parallel belongs together), from names such as
`block2a_expand_conv`, and, for layers with generated names, from where feature maps shrink.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from service.report.analysis.network import ATTENTION_KINDS
from service.report.analysis.operation_graph import IMAGE, Node, count_positions

# Layers that prepare the pixels.
PREPROCESSING_KINDS = {"InputLayer", "Rescaling", "Normalization", "Resizing", "CenterCrop"}
# Layers with weights that belong to the layer before them: they only adjust what it computed.
NORMALIZATION_KINDS = {
    "BatchNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "UnitNormalization",
    "RMSNormalization",
}
ADJUSTING_KINDS = NORMALIZATION_KINDS | {"EinsumDense", "Embedding", "LayerScale", "PReLU"}
# Operations that turn feature maps into one vector.
SUMMARY_KINDS = {"Flatten", "Reshape", "Mean", "Max", "GetItem"}
# The most layers of a nested model that is one block, such as a downsampling of ConvNeXt, and no backbone.
LARGEST_NESTED_BLOCK = 8

Tokens = tuple[str, ...]


@dataclass(frozen=True)
class SideBranch:
    """Layers beside the main path of a block.

    Attributes:
        kind: `shortcut`, `gate` (squeeze-and-excitation and the like) or `branch`.
        layers: Names of the layers in the order in which they run; none in a shortcut that passes on its
            input.
        end: Name of the layer of the main path that it joins.
    """

    kind: str
    layers: Tokens
    end: str


@dataclass(frozen=True)
class Block:
    """Consecutive layers of a network.

    Attributes:
        name: What the names of its layers have in common, or the name of its first layer.
        kind: `input`, `patches`, `convolution`, `residual`, `transformer`, `parallel`, `dense`, `other` or
            `head`.
        layers: Names of the layers of the main path, in order.
        branches: The branches beside it, in the order in which they join it.
    """

    name: str
    kind: str
    layers: Tokens
    branches: tuple[SideBranch, ...] = ()

    @property
    def all_layers(self) -> Tokens:
        """Names of all layers: every branch stands before the layer that it joins."""
        names: list[str] = []
        for layer in self.layers:
            for branch in self.branches:
                if branch.end == layer:
                    names.extend(branch.layers)
            names.append(layer)
        return tuple(names)


@dataclass(frozen=True)
class _Key:
    """The part of a layer's name that it shares with its block.

    Attributes:
        tokens: Words of the name up to the last number, or all but the last.
        is_numbered: Whether the last of them has a number.
    """

    tokens: Tokens
    is_numbered: bool

    def is_related(self, other: _Key) -> bool:
        """Whether one of the two is the beginning of the other."""
        length = min(len(self.tokens), len(other.tokens))
        return self.is_numbered == other.is_numbered and self.tokens[:length] == other.tokens[:length]


@dataclass
class _Unit:
    """Operations between two points that everything passes through, the second point included."""

    nodes: list[Node]
    key: _Key | None = None
    nested: str = ""

    @property
    def is_parallel(self) -> bool:
        return len(self.nodes) > 1

    @property
    def last(self) -> Node:
        return self.nodes[-1]

    @property
    def is_light(self) -> bool:
        """Whether it only adjusts what the layer before it computed: no weights, normalization, or a gate."""
        if self.is_parallel:
            return _is_gate(self.last)
        return not _has_weights(self.last) or self.last.kind in ADJUSTING_KINDS


@dataclass
class _Group:
    """Units that become a block."""

    units: list[_Unit] = field(default_factory=list)
    key: _Key | None = None

    @property
    def nodes(self) -> list[Node]:
        return [node for unit in self.units for node in unit.nodes]


def find_blocks(nodes: Sequence[Node]) -> tuple[Block, ...]:
    """Finds the blocks of a network.

    Args:
        nodes: The operations in the order in which they run, see `trace_graph`.

    Returns:
        Blocks that hold every operation once, in order.
    """
    units = _find_units(nodes)
    _name_units(units)
    head = _find_head(units)
    preprocessing = _count_preprocessing(units[:head])
    groups = []
    if preprocessing:
        groups.append(_build_block(units[:preprocessing], "input"))
    groups.extend(_build_block(group.units) for group in _group(units[preprocessing:head]))
    if units[head:]:
        groups.append(_build_block(units[head:], "head"))
    return tuple(groups)


def _find_units(nodes: Sequence[Node]) -> list[_Unit]:
    """Divides the operations at those that no path around them exists for."""
    positions = {IMAGE: -1} | {node.name: index for index, node in enumerate(nodes)}
    last_use = dict.fromkeys(positions.values(), -1)
    for index, node in enumerate(nodes):
        for source in node.sources:
            last_use[positions[source]] = index
    units: list[_Unit] = []
    pending: list[Node] = []
    reach = last_use[-1]  # the last operation that uses an output from before this one
    for index, node in enumerate(nodes):
        pending.append(node)
        if reach <= index:
            units.append(_Unit(pending))
            pending = []
        reach = max(reach, last_use[index])
    if pending:  # operations whose output nothing uses
        units.append(_Unit(pending))
    return _attach_padding(units)


def _attach_padding(units: list[_Unit]) -> list[_Unit]:
    """Joins padding with the convolution or pooling that it is for."""
    joined: list[_Unit] = []
    padding: list[Node] = []
    for unit in units:
        if len(unit.nodes) == 1 and unit.last.kind == "ZeroPadding2D":
            padding.extend(unit.nodes)
        else:
            joined.append(_Unit([*padding, *unit.nodes]))
            padding = []
    return [*joined, _Unit(padding)] if padding else joined


def _name_units(units: Sequence[_Unit]) -> None:
    """Finds out which units belong together by their names."""
    sizes: dict[str, int] = {}
    for unit in units:
        for node in unit.nodes:
            sizes[_parent(node)] = sizes.get(_parent(node), 0) + 1
    for unit in units:
        parent = _parent(unit.last)
        unit.nested = parent if sizes[parent] <= LARGEST_NESTED_BLOCK else ""
        unit.key = _find_common_key(unit.nodes)
    for unit, following in pairwise(units):
        # `conv_1` before `conv_1_norm`: the name of the first is the key of both.
        if following.key is not None and _split_name(unit.nodes[0]) == following.key.tokens:
            unit.key = following.key
    keyed = [unit for unit in units if unit.key is not None]
    lonely = [unit for unit in keyed if not unit.is_parallel]
    for before, after in pairwise(keyed):
        if before.key is not None and after.key is not None and before.key.is_related(after.key):
            lonely = [unit for unit in lonely if unit is not before and unit is not after]
    for unit in lonely:
        unit.key = None


def _parent(node: Node) -> str:
    return node.name.rpartition("/")[0]


def _split_name(node: Node) -> Tokens:
    return tuple(node.name.rpartition("/")[2].partition(":")[0].split("_"))


def _find_key(node: Node) -> _Key | None:
    """Returns the key in a layer's name; None if Keras generated the name or it is a single word."""
    tokens = _split_name(node)
    words = tokens[:-1] if tokens[-1].isdigit() else tokens
    if "".join(words) == node.kind.lower():
        return None
    numbered = [index for index, token in enumerate(tokens[:-1]) if any(map(str.isdigit, token))]
    if numbered:
        return _Key(tokens[: numbered[-1] + 1], is_numbered=True)
    return _Key(words[:-1], is_numbered=False) if len(words) > 1 else None


def _find_common_key(nodes: Iterable[Node]) -> _Key | None:
    """Returns what the keys of parallel operations have in common."""
    keys = [key for key in map(_find_key, nodes) if key is not None]
    numbered = [key for key in keys if key.is_numbered]
    keys = numbered or keys
    if not keys:
        return None
    common = keys[0].tokens
    for key in keys[1:]:
        length = 0
        while length < min(len(common), len(key.tokens)) and common[length] == key.tokens[length]:
            length += 1
        common = common[:length]
    return _Key(common, bool(numbered)) if common else None


def _count_preprocessing(units: Sequence[_Unit]) -> int:
    """Counts the units before the first with weights, other than the statistics of `Normalization`."""
    for index, unit in enumerate(units):
        is_first = any(
            _has_weights(node) and node.kind not in PREPROCESSING_KINDS for node in unit.nodes
        ) or any(node.kind in ("ZeroPadding2D", "Flatten", "Reshape") for node in unit.nodes)
        if is_first:
            return index
    return len(units)


def _find_head(units: Sequence[_Unit]) -> int:
    """Finds the first unit of the classifier: it turns feature maps into a vector, or begins with vectors."""
    start = len(units)
    while start and count_positions(units[start - 1].last.shape) == 1:
        start -= 1
    for index in range(start, len(units)):
        kind = units[index].last.kind
        if kind.startswith("Global") or kind in SUMMARY_KINDS or len(units[index].last.shape) == 1:
            start = index
            break
    # A normalization of what the last block adds up, and its activation.
    first = start
    while first and units[first - 1].is_light and not units[first - 1].is_parallel:
        first -= 1
    if not 0 < first < start or not units[first - 1].is_parallel:
        return start
    is_normalization = units[first].last.kind in NORMALIZATION_KINDS
    is_of_block = units[first].key is not None and units[first].key == units[first - 1].key
    return first if is_normalization and not is_of_block else start


def _group(units: Sequence[_Unit]) -> list[_Group]:
    groups: list[_Group] = []
    for index, unit in enumerate(units):
        following = next((other.key for other in units[index + 1 :] if other.key is not None), None)
        if not groups or _begins_block(groups[-1], unit, following):
            groups.append(_Group(key=unit.key))
        group = groups[-1]
        group.units.append(unit)
        if group.key is not None and unit.key is not None and len(unit.key.tokens) < len(group.key.tokens):
            group.key = unit.key
    return groups


def _begins_block(group: _Group, unit: _Unit, following: _Key | None) -> bool:
    """Tells whether a unit begins a new block after a group of units."""
    if unit.nested != group.units[-1].nested:
        return True
    if unit.nested:
        return False
    if unit.key is not None:
        return group.key is None or not unit.key.is_related(group.key)
    if group.key is not None:
        is_between = following is not None and following.is_related(group.key)
        return not is_between and not unit.is_light
    if unit.is_light:
        return False
    # Without names: a block is what is in parallel, or what runs up to where feature maps shrink.
    is_after_parallel = any(other.is_parallel and not other.is_light for other in group.units)
    has_shrunk = _shrinks(group.nodes)
    has_weights = any(not other.is_light for other in group.units)
    return has_weights and (unit.is_parallel or is_after_parallel or has_shrunk or _shrinks(unit.nodes))


def _shrinks(nodes: Sequence[Node]) -> bool:
    """Tells whether the output has at most half as many positions as the input."""
    before = max(map(count_positions, nodes[0].input_shapes), default=1)
    return 2 * count_positions(nodes[-1].shape) <= before


def _build_block(units: Sequence[_Unit], kind: str = "") -> Block:
    nodes = [node for unit in units for node in unit.nodes]
    layers, branches = _find_main_path(nodes)
    keys = [unit.key for unit in units if unit.key is not None]
    name = nodes[0].name
    if units[0].nested:
        name = units[0].nested
    elif keys:
        shortest = min(keys, key=lambda key: len(key.tokens))
        parent = _parent(nodes[0])
        name = f"{parent}/{'_'.join(shortest.tokens)}" if parent else "_".join(shortest.tokens)
    return Block(name, kind or _classify(nodes, branches), layers, branches)


def _classify(nodes: Sequence[Node], branches: Sequence[SideBranch]) -> str:
    kinds = {node.kind for node in nodes}
    if kinds & ATTENTION_KINDS:
        return "transformer"
    if any(branch.kind == "branch" for branch in branches):
        return "parallel"
    if any(branch.kind == "shortcut" for branch in branches):
        return "residual"
    if len(nodes[-1].shape) == 2 and len(nodes[0].input_shapes[0]) == 3:
        return "patches"
    if any("Conv" in kind for kind in kinds):
        return "convolution"
    return "dense" if "Dense" in kinds else "other"


def _find_main_path(nodes: Sequence[Node]) -> tuple[Tokens, tuple[SideBranch, ...]]:
    """Finds the main path through a block, backwards from its end, and the branches beside it."""
    by_name = {node.name: node for node in nodes}
    depth: dict[str, int] = {}  # layers with weights on the longest path to an operation, all layers as a tie
    for node in nodes:
        longest = max((depth.get(source, 0) for source in node.sources), default=0)
        depth[node.name] = longest + (1000 if _has_weights(node) else 1)
    path = [nodes[-1]]
    while (previous := by_name.get(_choose_main_source(path[-1], depth))) is not None:
        path.append(previous)
    path.reverse()
    on_path = {node.name for node in path}
    taken = set(on_path)
    branches = []
    for node in path:
        if len(set(node.sources)) > 1:
            main = _choose_main_source(node, depth)
            for source in dict.fromkeys(node.sources):
                if source != main:
                    layers = _collect_branch(source, by_name, taken)
                    branches.append(SideBranch(_name_branch(node, source), layers, node.name))
    missing = [name for name in by_name if name not in taken]
    if missing:  # operations whose output nothing uses
        branches.append(SideBranch("branch", tuple(missing), path[-1].name))
    return tuple(node.name for node in path), tuple(branches)


def _choose_main_source(node: Node, depth: Mapping[str, int]) -> str:
    """Chooses the source on the main path: the longest one, but never the gate of a product."""
    if not node.sources:
        return IMAGE
    sources = list(zip(node.sources, node.input_shapes, strict=True))
    if _is_gate(node):
        sources = [(source, shape) for source, shape in sources if not _is_gate_shape(node, shape)]
    return max(sources, key=lambda item: depth.get(item[0], 0))[0]


def _collect_branch(source: str, by_name: Mapping[str, Node], taken: set[str]) -> Tokens:
    """Collects the operations that lead to a source and are in no other branch, in order."""
    found = set()
    pending = [source]
    while pending:
        name = pending.pop()
        if name in by_name and name not in taken:
            taken.add(name)
            found.add(name)
            pending.extend(by_name[name].sources)
    return tuple(name for name in by_name if name in found)


def _name_branch(node: Node, source: str) -> str:
    shape = node.input_shapes[node.sources.index(source)]
    if _is_gate(node) and _is_gate_shape(node, shape):
        return "gate"
    return "shortcut" if node.kind == "Add" else "branch"


def _is_gate(node: Node) -> bool:
    """Tells whether an operation multiplies a feature map by one value per channel."""
    shapes = node.input_shapes
    return (
        node.kind == "Multiply"
        and len(shapes) > 1
        and any(_is_gate_shape(node, shape) for shape in shapes)
        and not all(_is_gate_shape(node, shape) for shape in shapes)
    )


def _is_gate_shape(node: Node, shape: tuple[int, ...]) -> bool:
    return count_positions(shape) == 1 < count_positions(node.shape)


def _has_weights(node: Node) -> bool:
    return bool(getattr(node.operation, "weights", None))
