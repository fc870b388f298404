"""The graph of an export: from decoded images to probabilities, with all preprocessing inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from pipelines.spec import DataSpec
from service.export.fit import fit_images
from service.export.formats import ANY_SIZE, FITTED
from service.inference.classifier import compute_probabilities, input_spec
from service.inference.interpretation import Interpretation

IMAGES = "images"
PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class ExportedModel:
    """A model with what it needs to classify decoded images.

    Attributes:
        model: Model of the run.
        interpretation: How pixels enter the model and what its outputs mean.
        classes: Class names in the order of the probabilities.
    """

    model: keras.Model
    interpretation: Interpretation
    classes: tuple[str, ...]

    @property
    def data(self) -> DataSpec:
        """Size and channels of the images that the model takes, and how others are made to fit."""
        return input_spec(self.model, self.interpretation.image_fit)

    def predict_fitted(self, images: tf.Tensor) -> tf.Tensor:
        """Maps fitted images, uint8 `[B, H, W, C]`, to probabilities, float32 `[B, K]`."""
        return compute_probabilities(self.model, self.interpretation, images)

    def predict_any_size(self, images: tf.Tensor) -> tf.Tensor:
        """Maps images of any size, uint8 `[B, h, w, C]`, to probabilities, float32 `[B, K]`."""
        return self.predict_fitted(fit_images(images, self.data))

    def build_entry(self, name: str) -> Any:
        """Builds the function of an entry, from `images` to a dict of `probabilities`.

        Args:
            name: `ANY_SIZE` or `FITTED`.
        """
        data = self.data
        predict = {ANY_SIZE: self.predict_any_size, FITTED: self.predict_fitted}[name]
        size = (None, None) if name == ANY_SIZE else data.image_size
        signature = tf.TensorSpec((None, *size, data.channels), tf.uint8, name=IMAGES)

        def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return {PROBABILITIES: predict(images)}

        return tf.function(run, input_signature=[signature], autograph=False)

    def build_module(self, entries: Sequence[str]) -> tf.Module:
        """Builds a module that owns the variables of the model, and a function for each entry by its name."""
        module = tf.Module()
        module.weights = [variable.value for variable in self.model.variables]
        for name in entries:
            setattr(module, name, self.build_entry(name))
        return module
