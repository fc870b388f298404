"""Trains tiny runs and lists the operations that have no kernel for a GPU: run as a program.

Usage: `kernel_script.py REPLICAS FOLDER [SCENARIO...]`, with a build of TensorFlow for CUDA on `PYTHONPATH`.

It needs no GPU: the kernels of a GPU are registered when the library is loaded. Logical CPU devices stand for
the GPUs, one for each replica, and CPU:0 stays the host. Prints a JSON object: for each scenario the number
of operations, the devices that they are assigned to, and a line for each kind of operation without a kernel.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import layers
from kernel_registry import KernelRegistry, Operation, list_function_operations, resolve_types
from tensorflow.python.eager import context as eager_context
from tensorflow.python.framework import op_callbacks
from training_samples import config_for, create_run, noise_shards

from pipelines.input.cache import CacheBudget
from service.config import load_run_config
from service.devices import LOGICAL_DEVICES, configure_devices
from service.inference.evaluate import evaluate
from service.inference.options import PredictOptions
from service.inference.predict import predict
from service.models import MODELS, Task
from service.models.layers import add_head
from service.training import loop
from service.training.strategy import choose_strategy

HOST = "CPU:0"
ROOT = Path(__file__).resolve().parents[3]
PROJECT_FOLDERS = (f"{ROOT}/pipelines/", f"{ROOT}/service/", f"{ROOT}/tests/")
GLOBAL_BATCH = 8
CLASSES = 7  # more than five, so that top-5 accuracy is computed
ROWS = 27
SIZE = {"image_size": [12, 12]}
IMAGE_BYTES = 12 * 12 * 3
# RAM with which half of the rows fit on each of two devices, and all of them on none
SHARDED_RAM = 3 * ROWS * IMAGE_BYTES
EVERY_AUGMENTATION = {
    "rotation": 20,
    "shift": 0.1,
    "shear": 0.1,
    "zoom": 0.1,
    "flip": True,
    "flip_vertical": True,
    "crop": [0.5, 1.0],
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 10.0,
    "erase": 0.5,
    "mixup": 0.4,
    "cutmix": 0.4,
}
EVERYTHING = {
    "augment": EVERY_AUGMENTATION,
    "accumulate": 2,
    "ema": 0.9,
    "precise_batch_norm": 16,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "on_nan": "skip",
    "optimizer": {"name": "adamw", "clip_norm": 1.0, "weight_decay": 0.01},
}


def list_scenarios(replicas: int) -> dict[str, dict[str, Any]]:
    """Returns the changes of the configuration for each scenario."""
    on_device = SIZE | {"cache": "device"}
    everything = EVERYTHING | {"data": on_device}
    plain = {"augment": None, "data": on_device}
    dali = SIZE | {"cache": "none", "backend": "dali"}
    scenarios: dict[str, dict[str, Any]] = {
        "everything, float32, xla=on": everything | {"xla": "on"},
        "everything, float32, xla=off": everything | {"xla": "off"},
        "everything, float16, xla=on": everything | {"xla": "on", "precision": "mixed_float16"},
        "everything, float16, xla=off": everything | {"xla": "off", "precision": "mixed_float16"},
        "everything, bfloat16, xla=off": everything | {"xla": "off", "precision": "mixed_bfloat16"},
        "plain, xla=off": plain | {"xla": "off"},
        "cache in RAM, xla=on": {"xla": "on", "data": SIZE | {"cache": "host"}},
        "DALI, xla=on": EVERYTHING | {"xla": "on", "data": dali},
        "frozen layers, xla=off": plain | {"xla": "off", "freeze": ["hidden"]},
    }
    for name in ("sgd", "rmsprop", "adam", "lamb", "lion"):
        optimizer = {"name": name}
        scenarios[f"{name}, xla=off"] = plain | {"xla": "off", "model": "tiny_linear", "optimizer": optimizer}
    if replicas > 1:
        sharded = plain | {"xla": "off", "model": "tiny_linear", "ram": SHARDED_RAM}
        scenarios["sharded cache, xla=off"] = sharded
        scenarios["synchronized batch norm"] = plain | {"xla": "off", "batch_norm": "synchronized"}
    return scenarios


def build_typical(task: Task) -> keras.Model:
    """Builds a model of the usual layers."""
    image = keras.Input(task.shape)
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="hidden")(x)
    x = layers.BatchNormalization()(x)
    x = layers.MaxPooling2D()(x)
    x = layers.SeparableConv2D(4, 3, activation="relu")(x)
    x = layers.Dropout(0.3)(x)
    x = layers.Flatten()(x)
    return keras.Model(image, add_head(x, task.classes))


def build_linear(task: Task) -> keras.Model:
    """Builds a model without a hidden layer, which is traced quickly."""
    image = keras.Input(task.shape)
    return keras.Model(image, add_head(layers.Flatten()(layers.Rescaling(1 / 255)(image)), task.classes))


class Recorder:
    """Records operations that TensorFlow executes eagerly, and the functions that it calls."""

    def __init__(self) -> None:
        self.operations: set[Operation] = set()
        self._functions: set[tuple[str, str]] = set()

    def __call__(
        self, name: str | bytes, inputs: Any, attributes: Any, outputs: Any, *_: Any, **graph: Any
    ) -> None:
        """Records an operation; the signature is that of TensorFlow's callbacks."""
        context = eager_context.context()
        if graph.get("graph") is not None or not context.executing_eagerly():
            return  # part of a function, which is recorded when it is called
        if isinstance(name, bytes):
            name = name.decode()
        device = context.device_name or ""
        if context.has_function(name):
            if (name, device) not in self._functions:  # now: functions end with the object that calls them
                self._functions.add((name, device))
                self.operations |= list_function_operations(name, device)
            return
        types = resolve_types(name, inputs, attributes or ())
        operation = Operation(name, types, device, is_compiled=False, place=_find_caller())
        self.operations.add(operation)


def _find_caller() -> str:
    """Returns file and line of the project that the current operation comes from."""
    frame = sys._getframe(2)
    while frame.f_back and not frame.f_code.co_filename.startswith(PROJECT_FOLDERS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@contextmanager
def record_operations() -> Iterator[Recorder]:
    """Records what is executed within a block, in this thread and in those that start in it."""
    recorder = Recorder()
    run = threading.Thread.run

    def run_recorded(thread: threading.Thread) -> None:
        op_callbacks.add_op_callback(recorder)
        run(thread)

    threading.Thread.run = run_recorded  # type: ignore[method-assign]
    op_callbacks.add_op_callback(recorder)
    try:
        yield recorder
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
        op_callbacks.remove_op_callback(recorder)


def use_fake_gpus(replicas: int) -> None:
    """Splits the CPU into the host and a device for each replica, and hides the host from the strategy."""
    os.environ[LOGICAL_DEVICES] = str(replicas + 1)
    configure_devices()
    list_devices: Callable[..., list[Any]] = tf.config.list_logical_devices

    def list_replica_devices(kind: str | None = None) -> list[Any]:
        return [device for device in list_devices(kind) if not device.name.endswith(HOST)]

    tf.config.list_logical_devices = list_replica_devices


def train(folder: Path, shards: Path, changes: Mapping[str, Any]) -> None:
    """Trains a tiny run for an epoch."""
    settings = {"model": "tiny_typical", "epochs": 1, "global_batch": GLOBAL_BATCH} | changes
    ram = settings.pop("ram", None)
    loop.CacheBudget = partial(CacheBudget, ram=ram)
    run = create_run(folder, config_for(shards, **settings))
    loop.fit(load_run_config(run), run)


def predict_and_evaluate(run: Path, shards: Path) -> None:
    """Evaluates the model of a run, and predicts with test-time augmentation."""
    with tf.device("CPU:1"):
        evaluate(run, shards)
        predict(run, str(shards), run / "predictions.csv", options=PredictOptions(tta="flip"))


def run_planted_operations(recorder: Recorder) -> None:
    """Runs what has no kernel on a GPU, to show that it is found."""
    with tf.device("CPU:1"):
        for dtype in (tf.uint8, tf.int64):
            tf.split(tf.zeros([4], dtype), 2)
        split_in_branch(tf.zeros([4], tf.int8))
        compiled = tf.function(tf.io.decode_jpeg, jit_compile=True)
        name = compiled.get_concrete_function(tf.TensorSpec([], tf.string)).name
        recorder.operations |= list_function_operations(name, "CPU:1")  # XLA cannot compile it anywhere


@tf.function
def split_in_branch(value: tf.Tensor) -> tf.Tensor:
    if tf.reduce_sum(value) > 0:
        return tf.split(value, 2)[1]
    return value[:2]


def main(replicas: int, folder: Path, selected: list[str]) -> None:
    """Runs the scenarios and prints what is missing."""
    MODELS.register("tiny_typical")(build_typical)
    MODELS.register("tiny_linear")(build_linear)
    use_fake_gpus(replicas)
    strategy = choose_strategy(GLOBAL_BATCH)
    # One strategy for all runs: the collectives of two in one process get mixed up.
    loop.choose_strategy = lambda *arguments: strategy
    shards = noise_shards(folder / "shards", ROWS, classes=CLASSES)

    works: dict[str, Callable[[Recorder], Any]] = {"planted": run_planted_operations}
    for index, (name, changes) in enumerate(list_scenarios(replicas).items()):
        works[name] = lambda _, index=index, changes=changes: train(folder / f"run{index}", shards, changes)
    works["predict and evaluate"] = lambda _: predict_and_evaluate(folder / "run0", shards)

    report = {}
    for name, work in works.items():
        if selected and name not in selected:
            continue
        # The default device of a process with a GPU is the GPU; with a strategy each replica has its own.
        scope = tf.device("CPU:1") if replicas == 1 else nullcontext()
        with scope, record_operations() as recorder:
            work(recorder)
        registry = KernelRegistry()  # now: the kernels of XLA are registered when it first compiles
        report[name] = {
            "operations": len(recorder.operations),
            "devices": sorted({operation.device for operation in recorder.operations}),
            "missing": registry.describe_missing(recorder.operations),
        }
        keras.backend.clear_session()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
