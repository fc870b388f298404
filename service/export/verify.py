"""Compares an exported file with the model it was made from, on images of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipelines.errors import ConfigError, DataError
from pipelines.input.reader import ShardReader
from pipelines.input.tfdata import decode_all
from pipelines.spec import DataSpec
from service.export.formats import ANY_SIZE
from service.export.graph import ExportedModel
from service.export.writers import Predict
from service.inference.classifier import Classifier
from service.inference.interpretation import STRETCH
from service.inference.options import DEFAULT_OPTIONS

TOLERANCE = 1e-3  # largest difference of a probability between a file and the model it was made from
# Between a model that computes in half precision and the same model in float32: bfloat16 has three digits.
HALF_TOLERANCE = 5e-2
GENERATED = 4  # images per size
STORED = 16  # images of the shard set
GRID = 5  # patches of colour per side of a generated image
NOISE = 32.0  # deviation of its pixels from their patch, in levels

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Comparison:
    """How the answers of an exported file differ from those of the model.

    Attributes:
        differences: Largest difference of a probability, by the name of the entry.
        images: Number of images compared.
        stored: How many of them come from the shard set of the run; the others are generated.
        half_difference: Largest difference of a probability between the model as it was trained, in half
            precision, and in float32, as it was exported; None if both are the same.
    """

    differences: dict[str, float]
    images: int
    stored: int
    half_difference: float | None = None

    @property
    def largest(self) -> float:
        """Largest difference of a probability over all entries."""
        return max(self.differences.values())


def compare_export(
    predict: Predict,
    written: ExportedModel,
    trained: ExportedModel,
    entries: Sequence[str],
    stored: Sequence[Images],
) -> Comparison:
    """Compares an exported file with the model, to which images come as in `glassbox predict`.

    Args:
        predict: The file as a function, see `open_export`.
        written: The model that was written.
        trained: The model as it was trained; another one if that computes in half precision and the export
            in float32.
        entries: Names of the entries to compare.
        stored: Decoded images of the shard set, from `read_stored_images`.

    Raises:
        ConfigError: A probability differs by more than `TOLERANCE`, or `HALF_TOLERANCE` by another precision.
    """
    images = [*draw_images(written.data), *stored]
    fitted = np.concatenate([_fit(image, written.data) for image in images])  # [n, H, W, C]
    expected = _predict_fitted(written, fitted)
    differences = {}
    for entry in entries:
        inputs = images if entry == ANY_SIZE else fitted
        answers = np.concatenate([predict(entry, image[None]) for image in inputs])
        differences[entry] = _measure_difference(answers, expected)
        _check_difference(f"entry={entry}", differences[entry], TOLERANCE, len(images))
    half_difference = None
    if trained is not written:
        half_difference = _measure_difference(_predict_fitted(trained, fitted), expected)
        _check_difference("precision=float32", half_difference, HALF_TOLERANCE, len(images))
    return Comparison(differences, len(images), len(stored), half_difference)


def _predict_fitted(exported: ExportedModel, fitted: Images) -> NDArray[np.float32]:
    classifier = Classifier(exported.model, DEFAULT_OPTIONS, exported.interpretation)
    return classifier(fitted, np.ones(len(fitted), np.bool_))


def _check_difference(subject: str, difference: float, tolerance: float, images: int) -> None:
    """Refuses a difference above a tolerance, or none that is a number."""
    if difference <= tolerance:
        return
    raise ConfigError(
        f"an export that gives the probabilities of the model to within {tolerance:g}",
        f"{subject}: difference={difference:.3g} on {images} images",
        "choose another --format; nothing has been written",
    )


def _measure_difference(answers: NDArray[Any], expected: NDArray[np.float32]) -> float:
    """Returns the largest difference; infinity for answers of another shape."""
    if answers.shape != expected.shape:
        return float("inf")
    return float(np.abs(answers - expected).max())


def draw_images(data: DataSpec) -> list[Images]:
    """Draws images that are coloured, noisy, and larger, smaller, wider and taller than the model takes.

    They are the same in every call.

    Args:
        data: Size and channels of the images that the model takes.

    Returns:
        uint8 `[h, w, C]` each.
    """
    height, width = data.image_size
    sizes = (
        (height, width),
        (2 * height + 7, 3 * width + 5),
        (3 * height + 2, width + 1),
        (height // 2 + 1, max(width - 3, 1)),
    )
    generator = np.random.default_rng(0)
    return [_draw_image(generator, size, data.channels) for size in sizes for _ in range(GENERATED)]


def _draw_image(generator: np.random.Generator, size: tuple[int, int], channels: int) -> Images:
    patches = generator.integers(0, 256, (GRID, GRID, channels))
    rows = np.arange(size[0]) * GRID // size[0]
    columns = np.arange(size[1]) * GRID // size[1]
    noise = generator.normal(0, NOISE, (*size, channels))
    return np.clip(patches[rows][:, columns] + noise, 0, 255).astype(np.uint8)


def read_stored_images(directory: str, data: DataSpec) -> list[Images]:
    """Reads some images of a shard set in the size that they are stored in.

    Args:
        directory: Path or URI of the shard set.
        data: Channels of the images that the model takes.

    Returns:
        uint8 `[h, w, C]` each, from the validation split if there is one; none if the set cannot be read.
    """
    try:
        reader = ShardReader(directory, "validation")
    except DataError:
        return []
    rows = np.unique(np.linspace(0, reader.rows - 1, STORED).astype(np.int64))
    encoding = reader.manifest.encoding
    images = []
    for encoded, shape in zip(reader.read_images(rows), reader.read_shapes(rows), strict=True):
        size = (int(shape[0]), int(shape[1]))
        whole = data.model_copy(update={"image_size": size, **asdict(STRETCH)})
        try:
            images.append(decode_all([encoded], shape[None], whole, encoding)[0])
        except tf.errors.InvalidArgumentError:
            continue
    return images


def _fit(image: Images, data: DataSpec) -> Images:
    """Fits a decoded image as training and `glassbox predict` do, uint8 `[1, H, W, C]`."""
    return decode_all([image.tobytes()], np.array([image.shape], np.int32), data, "raw")
