"""Pretrained bases: their parameters, their preprocessing, and which images they take."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.config import load_config
from service.inference.classifier import load_model
from service.inference.inspection import find_pixel_evidence
from service.inference.interpretation import RAW
from service.models import MODELS, Task, build_model
from service.pretrained import BASES
from service.report.analysis.network import Network
from service.training.optimizers import freeze_layers
from service.training.schedule import list_stages

SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in BASES if name not in ("vgg16", "mobilenetv3small")
]


def task(side: int, classes: int = 2, channels: int = 3) -> Task:
    return Task((side, side, channels), classes, (120.0,) * channels, (60.0,) * channels)


def count(variables: list[keras.Variable]) -> int:
    return sum(int(np.prod(v.shape)) for v in variables)


def test_vgg16_has_the_published_parameters_in_each_stage() -> None:
    model = build_model("vgg16", task(150))
    head_only, with_block5 = list_stages(load_config("vgg16", "shards"))
    counts = []
    for stage in (head_only, with_block5):
        counts.append(count(freeze_layers(model, stage.freeze, stage.train)))
        assert counts[-1] + count(model.non_trainable_variables) == 14_714_688 + 2_097_665
    assert counts == [2_097_665, 2_097_665 + 7_079_424]
    assert with_block5.learning_rate < head_only.learning_rate


@pytest.mark.parametrize("name", ["vgg16", *SLOW[:2]])
def test_pixels_are_preprocessed_as_keras_does(name: str) -> None:
    side = BASES[name].smallest
    model = build_model(name, task(side))
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.float32)
    module = {"vgg16": "vgg16", "xception": "xception", "resnet50v2": "resnet_v2"}[name]
    expected = getattr(keras.applications, module).preprocess_input(images.copy())
    first = next(
        layer for layer in model.layers if layer.weights or isinstance(layer, keras.layers.ZeroPadding2D)
    )
    found = keras.Model(model.input, first.input)(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["vgg16", "mobilenetv3small", *SLOW])
def test_a_saved_model_needs_no_code_of_this_package(name: str, tmp_path: Path) -> None:
    """It loads in safe mode, with its preprocessing, and the report can read every layer."""
    side = BASES[name].smallest
    model = build_model(name, task(side, classes=3))
    images = np.random.default_rng(1).uniform(0, 255, (2, side, side, 3)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    saved = load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(saved(images, training=False), model(images, training=False), atol=1e-6)
    assert find_pixel_evidence(saved).candidates == (RAW,)
    likely = np.asarray(keras.ops.softmax(Network(saved).run(images).logits))
    np.testing.assert_allclose(likely, saved(images, training=False), atol=1e-5)


def test_all_bases_are_registered_and_refuse_images_that_are_too_small() -> None:
    build_model("linear", task(4))
    for name, base in BASES.items():
        assert name in MODELS.names()
        assert hasattr(keras.applications, base.name)
        with pytest.raises(
            ConfigError,
            match=rf"{base.smallest}x{base.smallest} or larger for {name}\. Received: data\.image_size=31x31",
        ):
            build_model(name, task(31))
    with pytest.raises(ConfigError, match=r"images in colour for vgg16\. Received: data\.channels=1"):
        build_model("vgg16", task(64, channels=1))
