"""Attention: a layer whose weights and gradients are computed by hand, and rollout of tiny matrices."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from service.report.analysis.attention import (
    compute_attention,
    list_attention_layers,
    roll_out,
    roll_out_gradients,
)
from service.report.analysis.network import Network
from service.report.sections.attention import compute_entropy

L = keras.layers
RNG = np.random.default_rng(0)
SHAPE = (8, 12, 2)  # 2 x 3 patches of 4 x 4 pixels
HEADS = 2
WIDTH = 3


def build_network(has_class_token: bool) -> Network:
    """One attention layer over the patches, then the class token or the mean, then the logits."""
    keras.utils.set_random_seed(1)
    image = keras.Input(SHAPE)
    x = L.Reshape((6, 4))(L.Conv2D(4, 4, strides=4, name="patches")(image))
    if has_class_token:
        x = L.Concatenate(axis=1, name="tokens")([L.Reshape((1, 4))(L.GlobalAveragePooling1D()(x)), x])
    else:
        x = L.LayerNormalization(name="tokens")(x)
    y = L.MultiHeadAttention(HEADS, WIDTH, name="attention")(x, x)
    vector = y[:, 0] if has_class_token else L.GlobalAveragePooling1D()(y)
    model = keras.Model(image, L.Dense(2, name="logits")(vector))
    model.set_weights([RNG.normal(size=weight.shape) * 0.5 for weight in model.weights])
    return Network(model, 1 / 255, head="logits")


def compute_by_hand(network: Network, images: np.ndarray, has_class_token: bool, label: int):
    """The attention weights `[N, heads, T, T]`, and the gradients of a logit with respect to them."""
    trace = network.run(images)
    tokens = np.asarray(trace.outputs["tokens"], np.float64)  # [N, T, 4]
    layer = network.model.get_layer("attention")
    weights = [weight.numpy().astype(np.float64) for weight in layer.weights]
    query, query_bias, key, key_bias, value, value_bias, out, _ = weights  # kernels [4, heads, WIDTH]
    queries = np.einsum("ntc,chd->nhtd", tokens, query) + query_bias[:, None]
    keys = np.einsum("ntc,chd->nhtd", tokens, key) + key_bias[:, None]
    values = np.einsum("ntc,chd->nhtd", tokens, value) + value_bias[:, None]
    scores = np.exp(np.einsum("nhid,nhjd->nhij", queries, keys) / np.sqrt(WIDTH))
    attention = scores / scores.sum(axis=-1, keepdims=True)
    head = network.model.get_layer("logits").kernel.numpy()[:, label]
    effects = np.einsum("nhjd,hdc,c->nhj", values, out, head)  # of attending to token j
    count = tokens.shape[1]
    share = np.eye(count)[0] if has_class_token else np.full(count, 1 / count)  # of row i in the vector
    return attention, effects[:, :, None, :] * share[:, None]


@pytest.mark.parametrize("has_class_token", [False, True])
def test_attention_and_its_gradients_are_those_computed_by_hand(has_class_token):
    network = build_network(has_class_token)
    images = RNG.integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    largest = 0.0
    for label in (0, 1):
        attention = compute_attention(network, images, np.full(3, label))
        assert attention is not None
        assert attention.layers == ("attention",)
        weights, gradients = compute_by_hand(network, images, has_class_token, label)
        rows = weights[:, :, 0] if has_class_token else weights.mean(axis=2)  # [N, heads, T]
        expected = rows[..., int(has_class_token) :].reshape(3, HEADS, 2, 3)
        np.testing.assert_allclose(attention.heads[0], expected, rtol=1e-4)

        relevance = np.maximum(weights * gradients, 0).mean(axis=1)  # [N, T, T]
        rows = relevance[:, 0] if has_class_token else relevance.mean(axis=1)
        expected = rows[:, int(has_class_token) :].reshape(3, 2, 3)
        np.testing.assert_allclose(attention.gradient_rollout, expected, rtol=1e-3, atol=1e-7)
        largest = max(largest, expected.max())
    assert largest > 0


FIRST = np.array([[0.5, 0.5], [0.0, 1.0]])[None, None]  # [N, heads, T, T]
SECOND = np.array([[1.0, 0.0], [1.0, 0.0]])[None, None]


def test_rollout_multiplies_the_layers_with_their_residuals():
    first = [[0.75, 0.25], [0.0, 1.0]]
    np.testing.assert_allclose(roll_out([FIRST])[0], first)
    # 0.5 * [[1, 0], [1, 0]] + 0.5 * [[1, 0], [0, 1]], times the first layer
    np.testing.assert_allclose(roll_out([FIRST, SECOND])[0], [[0.75, 0.25], [0.375, 0.625]])
    two_heads = np.concatenate([FIRST, SECOND], axis=1)
    mean = roll_out([(FIRST + SECOND) / 2])
    np.testing.assert_allclose(roll_out([two_heads]), mean)


def test_gradients_select_what_raises_the_logit():
    gradients = np.array([[2.0, -1.0], [3.0, 1.0]])[None, None]
    # Positive products only: [[1, 0], [0, 1]]; the identity before the first layer is not counted.
    np.testing.assert_allclose(roll_out_gradients([FIRST], [gradients])[0], [[1, 0], [0, 1]])
    # R = I + [[1, 0], [0, 1]] = 2 I, then R + [[0, 0], [1, 0]] R, minus I
    second = np.array([[0.0, 5.0], [1.0, 0.0]])[None, None]
    relevance = roll_out_gradients([FIRST, SECOND], [gradients, second])[0]
    np.testing.assert_allclose(relevance, [[1, 0], [2, 1]])


def test_networks_without_attention_over_patches_have_no_maps():
    image = keras.Input(SHAPE)
    vector = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(image))
    network = Network(keras.Model(image, L.Dense(2)(vector)), head="logits")
    assert list_attention_layers(network) == []
    assert compute_attention(network, np.zeros((1, *SHAPE), np.uint8), np.array([0])) is None


def test_the_entropy_of_attention_is_a_share_of_the_largest():
    even = np.full((1, 1, 2, 2), 0.25)
    one = np.array([[[[1.0, 0.0], [0.0, 0.0]]]])
    two = np.array([[[[0.5, 0.5], [0.0, 0.0]]]])
    assert [compute_entropy(maps) for maps in (even, one, two)] == pytest.approx([1.0, 0.0, 0.5])
