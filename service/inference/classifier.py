"""Loads any Keras image classifier and applies it to stored images: class probabilities for each image."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.errors import ConfigError
from pipelines.records import Batch
from pipelines.spec import DataSpec
from service.inference.custom_objects import collect_custom_objects, find_custom_names
from service.inference.options import DEFAULT_OPTIONS, PredictOptions
from service.scores import losses

LEGACY_SUFFIXES = {".h5", ".hdf5"}
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Operations that mean "this model scales its own input" when they precede the first weights.
INPUT_SCALING = {"Rescaling", "Normalization", "Divide", "TrueDivide", "Multiply", "Subtract"}
ACTIVATION_LAYERS = {"Softmax", "Sigmoid"}
# Layers after the head that only drop, reshape or pass on its values.
PASS_THROUGH_LAYERS = {"Dropout", "Flatten", "Identity", "InputLayer", "Reshape"}
MAX_REASON = 160  # characters of a library's message that are quoted in an error


@dataclass(frozen=True)
class Predictions:
    """Predicted probabilities for N images, next to their labels.

    Attributes:
        probabilities: float32 `[N, K]`, K >= 2; each row sums to 1.
        labels: int32 `[N]`, the true classes.
        rows: int64 `[N]`, row numbers of the images in their split.
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
        if not len(self.labels):
            return math.nan
        return float((self.classes == self.labels).mean())

    @property
    def loss(self) -> float:
        """Mean negative log likelihood of the true classes, in nats; NaN without images."""
        if not len(self.labels):
            return math.nan
        return float(losses(self.probabilities, self.labels).mean())


def load_model(path: str | Path, custom_objects: Sequence[str] = ()) -> keras.Model:
    """Loads a `.keras` or an older `.h5` file in safe mode: no code of the file is executed.

    Args:
        path: The model file.
        custom_objects: Modules that may be imported for custom layers of the model, as `package.module`,
            `FOLDER/package.module` or `file.py`. They are imported only if the model has such layers.

    Raises:
        ConfigError: The file is missing, is not a Keras model, needs code to be executed, or has custom
            layers that the modules do not define.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            "a saved model", f"model={path} (no such file)", "name a .keras file or a finished run"
        )
    if not _is_model_file(path):
        raise ConfigError(
            "a Keras model file, .keras or .h5", f"model={path}", "save it with model.save('NAME.keras')"
        )
    objects = _load_custom_objects(path, custom_objects)
    try:
        return keras.saving.load_model(path, custom_objects=objects, compile=False, safe_mode=True)
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


def _load_custom_objects(path: Path, modules: Sequence[str]) -> dict[str, Any]:
    """Imports the code of the custom layers of a model file, if it has any."""
    try:
        names = find_custom_names(path)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile):
        return {}  # loading the file reports the reason
    if not names:
        return {}
    objects = collect_custom_objects(modules)
    missing = [name for name in names if keras.saving.get_registered_object(name, objects) is None]
    if missing:
        where = ", ".join(modules) or "no --custom-objects"
        raise ConfigError(
            f"the code of the custom layer {missing[0]}",
            f"model={path} (needs {', '.join(missing)}; {where})",
            "name the module that defines it with --custom-objects, as package.module or file.py",
        )
    return objects


def _is_model_file(path: Path) -> bool:
    """Tells whether a file is in a format that Keras loads, by its suffix and content."""
    if path.suffix in LEGACY_SUFFIXES:
        with path.open("rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "config.json" in archive.namelist()


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if len(line) > MAX_REASON:
        line = line[: MAX_REASON - 1] + "…"
    return line


def input_spec(model: keras.Model) -> DataSpec:
    """Derives the size and channels of the images that a model takes from its input shape.

    Raises:
        ConfigError: The model has no single input `[B, H, W, C]` with H and W fixed and C 1 or 3.
    """
    inputs = getattr(model, "inputs", None) or []
    shape = tuple(inputs[0].shape) if len(inputs) == 1 else ()
    if len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3):
        received = shape or f"{len(inputs)} inputs"
        raise ConfigError(
            "a model with one input [batch, height, width, 1 or 3], sizes fixed",
            f"input={received}",
            "save it with such an input",
        )
    return DataSpec(image_size=shape[1:3], channels=shape[3])


def infer_pixel_scale(model: keras.Model) -> float:
    """Infers the factor that stored pixels, 0 to 255, are multiplied by before they enter a model.

    A model that scales its input itself (a Rescaling or Normalization layer, or plain arithmetic ahead of
    its first weights) takes 0 to 255: the factor is 1. Any other model is assumed to have been trained on
    0 to 1, as is customary: the factor is 1/255.
    """
    for operation in _iterate_operations(model):
        if type(operation).__name__ in INPUT_SCALING:
            return 1.0
        if getattr(operation, "weights", None):
            break
    return 1 / 255


def _iterate_operations(model: keras.Model) -> Iterator[Any]:
    """Yields every operation in graph order, those of nested models in their place."""
    for operation in getattr(model, "operations", None) or model.layers:
        if isinstance(operation, keras.Model):
            yield from _iterate_operations(operation)
        else:
            yield operation


def class_count(model: keras.Model) -> int:
    """Returns the number of classes a model distinguishes; a single output unit distinguishes two.

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


def check_class_count(model: keras.Model, classes: Sequence[str]) -> None:
    """Checks that a model and a shard set have the same number of classes.

    Raises:
        ConfigError: They have different numbers of classes.
    """
    count = class_count(model)
    if count != len(classes):
        raise ConfigError(
            f"a shard set of {count} classes, as the model has",
            f"classes={len(classes)}",
            "pass --data with the shard set it was trained on",
        )


class Classifier:
    """A model as a function from stored images to probabilities, in inference mode.

    Args:
        model: Model that ends in softmax, in one sigmoid unit, or in logits.
        options: Pixel scale and test-time augmentation.

    Attributes:
        data: Size and channels of the images the model takes.
        classes: Number of classes the model distinguishes.

    Raises:
        ConfigError: The model is not such a classifier.
    """

    def __init__(self, model: keras.Model, options: PredictOptions = DEFAULT_OPTIONS) -> None:
        scale = options.scale
        if scale is None:
            scale = infer_pixel_scale(model)
        self.data = input_spec(model)
        self.classes = class_count(model)
        self._shape = (*self.data.image_size, self.data.channels)
        self._predict = _compile(model, self._shape, scale, mirror=options.tta == "flip")

    def __call__(self, images: Any, is_real: np.ndarray) -> np.ndarray:
        """Predicts float32 probabilities `[n, K]` for the n real images of a batch.

        Use batches of one size, at least 8. Then, on one type of machine, the probabilities of an image are
        the same to the bit, whatever else is in the batch and however many threads there are. (In a batch of
        1, the threads share the sums of a single image.)

        Args:
            images: uint8 `[B, H, W, C]`, an array or a tensor.
            is_real: bool `[B]`; False marks padding.

        Raises:
            ConfigError: The images have another shape, or a probability is not finite.
        """
        if tuple(images.shape[1:]) != self._shape:
            raise ConfigError(
                f"images of shape {self._shape}, as the model takes",
                f"shape={tuple(images.shape[1:])}",
                "read them at that size",
            )
        probabilities: np.ndarray = self._predict(tf.convert_to_tensor(images)).numpy()[is_real]
        if not np.isfinite(probabilities).all():
            raise ConfigError(
                "finite probabilities from the model",
                "probability=nan",
                "train it again with a smaller learning rate, or check whether --scale fits the model",
            )
        return probabilities


def predict(model: keras.Model, batches: Iterable[Batch], scale: float | None = None) -> Predictions:
    """Predicts all images of some batches; rows with weight 0 are padding and left out.

    Args:
        model: Classifier, see `Classifier`.
        batches: Batches of one size, so that the graph is compiled once; NumPy arrays or tensors.
        scale: Factor on the pixels, see `PredictOptions`.

    Raises:
        ConfigError: The model is not a classifier, or the images or labels do not fit it.
    """
    classifier = Classifier(model, PredictOptions(scale))
    probabilities = [np.zeros((0, classifier.classes), np.float32)]
    labels = [np.zeros(0, np.int32)]
    rows = [np.zeros(0, np.int64)]
    for batch in batches:
        is_real = np.asarray(batch["weight"]) > 0
        probabilities.append(classifier(batch["image"], is_real))
        labels.append(np.asarray(batch["label"], np.int32)[is_real])
        rows.append(np.asarray(batch["row"], np.int64)[is_real])
    truth = np.concatenate(labels)
    if len(truth) and not 0 <= truth.min() <= truth.max() < classifier.classes:
        raise ConfigError(
            f"labels from 0 to {classifier.classes - 1}",
            f"label={truth.max()}",
            "pass --data with the shard set it was trained on",
        )
    return Predictions(np.concatenate(probabilities), truth, np.concatenate(rows))


def _compile(model: keras.Model, shape: tuple[int, ...], scale: float, mirror: bool) -> Any:
    """Compiles a graph from uint8 images `[B, H, W, C]` to float32 probabilities `[B, K]`."""
    to_probabilities = probability_head(model)

    def predict_once(images: tf.Tensor) -> tf.Tensor:
        outputs = model(tf.cast(images, tf.float32) * scale, training=False)
        return to_probabilities(tf.cast(outputs, tf.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, *shape), tf.uint8)])
    def predict_batch(images: tf.Tensor) -> tf.Tensor:
        probabilities = predict_once(images)
        if mirror:
            mirrored = predict_once(images[:, :, ::-1])  # [B, H, W, C], left and right swapped
            probabilities = (probabilities + mirrored) / 2
        return probabilities

    return predict_batch


def probability_head(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function that turns a model's outputs `[B, units]` into probabilities `[B, K]`.

    Raises:
        ConfigError: The model ends in neither softmax, one sigmoid unit, nor logits.
    """
    activation = activation_name(last_operation(model))
    units = model.output_shape[1]
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
        "retrain it with such a head",
    )


def last_operation(model: keras.Model) -> Any:
    """Returns the last operation that changes values; later ones only drop, reshape or pass them on."""
    for operation in reversed(list(_iterate_operations(model))):
        if type(operation).__name__ not in PASS_THROUGH_LAYERS:
            return operation
    raise ConfigError("a model with layers", f"model={model.name} (empty)", "use a classifier")


def activation_name(operation: Any) -> str:
    """Returns the name of the activation that an operation ends with or is; `linear` without one."""
    if type(operation).__name__ in ACTIVATION_LAYERS:
        return type(operation).__name__.lower()
    activation = getattr(operation, "activation", None)
    if activation is None:
        return "linear"
    return getattr(activation, "__name__", type(operation).__name__)
