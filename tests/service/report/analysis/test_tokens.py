"""Tokens of transformers: arranged as the patches of the image, and explained like feature maps."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from service.report.analysis.activations import compute_activations
from service.report.analysis.forward import choose_heatmap_layers
from service.report.analysis.gradcam import METHODS, CamExtractor
from service.report.analysis.linear_probes import fit_linear_probes
from service.report.analysis.network import Network, find_token_layout

L = keras.layers
RNG = np.random.default_rng(0)
SHAPE = (8, 12, 2)  # 2 x 3 patches of 4 x 4 pixels


@pytest.mark.parametrize(
    ("tokens", "grid", "layout"),
    [
        (6, (2, 3), (2, 3, 0)),
        (7, (2, 3), (2, 3, 1)),
        (10, (2, 3), (2, 3, 4)),
        (49, (7, 7), (7, 7, 0)),
        (197, (14, 14), (14, 14, 1)),
        (49, None, (7, 7, 0)),
        (50, None, (7, 7, 1)),
        (50, (5, 4), (7, 7, 1)),
        (12, (2, 3), None),  # six tokens too many
        (1, None, None),
        (2, None, None),
    ],
)
def test_the_layout_of_tokens_is_that_of_the_patches(tokens, grid, layout):
    assert find_token_layout(tokens, grid) == layout


def build_pair() -> tuple[Network, Network]:
    """Two networks that compute the same: one with tokens, one with feature maps."""
    image = keras.Input(SHAPE)
    patches = L.Conv2D(3, 4, strides=4, name="patches")(image)
    tokens = L.Reshape((6, 3))(patches)
    hidden = L.Dense(5, activation="relu", name="hidden")(L.LayerNormalization(name="norm")(tokens))
    vector = L.GlobalAveragePooling1D(name="mean")(hidden)
    with_tokens = keras.Model(image, L.Dense(3, name="logits")(vector))

    image = keras.Input(SHAPE)
    patches = L.Conv2D(3, 4, strides=4, name="patches")(image)
    hidden = L.Conv2D(5, 1, activation="relu", name="hidden")(L.LayerNormalization(name="norm")(patches))
    vector = L.GlobalAveragePooling2D(name="mean")(hidden)
    with_maps = keras.Model(image, L.Dense(3, name="logits")(vector))

    weights = [RNG.normal(size=weight.shape) for weight in with_tokens.weights]
    with_tokens.set_weights(weights)
    with_maps.set_weights([w.reshape(m.shape) for w, m in zip(weights, with_maps.weights, strict=True)])
    return Network(with_tokens, head="logits"), Network(with_maps, head="logits")


@pytest.fixture(scope="module")
def pair() -> tuple[Network, Network]:
    return build_pair()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return RNG.integers(0, 256, (4, *SHAPE)).astype(np.uint8)


def test_tokens_are_listed_and_drawn_like_feature_maps(pair, images):
    tokens, maps = pair
    by_name = {layer.name: layer for layer in tokens.layers}
    assert [by_name[name].shape for name in ("norm", "hidden")] == [(2, 3, 3), (2, 3, 5)]
    assert by_name["hidden"].has_tokens
    assert not by_name["patches"].has_tokens
    of_tokens = compute_activations(tokens, images)
    of_maps = compute_activations(maps, images)
    for name in ("norm", "hidden"):
        np.testing.assert_allclose(of_tokens[name].tiles, of_maps[name].tiles, atol=1)
        np.testing.assert_allclose(of_tokens[name].mean_activation, of_maps[name].mean_activation, rtol=1e-4)
        np.testing.assert_allclose(of_tokens[name].sparsity, of_maps[name].sparsity)


def test_heatmaps_of_tokens_are_those_of_the_feature_map(pair, images):
    tokens, maps = pair
    assert tokens.last_feature_map.name == maps.last_feature_map.name == "hidden"
    classes = np.array([[0, 2], [1, 0], [2, 1], [0, 1]])
    results = [
        CamExtractor(network, ["hidden", "norm"], METHODS, 2)(images, classes) for network in (tokens, maps)
    ]
    for key, values in results[0].maps.items():
        assert values.shape == (4, 2, 2, 3)
        np.testing.assert_allclose(values, results[1].maps[key], rtol=1e-3, atol=1e-5)


def test_probes_of_tokens_are_those_of_the_feature_map(pair):
    images = RNG.integers(0, 256, (40, *SHAPE)).astype(np.uint8)
    labels = np.arange(40) % 3
    results = [fit_linear_probes(network, images, labels, 24) for network in pair]
    for of_tokens, of_maps in zip(*results, strict=True):
        assert of_tokens.layer == of_maps.layer
        assert of_tokens.explained_variance == pytest.approx(of_maps.explained_variance, rel=1e-3, abs=1e-6)


def build_block(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    normalized = L.LayerNormalization(name=f"{name}_norm")(x)
    attended = L.MultiHeadAttention(2, 2, name=f"{name}_attention")(normalized, normalized)
    return L.Add(name=f"{name}_sum")([x, attended])


def transformer(has_class_token: bool) -> Network:
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    x = L.Reshape((6, 4))(L.Conv2D(4, 4, strides=4, name="patches")(image))
    if has_class_token:
        first = L.Reshape((1, 4))(L.GlobalAveragePooling1D()(x))
        x = L.Concatenate(axis=1, name="with_class")([first, x])
    for number in (1, 2):
        x = build_block(x, f"block{number}")
    x = L.LayerNormalization(name="last")(x)
    vector = x[:, 0] if has_class_token else L.GlobalAveragePooling1D()(x)
    return Network(keras.Model(image, L.Dense(2)(vector)), 1 / 255, head="logits")


@pytest.mark.parametrize(("has_class_token", "last"), [(False, "last"), (True, "block2_norm")])
def test_the_last_feature_map_of_a_transformer_reaches_the_logits(has_class_token, last, images):
    network = transformer(has_class_token)
    assert network.last_feature_map.name == last
    assert network.find_layer("block1_attention").shape == (2, 3, 4)
    (signed,) = CamExtractor(network, [last], ["signed"])(images, np.ones((4, 1), np.int64)).maps.values()
    assert np.abs(signed).max() > 0
    names = choose_heatmap_layers(network, 3)
    assert names[0] == last
    assert set(names[1:]) <= {"block1_sum", "block2_sum", "patches"}
    assert len(names) == 3


def test_a_class_token_is_left_out_of_the_map(images):
    network = transformer(has_class_token=True)
    layer = network.find_layer("block1_sum")
    assert layer.extra_tokens == 1
    tokens = RNG.normal(size=(4, 7, 4)).astype(np.float32)
    arranged = layer.arrange(tokens).numpy()
    assert arranged.shape == (4, 2, 3, 4)
    np.testing.assert_array_equal(arranged[:, 1, 2], tokens[:, 6])
    np.testing.assert_array_equal(arranged[:, 0, 1], tokens[:, 2])


def test_sequences_that_are_no_patches_and_windows_of_the_batch_are_not_layers():
    image = keras.Input(SHAPE)
    patches = L.Conv2D(4, 4, strides=4, name="patches")(image)
    rows = L.Reshape((2, 12), name="rows")(patches)
    windows = keras.ops.reshape(patches, (-1, 3, 4))  # each row of patches becomes an item of the batch
    merged = keras.ops.reshape(L.Dense(4, name="windows")(windows), (-1, 6, 4))
    vector = L.Concatenate()([L.Flatten()(L.Dense(2, name="per_row")(rows)), L.Flatten()(merged)])
    network = Network(keras.Model(image, L.Dense(2, name="logits")(vector)), head="logits")
    names = [layer.name for layer in network.layers]
    assert "windows" not in names
    assert "per_row" not in names
    assert {"patches", "logits"} <= set(names)
