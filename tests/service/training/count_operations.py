"""Counts what TensorFlow launches for an update on the replicas of `GLASSBOX_LOGICAL_DEVICES`: [resnet50].

Prints a JSON object for each recipe: the number of operations outside of XLA in the loop over the updates, of
XLA programs, and of sums over the replicas.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.augment.draw import draw, signature
from pipelines.spec import AugmentSpec, DataSpec
from service.devices import configure_devices
from service.models.layers import add_head, build_logits_model
from service.training.step import StepOptions, Steps
from service.training.strategy import choose_strategy

GLOBAL_BATCH = 8
DATA = DataSpec(image_size=(32, 32), channels=3)
# Operations that launch nothing: they name a value or order others.
FREE = {"Const", "Identity", "IdentityN", "NoOp", "Placeholder", "_Arg", "_Retval"}
CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "augment": AugmentSpec(rotation=20, brightness=0.2, mixup=0.2),
        "clip_norm": 1.0,
        "ema_decay": 0.9,
        "scale_loss": True,
    },
}


def build_network(name: str) -> keras.Model:
    if name == "resnet50":
        base = keras.applications.ResNet50(
            weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg"
        )
        return build_logits_model(keras.Model(base.input, add_head(base.output, 10)))
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return build_logits_model(keras.Model(image, add_head(keras.layers.Dropout(0.5)(x), 10)))


def make_dataset(augment: AugmentSpec | None, batch: int) -> tf.data.Dataset:
    rows = np.arange(batch, dtype=np.int64)
    values = {
        "image": np.zeros((batch, 32, 32, 3), np.uint8),
        "label": np.zeros(batch, np.int32),
        "weight": np.ones(batch, np.float32),
        "row": rows,
    }
    if augment:
        values |= draw(augment, 1, 0, rows, DATA)
        assert set(signature(augment, DATA)) <= set(values)
    return tf.data.Dataset.from_tensors(values).repeat()


def trace_updates(network_name: str, recipe: dict[str, Any]) -> tf.Graph:
    """Traces the loop over the updates of a training."""
    strategy = choose_strategy(GLOBAL_BATCH)
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        network = build_network(network_name)
        steps = Steps(
            network,
            keras.optimizers.SGD(0.1, momentum=0.9),
            network.trainable_variables,
            np.float32([0.1]),
            strategy,
            StepOptions(xla=True, **recipe),
        )

    def make_batches(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        return make_dataset(recipe.get("augment"), GLOBAL_BATCH // replicas)

    dataset = make_batches() if replicas == 1 else strategy.distribute_datasets_from_function(make_batches)
    numbers = tf.constant(0, tf.int64), tf.constant(2), tf.constant(1)
    return steps._run_updates.get_concrete_function(iter(dataset), *numbers).graph


def count_operations(graph: tf.Graph) -> Counter[str]:
    """Counts the operations of one update, by their kind; `XLA` is a call of a compiled program."""
    definition = graph.as_graph_def()
    functions = {function.signature.name: function for function in definition.library.function}
    (loop,) = (node for node in definition.node if node.op in ("While", "StatelessWhile"))

    def walk(nodes: Iterable[Any]) -> Iterator[str]:
        for node in nodes:
            if node.op in CALLS:
                function = functions[node.attr["f"].func.name]
                if node.attr["_XlaMustCompile"].b or function.attr["_XlaMustCompile"].b:
                    yield "XLA"
                else:
                    yield from walk(function.node_def)
                continue
            if node.op not in FREE:
                yield node.op
            for branch in ("then_branch", "else_branch"):
                if branch in node.attr:
                    yield from walk(functions[node.attr[branch].func.name].node_def)

    return Counter(walk(functions[loop.attr["body"].func.name].node_def))


def main(network: str) -> None:
    configure_devices()
    for name, recipe in RECIPES.items():
        counts = count_operations(trace_updates(network, recipe))
        xla = counts.pop("XLA")
        summary = {"operations": counts.total(), "programs": xla, "sums": counts["CollectiveReduceV2"]}
        print(json.dumps({"recipe": name, **summary, "kinds": counts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "small")
