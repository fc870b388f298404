"""Finds out from TensorFlow's registry of kernels whether operations can run on a GPU."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.op_def_pb2 import OpDef
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels, op_def_registry

Types = tuple[tuple[str, tuple[str, ...]], ...]  # names of types by attribute, sorted

# TensorFlow lowers these to operations that take the types of the values passing through.
LOOPS = ("While", "StatelessWhile")
BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
LOWERED = {
    **dict.fromkeys(LOOPS, ("Enter", "Merge", "Switch", "NextIteration", "Exit")),
    **dict.fromkeys(BRANCHES, ("Switch", "Merge")),
}
# Operations that run on the host on purpose. Functions of data sets are not looked into.
HOST_OPERATIONS = {
    "Placeholder": "the argument of a function, without computation",
    "MultiDeviceIteratorToStringHandle": "names an iterator, once per epoch",
    "Timestamp": "reads the clock of the host, a scalar",
}
DATASET = re.compile(r"Dataset(V\d+)?$")  # data sets run on the host


@dataclass(frozen=True)
class Operation:
    """An operation that is executed.

    Attributes:
        name: Name of the operation, such as `Split`.
        types: Types of its attributes.
        device: Device that it is assigned to; empty for TensorFlow's choice.
        is_compiled: Whether XLA compiles it.
        place: Function and node it was found in.
    """

    name: str
    types: Types
    device: str
    is_compiled: bool
    place: str

    def __str__(self) -> str:
        types = ", ".join(f"{key}={'/'.join(values)}" for key, values in self.types)
        compiled = " in XLA" if self.is_compiled else ""
        return f"{self.name}({types}){compiled} in {self.place}"


def resolve_types(name: str, inputs: Sequence[Any], attributes: Sequence[Any]) -> Types:
    """Returns the types of an eager operation from its attributes, or else from its inputs.

    Args:
        name: Name of the operation.
        inputs: Its input tensors.
        attributes: Names and values of its attributes in turn.
    """
    definition = op_def_registry.get(name)
    if definition is None:
        return ()
    given = dict(zip(attributes[::2], attributes[1::2], strict=True))
    types = _infer_types(definition, inputs, given)
    for attribute in definition.attr:
        value = given.get(attribute.name)
        if value is None and attribute.name not in types and attribute.HasField("default_value"):
            value = attribute.default_value.type
        if value is not None and attribute.type == "type":
            types[attribute.name] = (tf.as_dtype(value).name,)
        elif value is not None and attribute.type == "list(type)":
            types[attribute.name] = tuple(tf.as_dtype(item).name for item in value)
    return tuple(sorted(types.items()))


def _infer_types(
    definition: OpDef, inputs: Sequence[Any], given: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Returns the types of the attributes that inputs determine."""
    names = [tf.as_dtype(value.dtype).name for value in tf.nest.flatten(list(inputs))]
    types: dict[str, tuple[str, ...]] = {}
    for argument in definition.input_arg:
        count = 1
        if argument.number_attr or argument.type_list_attr:  # the one argument that takes several tensors
            count = int(given.get(argument.number_attr, len(names) - len(definition.input_arg) + 1))
        if argument.type_attr:
            types[argument.type_attr] = tuple(names[:1])
        elif argument.type_list_attr:
            types[argument.type_list_attr] = tuple(names[:count])
        names = names[count:]
    return types


def list_function_operations(name: str, device: str, is_compiled: bool = False) -> set[Operation]:
    """Returns the operations of a function, and of the functions that it calls."""
    definition = context.context().get_function_def(name)
    is_compiled = is_compiled or definition.attr["_XlaMustCompile"].b
    operations = set()
    for node in definition.node_def:
        node_device = node.device or device
        place = f"{definition.signature.name}/{node.name}"
        operations.add(Operation(node.op, _read_types(node), node_device, is_compiled, place))
        if DATASET.search(node.op):
            continue
        node_compiled = is_compiled or node.attr["_XlaMustCompile"].b
        for function in _list_called_functions(node):
            operations |= list_function_operations(function, node_device, node_compiled)
    return operations


def _read_types(node: NodeDef) -> Types:
    types = {}
    for name, value in node.attr.items():
        kind = value.WhichOneof("value")
        if kind == "type":
            types[name] = (tf.as_dtype(value.type).name,)
        elif kind == "list" and value.list.type:
            types[name] = tuple(tf.as_dtype(item).name for item in value.list.type)
    return tuple(sorted(types.items()))


def _list_called_functions(node: NodeDef) -> list[str]:
    names = []
    for value in node.attr.values():
        if value.HasField("func"):
            names.append(value.func.name)
        names += [function.name for function in value.list.func]
    return names


class KernelRegistry:
    """The kernels that this build of TensorFlow registers for GPUs and for XLA on GPUs."""

    def __init__(self) -> None:
        self._kernels: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for kernel in kernels.get_all_registered_kernels().kernel:
            self._kernels[kernel.op, kernel.device_type].append(kernel)

    def describe_missing(self, operations: Iterable[Operation]) -> list[str]:
        """Returns a line for each kind of operation that has no kernel on its device."""
        missing: dict[tuple[str, Types, bool], str] = {}
        for operation in operations:
            if operation.device.endswith("CPU:0") or _is_on_host(operation.name):
                continue
            for name, types in _lower(operation):
                if not self._has_kernel(name, types, operation.is_compiled):
                    missing[name, types, operation.is_compiled] = str(operation)
        return sorted(missing.values())

    def _has_kernel(self, name: str, types: Types, is_compiled: bool) -> bool:
        if is_compiled:
            return any(_matches(kernel, dict(types)) for kernel in self._kernels[name, "XLA_GPU_JIT"])
        # Kernels for any device are used where none for the GPU takes these types.
        candidates = self._kernels[name, "GPU"] + self._kernels[name, "DEFAULT"]
        return any(_matches(kernel, dict(types)) for kernel in candidates)


def _is_on_host(name: str) -> bool:
    return name in HOST_OPERATIONS or DATASET.search(name) is not None


def _lower(operation: Operation) -> list[tuple[str, Types]]:
    if operation.is_compiled or operation.name not in LOWERED:
        return [(operation.name, operation.types)]
    names = {name for values in dict(operation.types).values() for name in values}
    return [(name, (("T", (kind,)),)) for name in LOWERED[operation.name] for kind in sorted(names)]


def _matches(kernel: Any, types: Mapping[str, tuple[str, ...]]) -> bool:
    """Tells whether a kernel takes the types."""
    if kernel.label:
        return False
    for constraint in kernel.constraint:
        allowed = {tf.as_dtype(item).name for item in constraint.allowed_values.list.type}
        if not allowed.issuperset(types.get(constraint.name, ())):
            return False
    return True
