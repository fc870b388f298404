"""Scoring a saved model on a split, as `glassbox evaluate` does."""

from __future__ import annotations

import math
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.input.batches import Batches
from pipelines.shards.manifest import load_manifest
from service.inference import Predictions, check_classes, data_spec_of, load_model, predict
from service.runs import Run

BATCH = 64


def evaluate(model: str | Path, shards: str | Path, split: str, scale: float | None = None) -> Predictions:
    """Asks a model about every image of a split.

    Args:
        model: A `.keras` file made anywhere, or a run directory.
        shards: The shard set.
        split: Which split.
        scale: Factor on the pixels, 0 to 255; None finds it out (see `service.inference.scale_of`).

    Returns:
        Its answers, with the accuracy and the loss.

    Raises:
        ConfigError: The file is no usable model, or does not fit the shard set.
        DataError: The shard set cannot be used.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise ConfigError("a factor above 0", f"scale={scale}", "leave --scale out, or give for example 0.00392")
    path = Path(model)
    net = load_model(Run(path).model_path if path.is_dir() else path)
    manifest = load_manifest(shards)
    manifest.split(split)
    check_classes(net, manifest.classes)
    batches = Batches(shards, split, data_spec_of(net), BATCH)
    with batches.data_errors():
        return predict(net, batches.epoch(0), scale)
