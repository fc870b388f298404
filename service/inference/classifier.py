"""Loads any Keras image classifier and applies it to stored images: class probabilities for each image."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.errors import ConfigError
from pipelines.records import Batch
from pipelines.remote.files import fetch_file
from pipelines.remote.uri import Location, parse_location
from pipelines.spec import DataSpec, check
from service.inference.custom_objects import (
    collect_custom_objects,
    find_custom_names,
    find_tensorflow_operations,
)
from service.inference.graph import run_with_features
from service.inference.inspection import interpret_model
from service.inference.interpretation import STRETCH, ImageFit, Interpretation
from service.inference.model_file import check_model_file, check_parameter_count
from service.inference.options import DEFAULT_OPTIONS, PredictOptions
from service.scores import losses

# Keras quotes the configuration of every enclosing object before the cause of an error, or after it.
KERAS_CAUSE = "Exception encountered:"
KERAS_CONFIG = "Full object config:"
MAX_NAME = 100  # characters of a layer's name in an error
MAX_FEATURE_IMAGES = 5_000  # of which the features are kept
MAX_FEATURE_VALUES = 1 << 25  # features kept in all: 128 MiB
NAME_CHARACTERS = "A-Za-z0-9_./-"  # that TensorFlow takes in names of operations
NAMES_IN_GRAPH = re.compile(f"[{NAME_CHARACTERS}]+")
OTHER_CHARACTERS = re.compile(f"[^{NAME_CHARACTERS}]")
TOLERANCE = 2e-2  # by which a probability in half precision may leave [0, 1]


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


@dataclass(frozen=True)
class Features:
    """What the last layer of a model receives for n of the N predicted images: the penultimate features.

    Attributes:
        values: float32 `[n, F]`; feature maps and tokens are averaged over their positions.
        indices: int64 `[n]`, indices into the predictions, ascending and evenly spaced.
        layer: Path of the layer that receives them.
    """

    values: np.ndarray
    indices: np.ndarray
    layer: str


def load_model(path: str | Location, custom_objects: Sequence[str] = ()) -> keras.Model:
    """Loads a `.keras` or an older `.h5` file in safe mode: no code of the file is executed.

    Args:
        path: Path or URI of the model file.
        custom_objects: Modules that may be imported for custom layers of the model, as `package.module`,
            `FOLDER/package.module` or `file.py`. They are imported only if the model has such layers.

    Returns:
        The model. If its one output is in a dict or a list, it is returned with a plain output.

    Raises:
        ConfigError: The file is missing, is not a Keras model, needs code to be executed, has custom layers
            that the modules do not define, or a layer with a name that TensorFlow cannot run.
    """
    path = fetch_file(parse_location(path))
    if not path.is_file():
        raise ConfigError(
            "a saved model", f"model={path} (no such file)", "name a .keras file or a finished run"
        )
    check_model_file(path)
    objects = _load_custom_objects(path, custom_objects)
    check_parameter_count(path, objects)
    try:
        model = keras.saving.load_model(path, custom_objects=objects, compile=False, safe_mode=True)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OSError,
        ImportError,
        RuntimeError,
        MemoryError,
        tf.errors.OpError,
        zipfile.BadZipFile,
    ) as error:
        raise ConfigError(
            "a model made of Keras layers alone",
            f"model={path} ({_find_cause(error)})",
            "save it with this version of Keras, without Lambda layers and without classes of your own",
        ) from None
    _check_names(model, path)
    return _select_output(model)


def _check_names(model: keras.Model, path: Path) -> None:
    """Makes sure that the names in a model can be those of operations in a graph.

    Keras uses the model of any name, such as `my model`, but builds no graph of a layer of such a name.
    """
    model.name = OTHER_CHARACTERS.sub("_", model.name).lstrip("_/-") or "model"
    expected = "layers whose names have letters of the English alphabet, digits, or _ . - alone"
    check_layer_names(model, path, NAMES_IN_GRAPH, expected)


def check_layer_names(model: keras.Model, source: Location, pattern: re.Pattern[str], expected: str) -> None:
    """Checks the names of all layers of a model.

    Args:
        model: Model, which may contain others.
        source: Where it is from, for the message.
        pattern: Pattern that each name must match as a whole.
        expected: The same in words, for the message.

    Raises:
        ConfigError: A name does not match.
    """
    for layer in model._flatten_layers(include_self=False):
        if not pattern.fullmatch(layer.name):
            raise ConfigError(
                expected,
                f"model={source} (layer {layer.name[:MAX_NAME]!r})",
                "rename the layer, build the model again and load its weights, and save it",
            )


def _load_custom_objects(path: Path, modules: Sequence[str]) -> dict[str, Any]:
    """Imports the code of the custom layers of a model file, if it has any."""
    try:
        names = find_custom_names(path)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile):
        return {}  # loading the file reports the reason
    operations = find_tensorflow_operations(path)
    if operations:
        raise ConfigError(
            "a model made of Keras layers alone",
            f"model={path} (calls {', '.join(operations)} outside of any layer, as Keras 2 allowed)",
            "replace these calls by layers, such as keras.layers.Softmax, and save it again",
        )
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


def _find_cause(error: Exception) -> str:
    """Returns the innermost message of an error of Keras, which quotes whole configurations before it."""
    innermost = str(error).rpartition(KERAS_CAUSE)[2].partition(KERAS_CONFIG)[0].strip()
    return next(iter(innermost.splitlines()), "").strip() or type(error).__name__


def _select_output(model: keras.Model) -> keras.Model:
    """Returns a model with a plain output, if its one output is in a dict or in nested lists."""
    outputs = list(getattr(model, "outputs", None) or [])
    inputs = list(getattr(model, "inputs", None) or [])
    if isinstance(model, keras.Sequential) or len(outputs) != 1 or len(inputs) != 1:
        return model
    if model.output is outputs[0] and model.input is inputs[0]:
        return model
    return keras.Model(inputs[0], outputs[0], name=model.name)


def input_spec(model: keras.Model, image_fit: ImageFit = STRETCH) -> DataSpec:
    """Derives the size and channels of the images that a model takes from its input shape.

    Args:
        model: Any Keras model.
        image_fit: How images of other proportions are made to fit.

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
    settings = {"image_size": shape[1:3], "channels": shape[3], **asdict(image_fit)}
    return check(DataSpec, settings, "the images of the model")


def class_count(model: keras.Model) -> int:
    """Returns the number of classes a model distinguishes; a single output unit distinguishes two.

    Raises:
        ConfigError: The output is not `[B, units]`.
    """
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) > 1:
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        names = f" named {', '.join(model.output)}" if isinstance(model.output, dict) else ""
        raise ConfigError(
            "a classifier with one output [batch, units]",
            f"{len(outputs)} outputs{names}: {shapes}",
            "save a model of one of them: keras.Model(model.input, OUTPUT)",
        )
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
        options: Pixel scale, head and test-time augmentation.
        interpretation: How pixels enter the model and what its outputs mean; None decides it from the
            options and the model alone, see `service.inference.inspection`.
        with_features: Whether the features of `predict_with_features` are computed.

    Attributes:
        data: Size and channels of the images the model takes.
        classes: Number of classes the model distinguishes.
        interpretation: How pixels enter the model and what its outputs mean.
        feature_layer: Path of the layer that receives the features; empty before the first batch, and
            without features.

    Raises:
        ConfigError: The model is not such a classifier.
    """

    def __init__(
        self,
        model: keras.Model,
        options: PredictOptions = DEFAULT_OPTIONS,
        interpretation: Interpretation | None = None,
        with_features: bool = False,
    ) -> None:
        self.classes = class_count(model)
        self.interpretation = interpretation or interpret_model(model, options)
        self.data = input_spec(model, self.interpretation.image_fit)
        self._shape = (*self.data.image_size, self.data.channels)
        self.feature_layer = ""
        self._has_mirror = options.tta == "flip"
        self._predict = self._compile(model, with_features)

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
        return self.predict_with_features(images, is_real)[0]

    def predict_with_features(self, images: Any, is_real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicts as a call does, and returns float32 features `[n, F]` with the probabilities.

        F is 0 unless the classifier was made `with_features`.

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
        outputs, features = self._predict(tf.convert_to_tensor(images))
        probabilities: np.ndarray = outputs.numpy()[is_real]
        if not np.isfinite(probabilities).all():
            raise ConfigError(
                "finite probabilities from the model",
                "probability=nan",
                "train it again with a smaller learning rate, or check whether --scale fits the model",
            )
        if len(probabilities) and (probabilities.min() < -TOLERANCE or probabilities.max() > 1 + TOLERANCE):
            raise ConfigError(
                "probabilities from 0 to 1, as the outputs are interpreted",
                f"outputs from {probabilities.min():.4g} to {probabilities.max():.4g}",
                "pass --head logits",
            )
        return probabilities, features.numpy()[is_real]

    def _compile(self, model: keras.Model, with_features: bool) -> Any:
        """Compiles a graph from uint8 images `[B, H, W, C]` to probabilities `[B, K]`, features `[B, F]`."""
        interpretation = self.interpretation

        def run(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if not with_features:
                return compute_probabilities(model, interpretation, images), tf.zeros(
                    (tf.shape(images)[0], 0)
                )
            pixels = interpretation.pixels.apply(tf.cast(images, tf.float32))
            outputs, received, self.feature_layer = run_with_features(model, pixels)
            features = _average_positions(tf.cast(received, tf.float32))
            return _to_probabilities(tf.cast(outputs, tf.float32), interpretation), features

        @tf.function(input_signature=[tf.TensorSpec((None, *self._shape), tf.uint8)], autograph=False)
        def predict_batch(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            probabilities, features = run(images)
            if self._has_mirror:
                mirrored, _ = run(images[:, :, ::-1])  # [B, H, W, C], left and right swapped
                probabilities = (probabilities + mirrored) / 2
            return probabilities, features

        return predict_batch


def predict(
    model: keras.Model,
    batches: Iterable[Batch],
    scale: float | None = None,
    interpretation: Interpretation | None = None,
) -> Predictions:
    """Predicts all images of some batches; rows with weight 0 are padding and left out.

    Args:
        model: Classifier, see `Classifier`.
        batches: Batches of one size, so that the graph is compiled once; NumPy arrays or tensors.
        scale: Factor on the pixels, see `PredictOptions`.
        interpretation: How pixels enter the model and what its outputs mean, see `Classifier`.

    Raises:
        ConfigError: The model is not a classifier, or the images or labels do not fit it.
    """
    return _predict_batches(Classifier(model, PredictOptions(scale), interpretation), batches)[0]


def predict_with_features(
    model: keras.Model, batches: Iterable[Batch], images: int, interpretation: Interpretation
) -> tuple[Predictions, Features]:
    """Predicts all images of some batches, and keeps the features of some of them, in one pass.

    Features are kept for at most `MAX_FEATURE_IMAGES` images, and of fewer if the features are large.

    Args:
        model: Classifier, see `Classifier`; a functional or Sequential model.
        batches: Batches of one size; NumPy arrays or tensors.
        images: Number of images in all batches.
        interpretation: How pixels enter the model and what its outputs mean.

    Raises:
        ConfigError: The model is not a classifier, or the images or labels do not fit it.
    """
    classifier = Classifier(model, interpretation=interpretation, with_features=True)
    return _predict_batches(classifier, batches, images)


def _predict_batches(
    classifier: Classifier, batches: Iterable[Batch], images: int = 0
) -> tuple[Predictions, Features]:
    """Predicts all images, and keeps the features of some of them; of none if `images` is 0."""
    probabilities = [np.zeros((0, classifier.classes), np.float32)]
    labels = [np.zeros(0, np.int32)]
    rows = [np.zeros(0, np.int64)]
    features: list[np.ndarray] = []
    indices = [np.zeros(0, np.int64)]
    done = 0
    for batch in batches:
        is_real = np.asarray(batch["weight"]) > 0
        batch_probabilities, batch_features = classifier.predict_with_features(batch["image"], is_real)
        probabilities.append(batch_probabilities)
        labels.append(np.asarray(batch["label"], np.int32)[is_real])
        rows.append(np.asarray(batch["row"], np.int64)[is_real])
        batch_indices = np.arange(done, done + len(batch_features))
        is_kept = _select_evenly(batch_indices, images, batch_features.shape[1])
        features.append(batch_features[is_kept])
        indices.append(batch_indices[is_kept])
        done += len(batch_features)
    truth = np.concatenate(labels)
    if len(truth) and not 0 <= truth.min() <= truth.max() < classifier.classes:
        raise ConfigError(
            f"labels from 0 to {classifier.classes - 1}",
            f"label={truth.max()}",
            "pass --data with the shard set it was trained on",
        )
    values = np.concatenate(features) if features else np.zeros((0, 0), np.float32)
    return (
        Predictions(np.concatenate(probabilities), truth, np.concatenate(rows)),
        Features(values, np.concatenate(indices), classifier.feature_layer),
    )


def _select_evenly(indices: np.ndarray, images: int, size: int) -> np.ndarray:
    """Selects the images whose features are kept, evenly spaced among all.

    Args:
        indices: int64 `[B]`, indices of the images of a batch.
        images: Number of images in all batches.
        size: Number of features of an image.

    Returns:
        bool `[B]`.
    """
    if not images or not size:
        return np.zeros(len(indices), np.bool_)
    count = min(images, MAX_FEATURE_IMAGES, max(MAX_FEATURE_VALUES // size, 1))
    # The image at which the number of images kept so far increases.
    return np.asarray((indices + 1) * count // images > indices * count // images)


def _average_positions(values: tf.Tensor) -> tf.Tensor:
    """Averages feature maps `[B, h, w, C]` or tokens `[B, T, C]` over their positions, to `[B, C]`."""
    if values.shape.rank <= 2:
        return values
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank - 1)))


def compute_probabilities(model: keras.Model, interpretation: Interpretation, images: tf.Tensor) -> tf.Tensor:
    """Maps images of the size of a model to probabilities, in inference mode.

    Args:
        model: Classifier, see `Classifier`.
        interpretation: How pixels enter the model and what its outputs mean.
        images: uint8 `[B, H, W, C]`.

    Returns:
        float32 `[B, K]`, K >= 2; each row sums to 1.
    """
    pixels = interpretation.pixels.apply(tf.cast(images, tf.float32))
    outputs = model(pixels, training=False)
    return _to_probabilities(tf.cast(outputs, tf.float32), interpretation)


def _to_probabilities(outputs: tf.Tensor, interpretation: Interpretation) -> tf.Tensor:
    """Turns the outputs of a model, `[B, units]`, into probabilities `[B, K]`."""
    is_single = outputs.shape[1] == 1
    if interpretation.head == "logits":
        if is_single:
            return tf.concat([tf.sigmoid(-outputs), tf.sigmoid(outputs)], axis=1)
        return tf.nn.softmax(outputs)
    if is_single:
        return tf.concat([1 - outputs, outputs], axis=1)
    if interpretation.is_normalized:
        return outputs
    return outputs / tf.reduce_sum(outputs, axis=1, keepdims=True)
