"""A large network: the tutorials' maps and patterns out of it, how near bfloat16 comes, and how heavy pictures are."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from shard_samples import record, write_shards

from service.models import Task, build_model
from service.report.analysis.gradcam import Heatmaps
from service.report.analysis.network import Network
from service.report.analysis.patterns import patterns
from service.report.job import render_model_report
from service.report.options import ReportOptions

pytestmark = pytest.mark.slow
LAST, MIDDLE = "base/block5_conv3", "base/block3_conv3"


@pytest.fixture(scope="module")
def photos(shared: Path) -> np.ndarray:
    """Four of the published test photos, uint8 `[4, 150, 150, 3]`."""
    files = [
        shared / "data" / "samples" / f"{name}.jpg"
        for name in ("cat.1500", "dog.1500", "cat_and_dog", "african_elephant")
    ]
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((150, 150))) for file in files])


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """VGG16 below a head, of random weights."""
    keras.utils.set_random_seed(0)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(150, 150, 3), name="base")
    image = keras.Input((150, 150, 3))
    x = keras.layers.GlobalAveragePooling2D()(base(keras.layers.Rescaling(1 / 127.5, -1)(image)))
    return keras.Model(image, keras.layers.Dense(10, activation="softmax")(x))


def tutorial(model: keras.Model, image: np.ndarray, label: int) -> np.ndarray:
    """Grad-CAM of one image the published way: the base and the head apart, a tape around the head, its softmax taken off."""
    base, head = model.get_layer("base"), model.layers[-1]
    inner = keras.Model(base.input, [base.get_layer("block5_conv3").output, base.output])
    with tf.GradientTape() as tape:
        values, last = inner(image[None] / np.float32(127.5) - 1)
        logit = (tf.reduce_mean(last, axis=(1, 2)) @ head.kernel + head.bias)[0, label]
    weights = tf.reduce_mean(tape.gradient(logit, values), axis=(1, 2))
    return np.maximum(np.einsum("hwc,c->hw", values[0], weights[0]), 0)


def test_the_tutorials_maps_and_bfloat16s(model: keras.Model, photos: np.ndarray) -> None:
    labels = np.array([[3], [1], [4], [9]])
    exact = Heatmaps(Network(model), [LAST])(photos, labels).maps[LAST, "gradcam"][:, 0]
    for found, image, label in zip(exact, photos, labels[:, 0], strict=True):
        wanted = tutorial(model, image, int(label))
        # terms cancel 24 to 690 times in the map's sum, so a few roundings of float32 are up to 1.4e-5 of its maximum
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * max(wanted.max(), 1e-12))
    assert exact.any(axis=(1, 2)).sum() >= 2
    signed = [
        Heatmaps(Network(model, fast=fast), [LAST], ["signed"])(photos, labels).maps[LAST, "signed"]
        for fast in (False, True)
    ]
    assert np.corrcoef(signed[0].ravel(), signed[1].ravel())[0, 1] >= 0.99
    assert (signed[0] != signed[1]).any()


def test_the_tutorials_patterns(model: keras.Model) -> None:
    network, chosen = Network(model), [0, 7, 100]
    found = patterns(network, MIDDLE, chosen)
    base, rescaling = (
        model.get_layer("base"),
        model.layers[1],
    )  # the same rounding: on its way uphill an image forgets none
    inner = keras.Model(base.input, base.get_layer("block3_conv3").output)
    for picture, number in zip(found.images, chosen, strict=True):
        image = tf.constant(np.random.default_rng(0).uniform(118, 138, (1, 150, 150, 3)).astype(np.float32))
        for _ in range(20):
            with tf.GradientTape() as tape:
                tape.watch(image)
                loss = tf.reduce_mean(inner(rescaling(image))[..., number])
            gradient = tape.gradient(loss, image)
            image += gradient / tf.sqrt(tf.reduce_mean(tf.square(gradient)))
        assert np.abs(picture - image[0]).max() / 255 <= 1e-4


@pytest.mark.parametrize(("name", "limit"), [("vgg16", 2e6), ("four convolutions", 0.5e6)])
def test_how_heavy_an_image_is(
    model: keras.Model, photos: np.ndarray, tmp_path: Path, name: str, limit: float
) -> None:
    if name != "vgg16":
        model = build_model("cats_dogs_small", Task((150, 150, 3), 10, (127.0,) * 3, (64.0,) * 3))
    model.save(tmp_path / "model.keras")
    rows = [record(photo, row, f"{row}.png") for row, photo in enumerate(photos)]
    shards = write_shards(tmp_path / "shards", [f"class {n}" for n in range(10)], {"validation": rows})
    options = ReportOptions(patterns=0, trust_images=0)
    page = render_model_report(tmp_path / "model.keras", shards, tmp_path / "out", options)
    weights: dict[int, int] = {}
    manifest = json.loads((page.parent / "manifest.json").read_text())
    for picture in manifest["pictures"]:
        origin = picture["made_from"][0]
        if "rows" in origin and ("layer" in origin or "method" in origin):
            row = origin["rows"][0]
            weights[row] = weights.get(row, 0) + (page.parent / picture["file"]).stat().st_size
    assert len(weights) == 4
    assert max(weights.values()) <= limit
    assert max(weights.values()) > 0.05 * limit
    thumbnails = sum(
        (page.parent / file).stat().st_size for file in {p["file"] for p in manifest["thumbnails"]}
    )
    assert page.stat().st_size + thumbnails <= 300_000  # the first view
