"""Shard sets and runs for report tests, written without the builder and without training."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image
from shard_samples import make_record, write_shards

from pipelines.shards.manifest import FILE_NAME, load_manifest
from service.models.metadata import ModelMetadata
from service.runs import Run


def read_whole_page(page: Path) -> str:
    """Returns the markup of a report with every view in its place, as a browser holds it in the end."""

    def read_view(place: re.Match[str]) -> str:
        script = (page.parent / place[1]).read_text(encoding="utf-8")
        _, html = json.loads(f"[{script.strip().removeprefix('deliver(').removesuffix(');')}]")
        return str(html)

    return re.sub(r'<section [^>]*data-source="([^"]*)"[^>]*></section>', read_view, page.read_text())


def dim_and_bright(
    directory: Path,
    splits: Sequence[str] = ("train", "validation"),
    classes: Sequence[str] = ("dim", "bright"),
) -> Path:
    """Writes six grey 8x8 images per split.

    Row i has the value 20 * i + 60 and class i >= 3; row 2 is mislabelled.
    """
    rows = [
        make_record(np.full((8, 8, 1), 20 * row + 60, np.uint8), int(row >= 2), f"tiny/{row}.png")
        for row in range(6)
    ]
    return write_shards(directory, classes, dict.fromkeys(splits, rows))


def brightness_model() -> keras.Model:
    """Builds a model for 8x8 grey images that predicts class 1 above 112, which is wrong for row 2 alone."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Rescaling(1 / 255, name="rescaling"),
            layers.Conv2D(3, 3, activation="relu", name="convolution"),
            layers.GlobalAveragePooling2D(name="pooling"),
            layers.Dense(1, name="logits"),
            layers.Activation("sigmoid", name="probabilities"),
        ]
    )
    ramp = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
    mean = np.full((3, 3), 1 / 9, np.float32)
    negative = np.full((3, 3), -1, np.float32)
    kernel = np.stack([mean, ramp, negative], axis=-1)[:, :, None]  # [3, 3, 1, 3]
    model.get_layer("convolution").set_weights([kernel, np.zeros(3, np.float32)])
    weights = np.array([[20.0], [0.0], [0.0]], np.float32)
    bias = np.array([-20 * 112 / 255], np.float32)
    model.get_layer("logits").set_weights([weights, bias])
    return model


def metrics(epochs: int, validation: bool = True) -> list[dict[str, float]]:
    """Returns plausible metrics of an overfitting run, whose best epoch is at two thirds."""
    rows = []
    for n in range(1, epochs + 1):
        t = n / epochs
        row = {
            "epoch": n,
            "loss": 0.7 * math.exp(-3 * t),
            "accuracy": 1 - 0.5 * math.exp(-3.5 * t),
            "learning_rate": 0.001,
        }
        if validation:
            row |= {"val_loss": 0.7 - 0.4 * t + 0.35 * t * t, "val_accuracy": 0.5 + 0.72 * t - 0.54 * t * t}
        rows.append(row | {"seconds": 2.0, "images_per_second": 900.0 + n, "input_wait": 0.01})
    return rows


def make_run(
    directory: Path, shards: Path, model: keras.Model | None, epochs: list[dict[str, float]], **more: Any
) -> Run:
    """Writes a run directory as training leaves it; `more` are further settings of its configuration."""
    run = Run(directory)
    data = {"image_size": [8, 8], "channels": 1}
    run.create(
        {
            "preset": "tiny",
            "model": "small",
            "shards": str(shards),
            "data": data,
            "epochs": len(epochs),
            **more,
        }
    )
    run.write_metrics(epochs)
    run.update_status(state="finished")
    if model is not None:
        if (shards / FILE_NAME).is_file():
            manifest = load_manifest(shards)
            run.write_metadata(ModelMetadata(manifest.classes, manifest.digest(), (8, 8), 1))
        run.write_model(model.save)
    return run


def find_palette_indices(path: Path, palette: np.ndarray) -> np.ndarray:
    """Returns the nearest colour of a palette for every pixel of a picture, which may be encoded with losses.

    Args:
        path: File of the picture.
        palette: uint8 `[P, 3]`.

    Returns:
        Indices into the palette, `[H, W]`.
    """
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    distances = np.abs(pixels[:, :, None] - palette.astype(int)).sum(axis=-1)  # [H, W, P]
    indices: np.ndarray = distances.argmin(axis=-1)
    return indices
