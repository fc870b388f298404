"""The published networks, to the parameter."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.models import Task, build_model
from service.models.layers import build_logits_model

DIGITS = Task((28, 28, 1), 10, (33.3,), (78.6,))
PHOTOS = Task((150, 150, 3), 2, (124.0, 116.0, 106.0), (66.0, 65.0, 66.0))


@pytest.mark.parametrize(
    ("name", "task", "parameters"),
    [
        ("mnist_mlp", DIGITS, 118_282),
        ("mnist_cnn", DIGITS, 93_322),
        ("cats_dogs_lecture", PHOTOS, 10_641_441),
        ("cats_dogs_lecture_dropout", PHOTOS, 10_641_441),
        ("cats_dogs_small", PHOTOS, 3_453_121),
        ("cats_dogs_small_dropout", PHOTOS, 3_453_121),
    ],
)
def test_parameter_count(name: str, task: Task, parameters: int) -> None:
    assert build_model(name, task).count_params() == parameters


def dropouts(name: str) -> list[tuple[str, float]]:
    """Returns the rate of each dropout with the class of the layer before it."""
    layers = build_model(name, PHOTOS).layers
    return [
        (type(before).__name__, layer.rate)
        for before, layer in pairwise(layers)
        if type(layer).__name__ == "Dropout"
    ]


def test_dropout_is_where_it_was_published() -> None:
    assert dropouts("cats_dogs_lecture_dropout") == [
        ("MaxPooling2D", 0.3),
        ("MaxPooling2D", 0.3),
        ("Dense", 0.1),
    ]
    assert dropouts("cats_dogs_small_dropout") == [("Flatten", 0.5)]


def test_mlp_standardises_by_the_training_set() -> None:
    model = build_model("mnist_mlp", DIGITS)
    standardise = model.get_layer("standardise")
    image = np.full((1, 28, 28, 1), 33.3 + 2 * 78.6, np.float32)
    np.testing.assert_allclose(standardise(image), 2.0, rtol=1e-5)


def test_probabilities_are_the_sigmoid_or_softmax_of_the_logits() -> None:
    images = np.random.default_rng(0).uniform(0, 255, (3, 28, 28, 1)).astype(np.float32)
    many = build_model("mnist_cnn", DIGITS)
    logits = np.asarray(build_logits_model(many)(images))
    np.testing.assert_allclose(many(images), np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-5)
    two = build_model("mnist_cnn", Task((28, 28, 1), 2, (0.0,), (1.0,)))
    assert two.output.shape == (None, 1)
    logits = np.asarray(build_logits_model(two)(images))
    np.testing.assert_allclose(two(images), 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_images_too_small_for_the_model_are_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size=20x20"):
        build_model("cats_dogs_small", Task((20, 20, 3), 2, (0.0,) * 3, (1.0,) * 3))


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="cats_dogs_small"):
        build_model("cats_dog_small", PHOTOS)
