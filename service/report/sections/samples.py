"""Sample images: predictions for images from a folder that is not part of the data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipelines.errors import ConfigError
from pipelines.input import tfdata
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.spec import DataSpec, ShardSpec
from service.inference.classifier import Classifier
from service.inference.interpretation import Interpretation
from service.report.drawing.album import Album, Drawing, draw_photo
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}
FILES = 100  # largest number of images
TOP = 3  # number of classes whose probabilities are shown
BATCH = 32


def build_section(
    album: Album,
    provenance: Provenance,
    model: keras.Model,
    classes: Sequence[str],
    folder: Path | None,
    interpretation: Interpretation,
    levels: str = "full",
) -> Section | None:
    """Builds a grid of sample images with their predictions.

    Args:
        album: Album the pictures are added to.
        provenance: Model the pictures are recorded with in the manifest.
        model: Classifier that predicts the images.
        classes: Class names; outputs of the model are in this order.
        folder: Folder of the images; None leaves the section out.
        interpretation: How images enter the model and what its outputs mean.
        levels: Levels of the model's training images, see `pipelines.spec.ShardSpec.levels`.

    Returns:
        The section; None without a folder.

    Raises:
        ConfigError: The folder does not exist or holds no images.
    """
    if folder is None:
        return None
    spec = ShardSpec(levels=levels)
    classifier = Classifier(model, interpretation=interpretation)
    files, pixels, unreadable = read_images(list_images(folder), classifier.data, spec)
    probabilities = [np.zeros((0, classifier.classes), np.float32)]
    for start in range(0, len(pixels), BATCH):
        batch, is_real = _pad(pixels[start : start + BATCH])
        probabilities.append(classifier(batch, is_real))
    predictions = [
        _describe_prediction(file, row, classes)
        for file, row in zip(files, np.concatenate(probabilities), strict=True)
    ]
    drawings = [
        _draw(provenance, image, prediction) for image, prediction in zip(pixels, predictions, strict=True)
    ]
    views = [
        prediction | {"picture": picture}
        for prediction, picture in zip(predictions, album.add_all(drawings), strict=True)
    ]
    labelled = [prediction for prediction in predictions if prediction["truth"] is not None]
    correct = sum(prediction["truth"] == prediction["top"][0]["name"] for prediction in labelled)
    counts = {"labelled": len(labelled), "correct": correct, "unreadable": unreadable}
    return Section(
        "samples", "Sample images", {"predictions": views, **counts}, {"samples": predictions, **counts}
    )


def list_images(folder: Path) -> list[Path]:
    """Lists the images of a folder, numbers in names in numeric order, at most `FILES` of them.

    Raises:
        ConfigError: The folder does not exist or holds no images.
    """
    if not folder.is_dir():
        raise ConfigError("a folder of images", f"samples={folder} (no such folder)", "name another one")
    images = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    if not images:
        raise ConfigError("a folder of images", f"samples={folder} (no images in it)", "name another one")
    return sorted(images, key=_numeric_order)[:FILES]


def _numeric_order(path: Path) -> list[tuple[int, str]]:
    """Returns a sort key in which `dog.9.jpg` comes before `dog.10.jpg`."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_images(
    files: Sequence[Path], data: DataSpec, spec: ShardSpec
) -> tuple[list[Path], np.ndarray, list[str]]:
    """Reads image files as a shard set would store them, at the size of the model's input.

    Args:
        files: Image files to read.
        data: Size and channels of the model's input.
        spec: Settings of the shard set.

    Returns:
        Files that could be read, their pixels uint8 `[N, H, W, C]`, and the names of the other files.
    """
    readable = []
    unreadable = []
    pixels = [np.zeros((0, *data.image_size, data.channels), np.uint8)]
    for file in files:
        try:
            prepared = prepare_image(file.read_bytes(), spec)
            shapes = np.array([prepared.shape], np.int32)
            pixels.append(tfdata.decode_all([prepared.image], shapes, data, spec.encoding))
            readable.append(file)
        except (UnreadableImageError, OSError):
            unreadable.append(file.name)
    return readable, np.concatenate(pixels), unreadable


def find_label(name: str, classes: Sequence[str]) -> int | None:
    """Finds the class a file name mentions, such as `cats` for `cat.1500.jpg`.

    Args:
        name: Name of the image file.
        classes: Class names to look for, in singular or plural.

    Returns:
        Index of the class; None if the name mentions none, or several.
    """
    words = [word.lower() for word in re.split(r"[^A-Za-z]+", Path(name).stem) if word]
    labels = set()
    for label, class_name in enumerate(classes):
        if any(class_name.lower() in (word, word + "s") for word in words):
            labels.add(label)
    return labels.pop() if len(labels) == 1 else None


def _pad(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pads a batch to `BATCH` images, so that one graph serves all; bool `[BATCH]` flags the real ones."""
    missing = BATCH - len(images)
    padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    return padded, np.arange(BATCH) < len(images)


def _describe_prediction(file: Path, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    label = find_label(file.name, classes)
    most_probable = np.argsort(-probabilities, kind="stable")[:TOP]
    return {
        "file": file.name,
        "top": [{"name": classes[k], "probability": float(probabilities[k])} for k in most_probable],
        "truth": None if label is None else classes[label],
    }


def _draw(provenance: Provenance, pixels: np.ndarray, prediction: dict[str, Any]) -> Drawing:
    best = prediction["top"][0]
    text = f"{prediction['file']}: predicted {best['name']} with {best['probability']:.1%}"
    if prediction["truth"]:
        text += f", true class {prediction['truth']}"
    origin = {
        "sample": prediction["file"],
        "checkpoint": provenance.model_digest,
        "scale": provenance.scale,
    }
    return draw_photo(pixels, "sample", text, origin)
