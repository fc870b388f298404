"""Answers from a saved model: probabilities over a whole split, from any Keras image classifier."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.errors import ConfigError, suggest
from pipelines.records import Batch
from pipelines.spec import DataSpec
from service.scores import losses

LEGACY, HDF5 = (
    {".h5", ".hdf5"},
    b"\x89HDF\r\n\x1a\n",
)  # suffixes of models of older Keras, and how such a file begins
OWN_SCALING = {"Rescaling", "Normalization", "Divide", "TrueDivide", "Multiply", "Subtract"}
ACTIVATIONS = {"Softmax", "Sigmoid"}  # operations and layers that are one
TTA = ("none", "flip")
KEEPS_VALUES = {"Dropout", "Flatten", "Identity", "InputLayer", "Reshape"}


@dataclass(frozen=True)
class Predictions:
    """What a model answered for N images.

    Attributes:
        probabilities: float32 `[N, K]`, K >= 2, rows sum to 1.
        labels: int32 `[N]`, the true classes.
        rows: int64 `[N]`, where the images stand in their split.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The most probable class of each image, int32 `[N]`."""
        return self.probabilities.argmax(axis=1).astype(np.int32)

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is the true one; NaN without images."""
        return float((self.classes == self.labels).mean()) if len(self.labels) else float("nan")

    @property
    def loss(self) -> float:
        """Mean negative log likelihood of the true classes, in nats; NaN without images."""
        return float(losses(self.probabilities, self.labels).mean()) if len(self.labels) else float("nan")


def load_model(path: str | Path) -> keras.Model:
    """Loads a `.keras` file, or an `.h5` file of older Keras, in safe mode: a file can hold weights and layers, but no code.

    Raises:
        ConfigError: The file is missing, is no Keras model, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            "a saved model", f"model={path} (no such file)", "name a .keras file or a finished run"
        )
    if not _holds_a_model(path):
        raise ConfigError(
            "a Keras model file, .keras or .h5", f"model={path}", "save it with model.save('NAME.keras')"
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OSError,
        ImportError,
        RuntimeError,
        zipfile.BadZipFile,
    ) as error:
        raise ConfigError(
            "a model made of Keras layers alone",
            f"model={path} ({_first_line(error)})",
            "save it without Lambda layers and without classes of your own",
        ) from None


def _holds_a_model(path: Path) -> bool:
    if path.suffix in LEGACY:
        with path.open("rb") as file:
            return file.read(len(HDF5)) == HDF5
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "config.json" in archive.namelist()


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else line[:159] + "…"


def data_spec_of(model: keras.Model) -> DataSpec:
    """The images a model takes, from its input shape.

    Raises:
        ConfigError: The model has no single input `[B, H, W, C]` with H, W fixed and C 1 or 3.
    """
    inputs = getattr(model, "inputs", None) or []
    shape = tuple(inputs[0].shape) if len(inputs) == 1 else ()
    if len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3):
        found = shape or f"{len(inputs)} inputs"
        raise ConfigError(
            "a model with one input [batch, height, width, 1 or 3], sizes fixed",
            f"input={found}",
            "save it with such an input",
        )
    return DataSpec(image_size=shape[1:3], channels=shape[3])


def scale_of(model: keras.Model) -> float:
    """The factor that stored pixels, 0 to 255, are multiplied by before they enter a model.

    A model that scales its input itself, by a Rescaling or Normalization layer or by plain
    arithmetic ahead of its first weights, takes 0 to 255: factor 1. Any other is taken to have
    been trained on 0 to 1, as is the custom: factor 1/255.
    """
    for operation in _operations(model):
        if type(operation).__name__ in OWN_SCALING:
            return 1.0
        if getattr(operation, "weights", None):
            break
    return 1 / 255


def _operations(model: keras.Model) -> Iterator[Any]:
    """Every operation in order of the graph, those of nested models in their place."""
    for operation in getattr(model, "operations", None) or model.layers:
        if isinstance(operation, keras.Model):
            yield from _operations(operation)
        else:
            yield operation


def class_count(model: keras.Model) -> int:
    """The number of classes a model tells apart; one output unit tells two apart.

    Raises:
        ConfigError: The output is not `[B, units]`.
    """
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or not isinstance(shape[1], int):
        raise ConfigError(
            "a classifier with one output [batch, units]",
            f"output={shape}",
            "use a model that ends in one unit per class",
        )
    return max(int(shape[1]), 2)


def check_classes(model: keras.Model, classes: Sequence[str]) -> None:
    """Makes sure that a model and a shard set speak of the same number of classes.

    Raises:
        ConfigError: They do not.
    """
    count = class_count(model)
    if count != len(classes):
        raise ConfigError(
            f"a shard set of {count} classes, as the model has",
            f"classes={len(classes)}",
            "pass --data with the shard set it was trained on",
        )


@dataclass(frozen=True)
class PredictOptions:
    """How a model is asked.

    Attributes:
        scale: Factor on the pixels, 0 to 255; None asks `scale_of`.
        tta: What it is asked about besides an image itself: nothing (`none`), or its mirror image (`flip`): then the answer is the
            mean of both probabilities, and the same for both.
    """

    scale: float | None = None
    tta: str = TTA[0]


DEFAULT_OPTIONS = PredictOptions()


class Classifier:
    """A model as a function from stored images to probabilities, in inference mode.

    Args:
        model: Ends in softmax, in one sigmoid unit, or in raw logits.
        asking: How it is asked.

    Attributes:
        data: Size and channels of the images it takes.
        classes: Number of classes it tells apart.

    Raises:
        ConfigError: The model is no such classifier, or cannot be asked like that.
    """

    def __init__(self, model: keras.Model, asking: PredictOptions = DEFAULT_OPTIONS) -> None:
        scale, tta = asking.scale, asking.tta
        if scale is not None and not 0 < scale < math.inf:
            raise ConfigError(
                "a factor above 0", f"scale={scale}", "leave --scale out, or give for example 0.00392"
            )
        if tta not in TTA:
            raise ConfigError(" or ".join(TTA), f"tta={tta}", suggest(tta, TTA))
        self.data, self.classes = data_spec_of(model), class_count(model)
        self._shape = (*self.data.image_size, self.data.channels)
        self._answer = _compiled(
            model, self._shape, scale_of(model) if scale is None else scale, tta == "flip"
        )

    def __call__(self, images: Any, real: np.ndarray) -> np.ndarray:
        """Answers images with float32 probabilities `[n, K]`: of the n real ones.

        Give batches of one size, at least 8: then an image's answer is the same to the bit whatever else is in the
        batch and on however many threads (seen with 1 to 32; a batch of 1 has its sums split among the threads).

        Args:
            images: uint8 `[B, H, W, C]`, an array or a tensor.
            real: bool `[B]`; the others are padding.

        Raises:
            ConfigError: The images are of another shape, or an answer is not a number.
        """
        if tuple(images.shape[1:]) != self._shape:
            raise ConfigError(
                f"images of shape {self._shape}, as the model takes",
                f"shape={tuple(images.shape[1:])}",
                "read them at that size",
            )
        probabilities: np.ndarray = self._answer(tf.convert_to_tensor(images)).numpy()[real]
        if not np.isfinite(probabilities).all():
            fix = "train it again with a smaller learning rate, or see whether --scale fits the model"
            raise ConfigError("a model that answers with numbers", "probability=nan", fix)
        return probabilities


def predict(model: keras.Model, batches: Iterable[Batch], scale: float | None = None) -> Predictions:
    """Runs a model over batches; rows with weight 0 are left out.

    Args:
        model: See `Classifier`.
        batches: Batches of one size, so that the graph is compiled once; NumPy arrays or tensors.
        scale: See `PredictOptions`.

    Raises:
        ConfigError: The model is no such classifier, or the images or labels do not fit it.
    """
    classifier = Classifier(model, PredictOptions(scale))
    classes = classifier.classes
    probabilities, labels, rows = (
        [np.zeros((0, classes), np.float32)],
        [np.zeros(0, np.int32)],
        [np.zeros(0, np.int64)],
    )
    for batch in batches:
        real = np.asarray(batch["weight"]) > 0
        probabilities.append(classifier(batch["image"], real))
        labels.append(np.asarray(batch["label"], np.int32)[real])
        rows.append(np.asarray(batch["row"], np.int64)[real])
    truth = np.concatenate(labels)
    if len(truth) and not 0 <= truth.min() <= truth.max() < classes:
        raise ConfigError(
            f"labels from 0 to {classes - 1}",
            f"label={truth.max()}",
            "pass --data with the shard set it was trained on",
        )
    return Predictions(np.concatenate(probabilities), truth, np.concatenate(rows))


def _compiled(model: keras.Model, shape: tuple[int, ...], scale: float, mirrored: bool) -> Any:
    """A graph from uint8 images `[B, H, W, C]` to float32 probabilities `[B, K]`."""
    to_probabilities = head_of(model)

    def of(images: tf.Tensor) -> tf.Tensor:
        return to_probabilities(
            tf.cast(model(tf.cast(images, tf.float32) * scale, training=False), tf.float32)
        )

    @tf.function(input_signature=[tf.TensorSpec((None, *shape), tf.uint8)])
    def answer(images: tf.Tensor) -> tf.Tensor:
        found = of(images)
        return (found + of(images[:, :, ::-1])) / 2 if mirrored else found

    return answer


def head_of(model: keras.Model) -> Any:
    """What turns the model's outputs `[B, units]` into probabilities `[B, K]`."""
    activation, units = activation_of(last_operation(model)), model.output_shape[1]
    if activation == "softmax" and units > 1:
        return tf.identity
    if activation == "linear" and units > 1:
        return tf.nn.softmax
    if activation == "sigmoid" and units == 1:
        return lambda p: tf.concat([1 - p, p], axis=1)
    if activation == "linear":
        return lambda z: tf.concat([tf.sigmoid(-z), tf.sigmoid(z)], axis=1)
    raise ConfigError(
        "a model that ends in softmax, in one sigmoid unit or in logits",
        f"{units} units with activation={activation}",
        "retrain it with such an end",
    )


def last_operation(model: keras.Model) -> Any:
    """The last operation that changes values: what follows it drops, reshapes or passes on."""
    return next(
        operation
        for operation in reversed(list(_operations(model)))
        if type(operation).__name__ not in KEEPS_VALUES
    )


def activation_of(operation: Any) -> str:
    """The name of the activation that ends an operation, or that it is; `linear` where there is none."""
    if type(operation).__name__ in ACTIVATIONS:
        return type(operation).__name__.lower()
    activation = getattr(operation, "activation", None)
    return getattr(activation, "__name__", type(operation).__name__) if activation is not None else "linear"
