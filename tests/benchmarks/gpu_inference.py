"""Part j: evaluates and predicts with a saved model: the probabilities of a CPU, and images per second."""

from __future__ import annotations

import csv
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
from gpu_context import CheckContext
from gpu_part import Checks
from gpu_results import Row
from gpu_training import full_precision

MODEL = "cats_dogs_small"
TOLERANCE = 1e-4  # of a probability, in float32 without TF32


def list_checks(context: CheckContext) -> Checks:
    """Yields the comparison of predictions, then the speed of an evaluation."""
    yield "predict", lambda: compare_predictions(context)
    yield "evaluate", lambda: measure_evaluation(context)


@lru_cache
def save_model(context: CheckContext) -> Path:
    """Saves a model with random weights."""
    import keras
    import tensorflow as tf

    from service.models import Task, build_model

    keras.utils.set_random_seed(0)
    name = "small_cnn" if context.smallest else MODEL
    with tf.device("CPU:0"):
        model = build_model(name, Task((150, 150, 3), 2, (127.0,) * 3, (64.0,) * 3))
    path = Path(context.scratch, "inference.keras")
    model.save(path)
    return path


def read_probabilities(context: CheckContext, device: str) -> np.ndarray:
    """Predicts the validation split on a device, and returns the probabilities `[rows, classes]`."""
    import tensorflow as tf

    from service.inference.predict import predict

    out = Path(context.scratch, f"predictions-{device[:3]}.csv")
    with tf.device(device):
        predict(save_model(context), str(context.shards), out, split="validation")
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = [index for index, name in enumerate(header) if _is_number(rows[0][index]) and index > 0]
    return np.array([[float(row[index]) for index in columns] for row in rows])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def compare_predictions(context: CheckContext) -> list[Row]:
    """Compares the predictions of the device with those of the CPU."""
    with full_precision():
        ours = read_probabilities(context, context.device)
        theirs = read_probabilities(context, "CPU:0")
    difference = float(np.abs(ours - theirs).max())
    return [
        Row(
            "j",
            f"predict: probabilities of {len(ours)} images against the CPU",
            "of 1",
            **context.as_column(difference),
            goal=f"<= {TOLERANCE}",
            passed=difference <= TOLERANCE,
        )
    ]


def measure_evaluation(context: CheckContext) -> list[Row]:
    """Measures an evaluation from shards to accuracy, after one that is not measured."""
    from service.inference.evaluate import evaluate

    def run() -> int:
        return evaluate(save_model(context), context.shards).images

    images = run()
    start = time.perf_counter()
    if not context.smallest:
        images = run()
    rate = images / max(time.perf_counter() - start, 1e-9)
    note = f"{images} images, model loaded and traced"
    if context.smallest:
        return [Row("j", "evaluate", "images", **context.as_column(float(images)), note=note)]
    return [Row("j", "evaluate", "images/s", **context.as_column(rate), note=note)]
