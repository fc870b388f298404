"""Part c: measures a training step of every registered model in every precision, with and without XLA."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from gpu_context import CheckContext, measure_seconds, synchronize
from gpu_flops import DTYPES, count_operations, measure_peak
from gpu_part import Checks
from gpu_results import ABSENT, Row

RESNET = "ResNet-50 at 224"
RESNET_GOAL = 2500.0  # images per second on an H100 or H200
RESNET_CHIPS = ("H100", "H200")
DEFAULT_IMAGES = {"image_size": (64, 64), "channels": 3}  # for models without a preset
LEARNING_RATE = 1e-4


def list_checks(context: CheckContext) -> Checks:
    """Yields the peaks, ResNet-50, then all models, the most important precision first."""
    for precision in DTYPES:
        yield f"peak, {precision}", lambda precision=precision: [_build_peak_row(context, precision)]
    if context.has_gpu or not context.smallest:
        yield RESNET, lambda: measure_resnet(context)
    names = ("linear",) if context.smallest else list_models()
    for precision in DTYPES:
        for xla in (False, True):
            for name in names:
                yield (
                    format_title(name, precision, xla),
                    lambda name=name, precision=precision, xla=xla: measure_model(
                        context, name, precision, xla
                    ),
                )


def format_title(name: str, precision: str, xla: bool) -> str:
    """Returns the name of a row."""
    return f"{name}, {precision}{', XLA' if xla else ''}"


def list_models() -> tuple[str, ...]:
    """Returns the names of all registered models."""
    from pipelines.errors import ConfigError
    from service.models import MODELS, Task, build_model

    with suppress(ConfigError):  # an unknown name imports, and so registers, all families
        build_model("", Task((1, 1, 1), 2, (0.0,), (1.0,)))
    return MODELS.names()


@lru_cache
def read_image_shapes() -> dict[str, dict[str, Any]]:
    """Returns size and channels of the images that every model of a preset is trained on."""
    from service.config import load_config, preset_names

    shapes = {}
    for name in preset_names():
        config = load_config(name, ".")
        augmented_size = config.augment.size if config.augment else None
        size = augmented_size or config.data.image_size
        shapes[config.model] = {"image_size": size, "channels": config.data.channels}
    return shapes


@lru_cache
def _get_peak(context: CheckContext, precision: str) -> float:
    return measure_peak(context, precision)


def _build_peak_row(context: CheckContext, precision: str) -> Row:
    column = context.as_column(_get_peak(context, precision) / 1e12)
    return Row("c", f"peak of a matrix product, {DTYPES[precision]}", "TFLOP/s", **column)


def measure_model(context: CheckContext, name: str, precision: str, xla: bool) -> list[Row]:
    """Measures one registered model."""
    title = format_title(name, precision, xla)
    if precision == "mixed_float16" and not (xla or context.has_gpu or context.smallest):
        note = f"{ABSENT}: TensorFlow's float16 convolutions take seconds per image on a CPU"
        return [Row("c", title, "images/s", note=note)]
    from service.models import Task, build_model

    images = read_image_shapes().get(name, DEFAULT_IMAGES)
    channels = images["channels"]
    classes = 10 if channels == 1 else 2
    task = Task((*images["image_size"], channels), classes, (127.0,) * channels, (64.0,) * channels)
    return measure_step(context, title, lambda: build_model(name, task), classes, precision, xla)


def measure_resnet(context: CheckContext) -> list[Row]:
    """Measures ResNet-50 from `keras.applications`, for 1,000 classes, in bfloat16 with XLA."""
    import keras

    from service.models.layers import add_head

    title = f"{RESNET}, mixed_bfloat16, XLA"
    goal = f">= {RESNET_GOAL:,.0f} on an H100 or H200"
    if not context.has_gpu:
        return [Row("c", title, "images/s", goal=goal, note=f"{ABSENT}: no GPU")]

    def build() -> keras.Model:
        image = keras.Input((224, 224, 3))
        scaled = keras.layers.Rescaling(1 / 255)(image)
        base = keras.applications.ResNet50(
            include_top=False, weights=None, pooling="avg", input_tensor=scaled
        )
        return keras.Model(image, add_head(base.output, 1000))

    row, *others = measure_step(context, title, build, 1000, "mixed_bfloat16", True)
    is_fast = bool(row.gpu and row.gpu >= RESNET_GOAL)
    is_goal_chip = any(chip in _read_gpu_name() for chip in RESNET_CHIPS)
    return [replace(row, goal=goal, passed=is_fast if is_goal_chip else None), *others]


def _read_gpu_name() -> str:
    import tensorflow as tf

    gpu = tf.config.list_physical_devices("GPU")[0]
    return str(tf.config.experimental.get_device_details(gpu).get("device_name", ""))


def measure_step(
    context: CheckContext, title: str, build: Callable[[], Any], classes: int, precision: str, xla: bool
) -> list[Row]:
    """Measures the project's training step on one batch on the device.

    Args:
        context: Context of the check.
        title: Name of the row.
        build: Builds the model.
        classes: Number of classes of the labels.
        precision: Name of a precision policy.
        xla: Whether the step is compiled with XLA.

    Returns:
        A row with images per second; the note contains the share of the peak and the GPU memory.
    """
    import tensorflow as tf

    batch = context.choose(256, 8, 4)
    updates = context.choose(8, 1, 1)  # per call
    steps, batches, operations = _build_steps(build, classes, batch, precision, xla)
    if context.has_gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    seconds = measure_seconds(
        lambda: steps.train(batches, 0, updates),
        context.choose(0.5, 0.5, 0.0),
        warm_up=not context.smallest,
    )
    rate = updates * batch / seconds
    loss, _, _, weight = steps.read_totals()
    share = rate * operations / _get_peak(context, precision)
    note = f"batch {batch}, {operations / 1e9:.3g} GFLOP per image, {share:.1%} of the peak"
    if context.has_gpu:
        memory = tf.config.experimental.get_memory_info("GPU:0")["peak"]
        note += f", {memory / 2**30:.2f} GiB"
    passed = bool(np.isfinite(loss)) and weight > 0
    clear_models()
    column = context.as_column(rate)
    return [Row("c", title, "images/s", **column, goal="a finite loss", passed=passed, note=note)]


def _build_steps(
    build: Callable[[], Any], classes: int, batch: int, precision: str, xla: bool
) -> tuple[Any, Any, float]:
    """Returns the steps, an endless iterator over one batch, and the operations per image."""
    import keras
    import tensorflow as tf

    from service.models.layers import build_logits_model
    from service.training.learner import precision_scope
    from service.training.step import StepOptions, Steps

    keras.utils.set_random_seed(0)
    with precision_scope(precision):
        model = build()
    generator = np.random.default_rng(0)
    images = tf.constant(generator.integers(0, 256, (batch, *model.input_shape[1:])).astype(np.uint8))
    host_batch = {
        "label": generator.integers(0, classes, batch).astype(np.int32),
        "weight": np.ones(batch, np.float32),
        "row": np.arange(batch),
    }
    batches = iter(tf.data.Dataset.from_tensors(host_batch).repeat())
    options = StepOptions(
        xla=xla, attach=lambda batch: {**batch, "image": images}, scale_loss=precision == "mixed_float16"
    )
    steps = Steps(
        build_logits_model(model),
        keras.optimizers.SGD(LEARNING_RATE),
        model.trainable_variables,
        np.float32([LEARNING_RATE]),
        tf.distribute.get_strategy(),
        options,
    )
    steps.start(1, 0, seed=0)
    _, operations = count_operations(model)
    return steps, batches, operations


def clear_models() -> None:
    """Releases the models built so far, and their memory."""
    import keras

    keras.backend.clear_session()
    gc.collect()
    synchronize()
