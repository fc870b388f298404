"""The demo network: shapes, input range, and a task that it learns and a linear model does not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.sources.synthetic import SyntheticSource
from service.models import Task, build_model

keras = pytest.importorskip("keras")


def task(side: int = 64, classes: int = 2, channels: int = 3) -> Task:
    return Task((side, side, channels), classes, (128.0,) * channels, (64.0,) * channels)


@pytest.mark.parametrize("name", ["small_cnn", "linear"])
@pytest.mark.parametrize(("classes", "units"), [(2, 1), (3, 3), (10, 10)])
def test_probabilities(name: str, classes: int, units: int) -> None:
    model = build_model(name, task(32, classes, channels=1))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1)).astype(np.uint8)
    probabilities = np.asarray(model(images))
    assert probabilities.shape == (3, units)
    assert np.all((probabilities > 0) & (probabilities < 1))
    if classes > 2:
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["small_cnn", "linear"])
def test_the_model_itself_standardizes_each_channel(name: str) -> None:
    model = build_model(name, Task((32, 32, 3), 2, (100.0, 50.0, 7.0), (50.0, 25.0, 0.0)))
    scaled = keras.Model(model.input, model.get_layer("standardized").output)
    image = np.tile(np.array([200.0, 0.0, 7.0], np.float32), (1, 32, 32, 1))
    np.testing.assert_allclose(scaled(image)[0, 0, 0], [2.0, -2.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(("side", "expected"), [(32, 4), (64, 8), (75, 9), (96, 12)])
def test_the_last_map_is_an_eighth_of_the_side(side: int, expected: int) -> None:
    model = build_model("small_cnn", task(side))
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert convolutions[-1].output.shape[1:3] == (expected, expected)
    # No statistics that depend on the number of workers
    assert all(not layer.non_trainable_variables for layer in model.layers)


def test_the_cnn_is_invariant_to_shifts_by_whole_cells() -> None:
    """Cells are those of the last feature map, away from the edges. The linear model is not invariant."""
    images = np.full((2, 96, 96, 3), 127.5, np.float32)
    patch = np.random.default_rng(0).uniform(0, 255, (8, 8, 3))
    images[0, 40:48, 40:48] = patch
    images[1, 48:56, 32:40] = patch
    cnn, linear = (np.asarray(build_model(name, task(96))(images))[:, 0] for name in ("small_cnn", "linear"))
    assert cnn[0] == pytest.approx(cnn[1], abs=1e-6)
    assert abs(linear[0] - linear[1]) > 1e-4


def decode(source: SyntheticSource, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[N, 64, 64, 3]` and labels float32 `[N, 1]`."""
    examples = list(source.read(split, 0, source.counts()[split]))
    images = [
        np.asarray(Image.open(io.BytesIO(example.image)).resize((64, 64), Image.Resampling.BILINEAR))
        for example in examples
    ]
    return np.stack(images), np.array([[example.label] for example in examples], np.float32)


@pytest.mark.slow
def test_the_synthetic_task_needs_more_than_a_linear_model() -> None:
    source = SyntheticSource("evidence")
    train = decode(source, "train")
    validation = decode(source, "validation")
    best = {}
    for name, rate, epochs in (("linear", 3e-4, 10), ("small_cnn", 2e-3, 12)):
        keras.utils.set_random_seed(0)
        model = build_model(name, task())
        model.compile(keras.optimizers.Adam(rate), keras.losses.BinaryCrossentropy(), metrics=["accuracy"])
        history = model.fit(
            *train, batch_size=32, epochs=epochs, validation_data=validation, verbose=0
        ).history
        best[name] = max(history["val_accuracy"])
    assert best["linear"] < 0.70
    assert best["small_cnn"] > 0.90
