"""ResNet-50 against its published numbers, and its options."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.models import Task, build_model

IMAGENET = Task((224, 224, 3), 1000, (123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
SMALL = Task((32, 32, 3), 5, (0.0,) * 3, (1.0,) * 3)
LAST_BLOCKS = ("stage1_block3", "stage2_block4", "stage3_block6", "stage4_block3")


@pytest.fixture(scope="module")
def resnet50() -> keras.Model:
    return build_model("resnet50", IMAGENET)


def test_resnet50_has_the_published_parameters_and_feature_maps(resnet50: keras.Model) -> None:
    assert sum(int(np.prod(v.shape)) for v in resnet50.trainable_variables) == 25_557_032
    ends = [resnet50.get_layer(f"{block}_sum").output.shape[1:] for block in LAST_BLOCKS]
    assert ends == [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]


def test_the_stride_is_in_the_3x3_convolution(resnet50: keras.Model) -> None:
    strides = [resnet50.get_layer(f"stage2_block1_{name}").strides[0] for name in ("conv1", "conv2", "conv3")]
    assert strides == [1, 2, 1]


def test_initial_weights_are_those_of_the_papers(resnet50: keras.Model) -> None:
    kernel = resnet50.get_layer("stage4_block2_conv2").kernel
    assert float(keras.ops.std(kernel)) == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    assert float(keras.ops.std(resnet50.get_layer("logits").kernel)) == pytest.approx(0.01, rel=0.01)
    gammas = {v.path: float(keras.ops.max(v)) for v in resnet50.trainable_variables if v.name == "gamma"}
    zeros = {path for path, value in gammas.items() if value == 0.0}
    assert zeros == {path for path in gammas if "conv3_norm" in path}
    assert len(zeros) == 16


def test_images_are_padded_alike_on_both_sides() -> None:
    model = build_model("resnet50", SMALL)
    stem = model.get_layer("stem")
    kernel = np.zeros(stem.kernel.shape, np.float32)
    kernel[3, 3, 0, 0] = 1.0  # the center of a 7x7 kernel shows every other pixel, from the first one on
    stem.kernel.assign(kernel)
    images = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    shown = keras.Model(model.input, stem.output)(images)[0, :, :, 0]
    np.testing.assert_allclose(shown, images[0, ::2, ::2, 0], rtol=1e-6)


def test_stochastic_depth_rises_linearly_and_drops_whole_blocks() -> None:
    model = build_model("resnet50", SMALL, options={"stochastic_depth": 0.6, "zero_gamma": False})
    drops = [layer for layer in model.layers if layer.name.endswith("_depth")]
    np.testing.assert_allclose([layer.rate for layer in drops], 0.6 * np.arange(1, 16) / 15)
    features = np.ones((200, 2, 2, 3), np.float32)
    dropped = np.asarray(drops[-1](features, training=True)).reshape(200, -1)
    assert all(len(set(image)) == 1 for image in dropped.tolist())
    assert set(np.round(dropped[:, 0], 5).tolist()) == {0.0, 2.5}  # 1 / (1 - 0.6)
    assert 0.5 < (dropped[:, 0] == 0).mean() < 0.7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {"depth": 3}, "model_options.depth=3. Fix: use zero_gamma or stochastic_depth"),
        ("resnet50", {"zero_gamma": 1}, "a value of type bool. Received: model_options.zero_gamma=1"),
        ("small_cnn", {"depth": 3}, "Fix: leave model_options out"),
        ("file.py:build", {"depth": 3}, "Expected options of a model of this package"),
    ],
)
def test_unknown_options_are_errors(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_model(name, SMALL, options=options)
    assert message in str(error.value)
