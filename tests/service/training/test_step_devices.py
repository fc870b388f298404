"""What of the step a GPU has to wait for, by the graph alone: TensorFlow has kernels for int32 only in RAM, whatever the device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tensorflow as tf
from step_samples import iterator, linear_steps, some_batches

# counting the updates and the batches of one: numbers that nothing on a device goes into
LOOP = {
    "Const",
    "Identity",
    "Cast",
    "AddV2",
    "Sub",
    "FloorDiv",
    "FloorMod",
    "Maximum",
    "Less",
    "NotEqual",
    "Range",
}


def nodes(graph: tf.Graph) -> Iterator[tf.compat.v1.NodeDef]:
    """What runs in the loop over the updates, apart from what XLA compiles."""
    functions = {function.signature.name: function for function in graph.as_graph_def().library.function}

    def of(name: str) -> Iterator[tf.compat.v1.NodeDef]:
        for node in functions[name].node_def:
            yield node
            for attribute in list(node.attr.values()):
                inner = functions.get(attribute.func.name)
                if inner is not None and "_XlaMustCompile" not in inner.attr:
                    yield from of(attribute.func.name)

    for node in graph.as_graph_def().node:
        if node.op in ("While", "StatelessWhile"):
            yield from of(node.attr["cond"].func.name)
            yield from of(node.attr["body"].func.name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_compiled_step_computes_no_whole_numbers_in_ram(accumulate: int) -> None:
    _, steps = linear_steps(0.1, xla=True, accumulate=accumulate)
    steps.train(iterator(some_batches(2 * accumulate)), 0, 2, accumulate)
    numbers = (tf.constant(0, tf.int64), tf.constant(2), tf.constant(accumulate))
    graph = steps._train.get_concrete_function(iterator(some_batches(2)), *numbers).graph
    assert steps.traces == 1  # it is the graph that has just run
    found = list(nodes(graph))
    called = " ".join(node.attr["f"].func.name for node in found if node.op.endswith("PartitionedCall"))
    assert all(
        name in called for name in ("_gradients", "_reduced", "_learn")
    )  # compiled, and so not looked into
    (compared,) = {node.attr["T"].type for node in found if node.op == "Less"}
    assert compared == tf.int32.as_datatype_enum  # on a GPU the end of the loop would be found out there
    whole = [
        node
        for node in found
        if any(a.type == tf.int32.as_datatype_enum for key, a in node.attr.items() if key in ("T", "dtype"))
    ]
    assert {node.op for node in whole} - LOOP == set()


def test_the_time_waited_is_the_host_s() -> None:
    _, steps = linear_steps(0.1, xla=True)
    graph = steps._train.get_concrete_function(
        iterator(some_batches(2)), tf.constant(0, tf.int64), tf.constant(2), tf.constant(1)
    ).graph
    double = tf.float64.as_datatype_enum
    sums = [node for node in nodes(graph) if node.op in ("AddV2", "Sub") and node.attr["T"].type == double]
    assert len(sums) == 2
    assert all("CPU:0" in node.device for node in sums)
