"""VGG16: heatmaps and patterns equal those of the published code, bfloat16 is close, and pages stay small."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from shard_samples import make_record, write_shards

from service.models import Task, build_model
from service.report.analysis.gradcam import CamExtractor
from service.report.analysis.network import Network
from service.report.analysis.patterns import compute_filter_patterns
from service.report.job import render_model_report
from service.report.options import ReportOptions

pytestmark = pytest.mark.slow
LAST_LAYER = "base/block5_conv3"
MIDDLE_LAYER = "base/block3_conv3"


@pytest.fixture(scope="module")
def photos(shared: Path) -> np.ndarray:
    """Returns four of the published test photos, uint8 `[4, 150, 150, 3]`."""
    files = [
        shared / "data" / "samples" / f"{name}.jpg"
        for name in ("cat.1500", "dog.1500", "cat_and_dog", "african_elephant")
    ]
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((150, 150))) for file in files])


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Builds VGG16 with a head, with random weights."""
    keras.utils.set_random_seed(0)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(150, 150, 3), name="base")
    image = keras.Input((150, 150, 3))
    x = keras.layers.GlobalAveragePooling2D()(base(keras.layers.Rescaling(1 / 127.5, -1)(image)))
    return keras.Model(image, keras.layers.Dense(10, activation="softmax")(x))


def compute_published_gradcam(model: keras.Model, image: np.ndarray, label: int) -> tuple[np.ndarray, float]:
    """Computes Grad-CAM of one image as published, with a tape around the head without its softmax.

    Returns:
        The heatmap `[h, w]`, and the largest sum of the absolute values of its terms. They cancel by up to
        a factor of 690, so rounding errors are relative to this sum and not to the heatmap.
    """
    base = model.get_layer("base")
    head = model.layers[-1]
    inner = keras.Model(base.input, [base.get_layer("block5_conv3").output, base.output])
    with tf.GradientTape() as tape:
        values, last = inner(image[None] / np.float32(127.5) - 1)
        logit = (tf.reduce_mean(last, axis=(1, 2)) @ head.kernel + head.bias)[0, label]
    weights = tf.reduce_mean(tape.gradient(logit, values), axis=(1, 2))
    terms = values[0].numpy() * weights[0].numpy()  # [h, w, C]
    return np.maximum(terms.sum(axis=2), 0), float(np.abs(terms).sum(axis=2).max())


def test_heatmaps_equal_the_published_ones_and_bfloat16_is_close(
    model: keras.Model, photos: np.ndarray
) -> None:
    labels = np.array([[3], [1], [4], [9]])
    exact = CamExtractor(Network(model), [LAST_LAYER])(photos, labels).maps[LAST_LAYER, "gradcam"][:, 0]
    for heatmap, image, label in zip(exact, photos, labels[:, 0], strict=True):
        expected, magnitude = compute_published_gradcam(model, image, int(label))
        np.testing.assert_allclose(heatmap, expected, rtol=0, atol=1e-6 * magnitude)
        # The tolerance is far below the heatmap
        assert expected.max() > 1e-3 * magnitude or not expected.any()
    assert exact.any(axis=(1, 2)).sum() >= 2
    signed = []
    for fast in (False, True):
        extractor = CamExtractor(Network(model, fast=fast), [LAST_LAYER], ["signed"])
        signed.append(extractor(photos, labels).maps[LAST_LAYER, "signed"])
    assert np.corrcoef(signed[0].ravel(), signed[1].ravel())[0, 1] >= 0.99
    assert (signed[0] != signed[1]).any()


def test_patterns_equal_the_published_ones(model: keras.Model) -> None:
    network = Network(model)
    filters = [0, 7, 100]
    found = compute_filter_patterns(network, MIDDLE_LAYER, filters)
    base = model.get_layer("base")
    # The layer itself, because gradient ascent amplifies any difference in rounding
    rescaling = model.layers[1]
    inner = keras.Model(base.input, base.get_layer("block3_conv3").output)
    for picture, number in zip(found.images, filters, strict=True):
        image = tf.constant(np.random.default_rng(0).uniform(118, 138, (1, 150, 150, 3)).astype(np.float32))
        for _ in range(20):
            with tf.GradientTape() as tape:
                tape.watch(image)
                loss = tf.reduce_mean(inner(rescaling(image))[..., number])
            gradient = tape.gradient(loss, image)
            image += gradient / tf.sqrt(tf.reduce_mean(tf.square(gradient)))
        assert np.abs(picture - image[0]).max() / 255 <= 1e-4


@pytest.mark.parametrize(("name", "limit"), [("vgg16", 2e6), ("four convolutions", 0.5e6)])
def test_the_pictures_of_an_image_stay_small(
    model: keras.Model, photos: np.ndarray, tmp_path: Path, name: str, limit: float
) -> None:
    if name != "vgg16":
        model = build_model("cats_dogs_small", Task((150, 150, 3), 10, (127.0,) * 3, (64.0,) * 3))
    model.save(tmp_path / "model.keras")
    rows = [make_record(photo, row, f"{row}.png") for row, photo in enumerate(photos)]
    shards = write_shards(tmp_path / "shards", [f"class {n}" for n in range(10)], {"validation": rows})
    options = ReportOptions(patterns=0, trust_images=0)
    page = render_model_report(tmp_path / "model.keras", shards, tmp_path / "out", options)
    sizes: dict[int, int] = {}
    manifest = json.loads((page.parent / "manifest.json").read_text())
    for picture in manifest["pictures"]:
        origin = picture["made_from"][0]
        if "rows" in origin and ("layer" in origin or "method" in origin):
            row = origin["rows"][0]
            sizes[row] = sizes.get(row, 0) + (page.parent / picture["file"]).stat().st_size
    assert len(sizes) == 4
    assert max(sizes.values()) <= limit
    assert max(sizes.values()) > 0.05 * limit
    thumbnails = {picture["file"] for picture in manifest["thumbnails"]}
    first_view = page.stat().st_size + sum((page.parent / file).stat().st_size for file in thumbnails)
    assert first_view <= 250_000
