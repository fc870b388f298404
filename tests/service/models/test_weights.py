"""Models that start from trained weights: each layer receives its own, or the file is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from training_samples import noise_shards

from pipelines.errors import ConfigError
from service.config import load_config
from service.models import Task, build_model
from service.models.weights import load_weights
from service.pretrained import BASES, cache_path
from service.training.launch import check_can_start

SMALL = "mobilenetv3small"
ROOT = Path(__file__).resolve().parents[3]


def task(side: int = 32, classes: int = 2) -> Task:
    return Task((side, side, 3), classes, (120.0,) * 3, (60.0,) * 3)


@pytest.fixture(scope="module")
def donor() -> keras.Model:
    """A base for ten classes with weights that differ from all initial ones."""
    keras.utils.set_random_seed(7)
    model = build_model(SMALL, task(classes=10))
    draw = np.random.default_rng(0)
    model.set_weights([draw.uniform(0.1, 1, w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def base_weights(model: keras.Model) -> list[np.ndarray]:
    names = [layer.name for layer in model.layers]
    return [w for layer in model.layers[: names.index("features")] for w in layer.get_weights()]


@pytest.mark.parametrize("file", ["model.keras", "base.keras", "base.weights.h5", "base.h5"])
def test_a_file_sets_the_base_and_not_the_head(donor: keras.Model, file: str, tmp_path: Path) -> None:
    """Of a whole model, or of the base alone in each format of Keras."""
    base = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(64, 64, 3))
    base.set_weights(base_weights(donor))
    saved = donor if file == "model.keras" else base
    saved.save_weights(tmp_path / file) if file.endswith(".weights.h5") else saved.save(tmp_path / file)
    model = build_model(SMALL, task(classes=3))
    head = [w.copy() for w in model.get_layer("logits").get_weights()]
    load_weights(model, SMALL, str(tmp_path / file))
    for found, expected in zip(base_weights(model), base_weights(donor), strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(model.get_layer("logits").get_weights(), head, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_any_model_can_start_from_a_saved_one(tmp_path: Path) -> None:
    """With another number of classes, and layers whose names have other numbers."""
    other = Task((28, 28, 1), 4, (30.0,), (70.0,))
    donor = build_model("mnist_cnn", Task((28, 28, 1), 10, (30.0,), (70.0,)))
    donor.save(tmp_path / "model.keras")
    model = build_model("mnist_cnn", other)
    assert donor.layers[2].name != model.layers[2].name
    load_weights(model, "mnist_cnn", str(tmp_path / "model.keras"))
    for layer, expected in zip(model.layers[:-2], donor.layers[:-2], strict=True):
        for found, weights in zip(layer.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(found, weights)
    assert model.get_layer("logits").kernel.shape == (64, 4)


def test_weights_of_another_architecture_are_refused_and_nothing_is_changed(
    donor: keras.Model, tmp_path: Path
) -> None:
    build_model("small_cnn", task()).save(tmp_path / "small.keras")
    keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3)).save_weights(
        tmp_path / "vgg.weights.h5"
    )
    (tmp_path / "junk.h5").write_bytes(b"no HDF5")
    build_model("mnist_cnn", Task((28, 28, 1), 10, (30.0,), (70.0,))).save(tmp_path / "digits.keras")
    model = build_model(SMALL, task())
    before = model.get_weights()
    for file, words in (
        ("small.keras", r"Conv2D 3x3x3x16 as conv\. Received: .*layer 1 with weights is Conv2D 5x5x3x16 16"),
        ("vgg.weights.h5", "weights of mobilenetv3small without its classifier"),
        ("junk.h5", "weights of mobilenetv3small without its classifier"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_weights(model, SMALL, str(tmp_path / file))
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ConfigError, match="layer 5 with weights is missing"):  # one layer short
        load_weights(
            build_model("cats_dogs_small", task(150)), "cats_dogs_small", str(save_convolutions(tmp_path))
        )


def save_convolutions(folder: Path) -> Path:
    """Saves the four convolutions of the small network alone."""
    model = build_model("cats_dogs_small", task(150))
    keras.Model(model.input, model.layers[-4].input).save(folder / "short.keras")
    return folder / "short.keras"


def test_settings_of_weights_are_checked_before_ray_starts(tmp_path: Path) -> None:
    shards = noise_shards(tmp_path / "shards", rows=2, held_out=0)
    (tmp_path / "w.h5").write_bytes(b"")

    def check(*words: str) -> None:
        check_can_start(load_config("demo", shards, list(words)))

    check("weights=none")
    for words, message in (
        (
            ["weights=imagenet"],
            r"weights: imagenet goes with vgg16, .* alone, not with small_cnn",
        ),
        (
            ["weights=imagnet"],
            r"imagenet, none or a file with weights\. Received: weights=/\S+/imagnet \(no such file\)",
        ),
        ([f"weights={tmp_path}/w.h5"], r"a file of weights for small_cnn, \.keras\."),
        (
            ["model=xception", "data.image_size=[70,80]"],
            r"71x71 or larger for xception\. Received: data\.image_size=70x80",
        ),
        (["model=vgg16", "data.channels=1"], "images in colour for vgg16"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(*words)


def test_published_weights_offline_are_a_clear_error_before_ray_starts(tmp_path: Path) -> None:
    shards = noise_shards(tmp_path / "shards", rows=2, held_out=0)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    settings = {**os.environ, **nowhere, "KERAS_HOME": str(tmp_path / "keras"), "PYTHONPATH": str(ROOT)}
    options = ["--preset", "vgg16", "--data", str(shards), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "service.train", *options]
    found = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    assert "Expected the weights of vgg16 that Keras publishes. Received: weights=imagenet (" in found.stderr
    assert f"{tmp_path}/keras/models/{BASES['vgg16'].file}" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("vgg16", SMALL) else pytest.mark.slow) for name in BASES]
)
def test_cached_weights_are_where_keras_puts_them(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keras requests its weights from a download function that records the request."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    asked: list[str] = []

    def get_file(fname: str, origin: str, cache_subdir: str, file_hash: str) -> str:
        asked.extend([f"{cache_subdir}/{fname}", file_hash])
        raise OSError("enough")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(OSError, match="enough"):
        getattr(keras.applications, BASES[name].name)(include_top=False, input_shape=(96, 96, 3))
    assert str(tmp_path / asked[0]) == str(cache_path(name))
    assert len(asked[1]) in (32, 64)
