"""Class activation maps: closed forms, analytic networks whose maps are known, and another library's answer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.report.analysis.gradcam import BATCH, METHODS, CamExtractor, compute_cam
from service.report.analysis.network import Network
from service.report.drawing import heatmap

L = keras.layers
RNG = np.random.default_rng(0)


def pooled(classes: int = 4, end: str = "softmax", size: tuple[int, int] = (12, 9)) -> keras.Model:
    """Convolutions, global average, one dense layer: its class activation map has a closed form (Zhou et al., 2016)."""
    keras.utils.set_random_seed(3)
    maps = [
        L.Conv2D(6, 3, activation="relu", name="first"),
        L.MaxPooling2D(),
        L.Conv2D(5, 3, padding="same", activation="relu", name="last"),
    ]
    return keras.Sequential(
        [
            L.Input((*size, 3)),
            *maps,
            L.GlobalAveragePooling2D(),
            L.Dense(classes, activation=end, name="answer"),
        ]
    )


def images(count: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape)).astype(np.uint8)


def test_average_and_dense_layer_make_grad_cam_the_class_activation_map():
    network = Network(pooled(), 1 / 255)
    batch, labels = images(5, 12, 9, 3), np.array([[0, 3], [1, 2], [2, 2], [3, 0], [1, 1]])
    trace = network.run(batch)
    values, kernel = (
        trace.outputs["last"].numpy().astype(np.float64),
        network.model.get_layer("answer").kernel.numpy(),
    )
    closed = np.einsum("bhwc,bmc->bmhw", values, kernel.T[labels]) / (values.shape[1] * values.shape[2])
    seen = CamExtractor(network, ["last"], ["gradcam", "signed"], classes=2)(batch, labels)
    np.testing.assert_allclose(seen.maps["last", "signed"], closed, atol=1e-7)
    np.testing.assert_allclose(seen.maps["last", "gradcam"], np.maximum(closed, 0), atol=1e-7)
    assert (closed < -1e-4).any()
    np.testing.assert_allclose(seen.logits, trace.logits, rtol=1e-6)


def test_one_unit_speaks_for_class_1_and_against_class_0():
    network, batch = Network(pooled(1, "sigmoid"), 1 / 255), images(3, 12, 9, 3)
    maps = CamExtractor(network, ["last"], ["signed"], classes=2)(batch, np.array([[0, 1]] * 3)).maps[
        "last", "signed"
    ]
    np.testing.assert_allclose(maps[:, 0], -maps[:, 1], rtol=1e-6)
    kernel, values = (
        network.model.get_layer("answer").kernel.numpy()[:, 0],
        network.run(batch).outputs["last"].numpy(),
    )
    np.testing.assert_allclose(
        maps[:, 1], values @ kernel / values[0, ..., 0].size / 2, atol=1e-7
    )  # the logits are -z/2 and z/2


def test_a_network_that_looks_for_one_bright_place_finds_it_and_nothing_else():
    """Channel 0 passes brightness on, channel 1 its lower right neighbour; class 1 counts channel 0, class 0 channel 1."""
    model = keras.Sequential(
        [
            L.Input((5, 7, 1)),
            L.Conv2D(2, 3, padding="same", use_bias=False, name="maps"),
            L.GlobalAveragePooling2D(),
            L.Dense(2),
        ]
    )
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[1, 1, 0, 0] = kernel[2, 2, 0, 1] = 1
    model.set_weights([kernel, np.array([[-1.0, 2.0], [3.0, 0.0]]), np.zeros(2)])
    batch = np.zeros((2, 5, 7, 1), np.uint8)
    batch[0, 1, 5], batch[1, 3, 2] = 100, 200
    seen = CamExtractor(Network(model), ["maps"], METHODS, classes=2)(batch, np.array([[1, 0]] * 2))
    for method, one, other in (("gradcam", 200, 300), ("gradcam++", None, None), ("layercam", 200, 300)):
        maps = seen.maps["maps", method] * 35  # the average divides by the 35 places
        for n, (row, column, brightness) in enumerate([(1, 5, 1), (3, 2, 2)]):
            places = [np.argwhere(maps[n, m] > 1e-3).tolist() for m in (0, 1)]
            assert places == [[[row, column]], [[row - 1, column - 1]]], method
            if one:
                np.testing.assert_allclose(maps[n, 0].max(), one * brightness, rtol=1e-5)
                np.testing.assert_allclose(maps[n, 1].max(), other * brightness, rtol=1e-5)


def test_sure_answers_have_maps_too():
    model = pooled()
    weights = model.get_layer("answer").get_weights()
    batch = images(16, 12, 9, 3)
    of = np.asarray(model(batch / 255.0)).argmax(axis=1)[:, None]
    model.get_layer("answer").set_weights([w * 4000 for w in weights])
    highest = np.asarray(model(batch / 255.0)).max(axis=1)
    assert (highest > 1 - 1e-6).mean() > 0.5  # behind softmax hardly any gradient is left
    sure = CamExtractor(Network(model, 1 / 255), ["last"])(batch, of).maps["last", "gradcam"]
    model.get_layer("answer").set_weights(weights)
    unsure = CamExtractor(Network(model, 1 / 255), ["last"])(batch, of).maps["last", "gradcam"]
    np.testing.assert_allclose(sure, unsure * 4000, rtol=1e-4, atol=1e-4)


def test_chunks_of_a_long_batch_keep_their_order():
    network = Network(pooled(), 1 / 255)
    batch, labels = images(BATCH + 3, 12, 9, 3), RNG.integers(0, 4, (BATCH + 3, 1))
    heatmaps = CamExtractor(
        network,
        ["first", "last"],
        extra_outputs=lambda trace: {"mean": tf.reduce_mean(trace.outputs["first"], axis=(1, 2, 3))},
    )
    whole = heatmaps(batch, labels)
    for n in (0, BATCH - 1, BATCH, BATCH + 2):
        one = heatmaps(batch[n : n + 1], labels[n : n + 1])
        np.testing.assert_allclose(
            whole.maps["first", "gradcam"][n], one.maps["first", "gradcam"][0], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(whole.extras["mean"][n], one.extras["mean"][0], rtol=1e-5)


def test_grad_cam_plus_plus_is_its_papers_formula():
    values, gradients = np.maximum(RNG.normal(size=(3, 4, 5, 6)), 0), RNG.normal(size=(3, 4, 5, 6))
    gradients[0, ..., 0], values[1, ..., 2] = 0, 0
    e = np.exp(RNG.normal(size=(3, 1, 1, 1)))  # of the logit: the paper derives exp(logit)
    first, second, third = e * gradients, e * gradients**2, e * gradients**3
    below = 2 * second + third * values.sum(axis=(1, 2), keepdims=True)
    alphas = np.divide(second, below, out=np.zeros_like(second), where=second != 0)
    total = alphas.sum(axis=(1, 2), keepdims=True)
    alphas = np.divide(alphas, total, out=np.zeros_like(alphas), where=total != 0)
    weights = (alphas * np.maximum(first, 0)).sum(axis=(1, 2), keepdims=True)
    wanted = np.maximum((weights * values).sum(axis=-1), 0) / e[..., 0]
    found = compute_cam(tf.constant(values, tf.float32), tf.constant(gradients, tf.float32), "gradcam++")
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-4 * wanted.max())


def test_another_library_finds_the_same_maps():
    gradcam = pytest.importorskip("tf_keras_vis.gradcam")
    plus = pytest.importorskip("tf_keras_vis.gradcam_plus_plus")
    layercam = pytest.importorskip("tf_keras_vis.layercam")
    model = pooled(end="linear")
    functional = keras.Model(model.inputs, model.outputs)
    batch, labels = images(6, 12, 9, 3), np.array([0, 1, 2, 3, 1, 0])
    ours = CamExtractor(Network(model, 1 / 255), ["first", "last"], METHODS)(batch, labels[:, None]).maps
    peers = {"gradcam": gradcam.Gradcam, "gradcam++": plus.GradcamPlusPlus, "layercam": layercam.Layercam}
    for (layer, method), maps in ours.items():
        score = lambda outputs: [outputs[n, label] for n, label in enumerate(labels)]  # noqa: E731
        theirs = np.asarray(
            peers[method](functional)(score, batch / 255.0, penultimate_layer=layer, expand_cam=False)
        )
        assert maps[:, 0].any(axis=(1, 2)).mean() >= 0.5
        np.testing.assert_allclose(
            ranged(maps[:, 0]), ranged(theirs), atol=1e-5, err_msg=f"{method} of {layer}"
        )


def ranged(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


def test_heat_is_drawn_where_it_is():
    values = np.zeros((4, 2), np.float32)
    values[0, 1] = 2
    drawn = heatmap.quantize_heatmap(values, (4, 2))
    assert drawn.shape == (96, 48)
    assert (drawn[:12, 36:] == 253).all()  # beyond the centre of the outermost cell nothing is extrapolated
    assert (drawn[48:] == 0).all()
    assert (drawn[:12, :12] == 0).all()
    np.testing.assert_array_equal(heatmap.quantize_heatmap(values, (4, 2), limit=4.0)[:12, 36:], 126)
    assert not heatmap.quantize_heatmap(np.zeros((2, 2), np.float32), (9, 9)).any()
    assert [heatmap.describe_peak(v) for v in (values, values[::-1], np.zeros((2, 2)), np.eye(3)[1:2].T)] == [
        "brightest in the upper right",
        "brightest in the lower right",
        "empty",
        "brightest in the centre",
    ]
