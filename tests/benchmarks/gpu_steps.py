"""Part c: a training step of every registered model in every precision, with and without XLA; and of ResNet-50."""

from __future__ import annotations

import gc
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from gpu_lab import Lab, finished, seconds_each
from gpu_part import Checks
from gpu_results import ABSENT, Row
from gpu_work import DTYPES, operations, peak

RESNET = "ResNet-50 at 224"
RESNET_GOAL = 2500.0  # images a second on an H100 or H200
OTHER = {"image_size": (64, 64), "channels": 3}  # of models that no preset trains


def checks(lab: Lab) -> Checks:
    """The peaks, then all models without XLA in float32, and so on: what matters most first."""
    for precision in DTYPES:
        yield f"peak, {precision}", lambda precision=precision: [_peak_row(lab, precision)]
    if lab.gpu or not lab.smallest:
        yield RESNET, lambda: resnet(lab)
    names = ("linear",) if lab.smallest else models()
    for precision in DTYPES:
        for xla in (False, True):
            for name in names:
                yield (
                    title(name, precision, xla),
                    lambda name=name, precision=precision, xla=xla: step(lab, name, precision, xla),
                )


def title(name: str, precision: str, xla: bool) -> str:
    """What a row is called."""
    return f"{name}, {precision}{', XLA' if xla else ''}"


def models() -> tuple[str, ...]:
    """The names of all registered models."""
    from pipelines.errors import ConfigError
    from service.models import MODELS, Task, build_model

    with suppress(ConfigError):
        build_model(
            "", Task((1, 1, 1), 2, (0.0,), (1.0,))
        )  # registers them, and says that there is no such one
    return MODELS.names()


@lru_cache
def sizes() -> dict[str, dict[str, Any]]:
    """The images that every model of a preset learns from."""
    from service.config import load_config, preset_names

    configs = [load_config(name, ".") for name in preset_names()]
    learned = {
        config.model: (config.augment and config.augment.size) or config.data.image_size for config in configs
    }
    return {
        config.model: {"image_size": learned[config.model], "channels": config.data.channels}
        for config in configs
    }


@lru_cache
def _peak(lab: Lab, precision: str) -> float:
    return peak(lab, precision)


def _peak_row(lab: Lab, precision: str) -> Row:
    return Row(
        "c",
        f"peak of a matrix product, {DTYPES[precision]}",
        "TFLOP/s",
        **lab.column(_peak(lab, precision) / 1e12),
    )


def step(lab: Lab, name: str, precision: str, xla: bool) -> list[Row]:
    """One registered model."""
    if precision == "mixed_float16" and not (xla or lab.gpu or lab.smallest):
        return [
            Row(
                "c",
                title(name, precision, xla),
                "images/s",
                note=f"{ABSENT}: TensorFlow's convolutions on a CPU take seconds an image",
            )
        ]
    from service.models import Task, build_model

    images = sizes().get(name, OTHER)
    channels = images["channels"]
    classes = 10 if channels == 1 else 2
    task = Task((*images["image_size"], channels), classes, (127.0,) * channels, (64.0,) * channels)
    return measured(
        lab, title(name, precision, xla), lambda: build_model(name, task), classes, precision, xla
    )


def resnet(lab: Lab) -> list[Row]:
    """ResNet-50 from `keras.applications`, for 1,000 classes, in bfloat16 with XLA."""
    import keras

    from service.models.layers import add_head

    name = f"{RESNET}, mixed_bfloat16, XLA"
    goal = f">= {RESNET_GOAL:,.0f} on an H100 or H200"
    if not lab.gpu:
        return [Row("c", name, "images/s", goal=goal, note=f"{ABSENT}: no GPU")]

    def build() -> keras.Model:
        image = keras.Input((224, 224, 3))
        base = keras.applications.ResNet50(
            include_top=False,
            weights=None,
            pooling="avg",
            input_tensor=keras.layers.Rescaling(1 / 255)(image),
        )
        return keras.Model(image, add_head(base.output, 1000))

    row, *more = measured(lab, name, build, 1000, "mixed_bfloat16", True)
    fast = bool(row.gpu and row.gpu >= RESNET_GOAL)
    hopper = any(chip in _chip() for chip in ("H100", "H200"))
    return [replace(row, goal=goal, passed=fast if hopper else None), *more]


def _chip() -> str:
    import tensorflow as tf

    return str(
        tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0]).get(
            "device_name", ""
        )
    )


def measured(lab: Lab, name: str, build: Any, classes: int, precision: str, xla: bool) -> list[Row]:
    """Images a second, share of the peak, and memory of the project's own step, on one batch that lies on the device."""
    import tensorflow as tf

    batch = lab.pick(256, 8, 4)
    steps, batches, amount = _steps(lab, build, classes, batch, precision, xla)
    if lab.gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    at_once = lab.pick(8, 1, 1)
    rate = (
        at_once
        * batch
        / seconds_each(lambda: steps.train(batches, 0, at_once), lab.pick(0.5, 0.5, 0.0), not lab.smallest)
    )
    loss, _, _, weight = steps.read_totals()
    memory = f", {tf.config.experimental.get_memory_info('GPU:0')['peak'] / 2**30:.2f} GiB" if lab.gpu else ""
    share = rate * amount / _peak(lab, precision)
    note = f"batch {batch}, {amount / 1e9:.3g} GFLOP an image, {share:.1%} of the peak{memory}"
    good = bool(np.isfinite(loss)) and weight > 0
    keras_forgets()
    return [Row("c", name, "images/s", **lab.column(rate), goal="a finite loss", passed=good, note=note)]


def _steps(
    lab: Lab, build: Any, classes: int, batch: int, precision: str, xla: bool
) -> tuple[Any, Any, float]:
    """The steps, an iterator over the same batch again and again, and the operations of an image."""
    import keras
    import tensorflow as tf

    from service.models.layers import build_logits_model
    from service.training.learner import precision_scope
    from service.training.step import StepOptions, Steps

    keras.utils.set_random_seed(0)
    with precision_scope(precision):
        model = build()
    draw = np.random.default_rng(0)
    images = tf.constant(draw.integers(0, 256, (batch, *model.input_shape[1:])).astype(np.uint8))
    labels = draw.integers(0, classes, batch).astype(np.int32)
    rest = {"label": labels, "weight": np.ones(batch, np.float32), "row": np.arange(batch)}
    batches = iter(tf.data.Dataset.from_tensors(rest).repeat())
    weights = model.trainable_variables
    options = StepOptions(
        xla=xla, attach=lambda batch: {**batch, "image": images}, scaled=precision == "mixed_float16"
    )
    steps = Steps(
        build_logits_model(model),
        keras.optimizers.SGD(1e-4),
        weights,
        np.float32([1e-4]),
        tf.distribute.get_strategy(),
        options,
    )
    steps.start(1, 0, seed=0)
    return steps, batches, operations(model)[1]


def keras_forgets() -> None:
    """Lets go of the models so far, and of their memory."""
    import keras

    keras.backend.clear_session()
    gc.collect()
    finished()
