"""Class activation maps: closed forms, networks whose maps are known, and the maps of another library."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.report.analysis.gradcam import BATCH, METHODS, CamExtractor, compute_cam
from service.report.analysis.network import Network

L = keras.layers
RNG = np.random.default_rng(0)


def pooling_model(classes: int = 4, activation: str = "softmax") -> keras.Model:
    """Convolutions, global average pooling, dense: its maps have a closed form (Zhou et al., 2016)."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            L.Input((12, 9, 3)),
            L.Conv2D(6, 3, activation="relu", name="first"),
            L.MaxPooling2D(),
            L.Conv2D(5, 3, padding="same", activation="relu", name="last"),
            L.GlobalAveragePooling2D(),
            L.Dense(classes, activation=activation, name="predictions"),
        ]
    )


def random_images(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 12, 9, 3)).astype(np.uint8)


def test_grad_cam_before_average_pooling_is_the_class_activation_map():
    network = Network(pooling_model(), 1 / 255)
    images = random_images(5)
    labels = np.array([[0, 3], [1, 2], [2, 2], [3, 0], [1, 1]])
    trace = network.run(images)
    values = trace.outputs["last"].numpy().astype(np.float64)  # [B, h, w, C]
    kernel = network.model.get_layer("predictions").kernel.numpy()  # [C, K]
    positions = values.shape[1] * values.shape[2]
    expected = np.einsum("bhwc,bmc->bmhw", values, kernel.T[labels]) / positions
    result = CamExtractor(network, ["last"], ["gradcam", "signed"], classes=2)(images, labels)
    np.testing.assert_allclose(result.maps["last", "signed"], expected, atol=1e-7)
    np.testing.assert_allclose(result.maps["last", "gradcam"], np.maximum(expected, 0), atol=1e-7)
    assert (expected < -1e-4).any()
    np.testing.assert_allclose(result.logits, trace.logits, rtol=1e-6)


def test_maps_of_a_single_unit_are_opposite_for_both_classes():
    network = Network(pooling_model(1, "sigmoid"), 1 / 255)
    images = random_images(3)
    result = CamExtractor(network, ["last"], ["signed"], classes=2)(images, np.array([[0, 1]] * 3))
    maps = result.maps["last", "signed"]
    np.testing.assert_allclose(maps[:, 0], -maps[:, 1], rtol=1e-6)
    kernel = network.model.get_layer("predictions").kernel.numpy()[:, 0]
    values = network.run(images).outputs["last"].numpy()
    positions = values.shape[1] * values.shape[2]
    # The logits of a unit z are -z/2 and z/2.
    np.testing.assert_allclose(maps[:, 1], values @ kernel / positions / 2, atol=1e-7)


def test_maps_mark_the_one_bright_pixel_and_nothing_else():
    """Channel 0 is the image, channel 1 the image shifted by a pixel; class 1 counts 0, class 0 counts 1."""
    model = keras.Sequential(
        [
            L.Input((5, 7, 1)),
            L.Conv2D(2, 3, padding="same", use_bias=False, name="maps"),
            L.GlobalAveragePooling2D(),
            L.Dense(2),
        ]
    )
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[1, 1, 0, 0] = 1
    kernel[2, 2, 0, 1] = 1
    model.set_weights([kernel, np.array([[-1.0, 2.0], [3.0, 0.0]]), np.zeros(2)])
    images = np.zeros((2, 5, 7, 1), np.uint8)
    images[0, 1, 5] = 100
    images[1, 3, 2] = 200
    result = CamExtractor(Network(model), ["maps"], METHODS, classes=2)(images, np.array([[1, 0]] * 2))
    for method in METHODS:
        maps = result.maps["maps", method] * 35  # average pooling divides by the 35 positions
        for n, (row, column, brightness) in enumerate([(1, 5, 100), (3, 2, 200)]):
            positions = [np.argwhere(maps[n, m] > 1e-3).tolist() for m in (0, 1)]
            assert positions == [[[row, column]], [[row - 1, column - 1]]], method
            if method != "gradcam++":
                np.testing.assert_allclose(maps[n, 0].max(), 2 * brightness, rtol=1e-5)
                np.testing.assert_allclose(maps[n, 1].max(), 3 * brightness, rtol=1e-5)


def test_confident_predictions_have_maps_too():
    """Gradients start at the logits: those of the probabilities vanish once the softmax saturates."""
    factor = 4000
    model = pooling_model()
    dense = model.get_layer("predictions")
    weights = dense.get_weights()
    images = random_images(16)
    labels = np.asarray(model(images / 255.0)).argmax(axis=1)[:, None]
    unsure = CamExtractor(Network(model, 1 / 255), ["last"])(images, labels).maps["last", "gradcam"]
    dense.set_weights([array * factor for array in weights])
    assert np.median(np.asarray(model(images / 255.0)).max(axis=1)) > 1 - 1e-6
    sure = CamExtractor(Network(model, 1 / 255), ["last"])(images, labels).maps["last", "gradcam"]
    assert sure.any(axis=(2, 3)).all()
    np.testing.assert_allclose(sure, unsure * factor, rtol=1e-4, atol=1e-4)


def test_results_of_several_batches_keep_the_order_of_the_images():
    network = Network(pooling_model(), 1 / 255)
    images = random_images(BATCH + 3)
    labels = RNG.integers(0, 4, (BATCH + 3, 1))
    extractor = CamExtractor(
        network,
        ["first", "last"],
        extra_outputs=lambda trace: {"mean": tf.reduce_mean(trace.outputs["first"], axis=(1, 2, 3))},
    )
    together = extractor(images, labels)
    for n in (0, BATCH - 1, BATCH, BATCH + 2):
        alone = extractor(images[n : n + 1], labels[n : n + 1])
        np.testing.assert_allclose(
            together.maps["first", "gradcam"][n], alone.maps["first", "gradcam"][0], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(together.extras["mean"][n], alone.extras["mean"][0], rtol=1e-5)


def test_grad_cam_plus_plus_is_the_formula_of_the_paper():
    """The paper differentiates exp(logit), a factor that does not change the map of the logit otherwise."""
    values = np.maximum(RNG.normal(size=(3, 4, 5, 6)), 0)
    gradients = RNG.normal(size=(3, 4, 5, 6))
    gradients[0, ..., 0] = 0
    values[1, ..., 2] = 0
    exponential = np.exp(RNG.normal(size=(3, 1, 1, 1)))
    first = exponential * gradients
    second = exponential * gradients**2
    third = exponential * gradients**3
    denominator = 2 * second + third * values.sum(axis=(1, 2), keepdims=True)
    alphas = np.divide(second, denominator, out=np.zeros_like(second), where=second != 0)
    total = alphas.sum(axis=(1, 2), keepdims=True)
    alphas = np.divide(alphas, total, out=np.zeros_like(alphas), where=total != 0)
    weights = (alphas * np.maximum(first, 0)).sum(axis=(1, 2), keepdims=True)
    expected = np.maximum((weights * values).sum(axis=-1), 0) / exponential[..., 0]
    maps = compute_cam(tf.constant(values, tf.float32), tf.constant(gradients, tf.float32), "gradcam++")
    np.testing.assert_allclose(maps, expected, rtol=2e-3, atol=1e-4 * expected.max())


def test_maps_equal_those_of_tf_keras_vis():
    gradcam = pytest.importorskip("tf_keras_vis.gradcam")
    plus = pytest.importorskip("tf_keras_vis.gradcam_plus_plus")
    layercam = pytest.importorskip("tf_keras_vis.layercam")
    model = pooling_model(activation="linear")
    functional = keras.Model(model.inputs, model.outputs)
    images = random_images(6)
    labels = np.array([0, 1, 2, 3, 1, 0])
    ours = CamExtractor(Network(model, 1 / 255), ["first", "last"], METHODS)(images, labels[:, None]).maps
    peers = {"gradcam": gradcam.Gradcam, "gradcam++": plus.GradcamPlusPlus, "layercam": layercam.Layercam}

    def score(outputs):
        return [outputs[n, label] for n, label in enumerate(labels)]

    for (layer, method), maps in ours.items():
        peer = peers[method](functional)
        theirs = np.asarray(peer(score, images / 255.0, penultimate_layer=layer, expand_cam=False))
        assert maps[:, 0].any(axis=(1, 2)).mean() >= 0.5
        np.testing.assert_allclose(
            normalize(maps[:, 0]), normalize(theirs), atol=1e-5, err_msg=f"{method} of {layer}"
        )


def normalize(maps: np.ndarray) -> np.ndarray:
    """Brings every map `[h, w]` to the range 0 to 1."""
    low = maps.min(axis=(1, 2), keepdims=True)
    high = maps.max(axis=(1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)
