"""What a model expects and returns is found by running it: input range, head, and the reason for each."""

from __future__ import annotations

import gzip
from pathlib import Path

import keras
import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.inference.classifier import Classifier, load_model
from service.inference.inspection import decide_head, find_pixel_evidence, interpret_model
from service.inference.interpretation import RAW, SIGNED, UNIT, Interpretation, PixelTransform
from service.inference.options import PredictOptions

L = keras.layers


def dense_model(*before: keras.Layer, shape: tuple[int, int, int] = (4, 4, 3)) -> keras.Model:
    return keras.Sequential([L.Input(shape), *before, L.Flatten(), L.Dense(2, activation="softmax")])


def normalized(mean: float, deviation: float) -> keras.Layer:
    """Returns batch normalization with the statistics of trained one."""
    layer = L.BatchNormalization()
    layer.build((None, 4, 4, 3))
    layer.set_weights([np.ones(3), np.zeros(3), np.full(3, mean), np.full(3, deviation**2)])
    return layer


def photos(rows: int = 16) -> np.ndarray:
    """Returns images with the mean and deviation of photos."""
    draw = np.random.default_rng(1)
    return np.clip(draw.normal(115, 60, (rows, 4, 4, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("before", "candidates"),
    [
        ([L.Rescaling(1 / 255)], (RAW,)),
        ([L.Rescaling(1 / 127.5, offset=-1)], (RAW,)),
        ([L.ZeroPadding2D(1), L.Rescaling(1 / 127.5, offset=-1)], (RAW,)),
        ([L.Normalization(mean=[118.0] * 3, variance=[3600.0] * 3)], (RAW,)),
        ([normalized(118, 60)], (RAW,)),
        ([L.Rescaling(255.0)], (UNIT,)),
        ([L.Rescaling(127.5, offset=127.5)], (SIGNED,)),
        ([keras.Sequential([L.Rescaling(1 / 255), L.Conv2D(1, 1)])], (RAW,)),
        ([], (UNIT, RAW, SIGNED)),
        ([L.ZeroPadding2D(1), L.RandomFlip()], (UNIT, RAW, SIGNED)),
        ([L.BatchNormalization()], (UNIT, RAW, SIGNED)),
        # Scaling after the first weights says nothing about the input.
        ([L.Conv2D(1, 1), L.Rescaling(1 / 255)], (UNIT, RAW, SIGNED)),
    ],
)
def test_the_graph_before_the_first_weights_shows_the_input_range(before, candidates):
    assert find_pixel_evidence(dense_model(*before)).candidates == candidates


@pytest.mark.parametrize("offsets", [[103.939, 116.779, 123.68], [118.0, 118.0, 118.0]])
@pytest.mark.parametrize("pads", [False, True])
def test_arithmetic_in_the_graph_is_followed(offsets, pads):
    inputs = keras.Input((4, 4, 3))
    x = keras.ops.stack([inputs[..., 2], inputs[..., 1], inputs[..., 0]], axis=-1)
    x = x + np.array([-value for value in offsets], np.float32)
    x = L.ZeroPadding2D(2)(x) if pads else x  # zeros that no pixel changes
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    assert find_pixel_evidence(model).candidates == (RAW,)


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"), [(0.46, 0.24, UNIT), (-0.08, 0.48, SIGNED), (118, 60, RAW)]
)
def test_statistics_of_batch_normalization_fit_the_images_in_one_range(mean, deviation, expected):
    assert find_pixel_evidence(dense_model(normalized(mean, deviation)), photos()).candidates == (expected,)


@pytest.mark.parametrize("mode", ["vgg16", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_models_with_their_preprocessing_in_the_graph_predict_as_keras_does(mode):
    keras.utils.set_random_seed(3)
    module = getattr(keras.applications, mode)
    build = {"vgg16": keras.applications.VGG16, "resnet50": keras.applications.ResNet50}[mode]
    inputs = keras.Input((32, 32, 3))
    base = build(weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3))
    outputs = L.Dense(3, activation="softmax")(base(module.preprocess_input(inputs)))
    model = keras.Model(inputs, outputs)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    classifier = Classifier(model)
    expected = model(images.astype(np.float32), training=False)
    np.testing.assert_allclose(classifier(images, np.ones(8, bool)), expected, rtol=1e-4, atol=1e-6)
    assert classifier.interpretation.pixels == RAW


def averaged_model() -> keras.Model:
    inputs = keras.Input((1, 2, 1))
    x = L.Flatten()(inputs)
    return keras.Model(inputs, L.Average()([L.Softmax()(x), L.Softmax()(x), L.Softmax()(x)]))


def clipped_model() -> keras.Model:
    inputs = keras.Input((1, 2, 1))
    return keras.Model(inputs, keras.ops.clip(L.Softmax()(L.Flatten()(inputs)), 0.05, 0.95))


def custom_softmax(x: keras.KerasTensor) -> keras.KerasTensor:
    powers = keras.ops.exp(x - keras.ops.max(x, axis=-1, keepdims=True))
    return powers / keras.ops.sum(powers, axis=-1, keepdims=True)


def custom_model() -> keras.Model:
    return keras.Sequential([L.Input((1, 2, 1)), L.Flatten(), L.Activation(custom_softmax)])


@pytest.mark.parametrize("build", [averaged_model, clipped_model, custom_model])
def test_probabilities_stay_as_they_are_whatever_computes_them(build):
    """Logits 0 and 2.2 are probabilities of 0.1 and 0.9, not of 0.31 and 0.69."""
    model = build()
    classifier = Classifier(model, PredictOptions(scale=2.2 / 255))
    images = np.array([[[[0], [255]]]], np.uint8)
    np.testing.assert_allclose(classifier(images, np.array([True])), [[0.0998, 0.9002]], atol=1e-4)
    assert "rows that sum to 1" in classifier.interpretation.head_reason


@pytest.mark.parametrize(
    ("units", "activation", "head"),
    [
        (2, "softmax", "probabilities"),
        (2, None, "logits"),
        (1, "sigmoid", "probabilities"),
        (1, None, "logits"),
    ],
)
def test_heads_are_told_apart_by_their_outputs(units, activation, head):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([L.Input((4, 4, 3)), L.Flatten(), L.Dense(units, activation=activation)])
    assert decide_head(model)[0] == head
    assert decide_head(model, images=photos())[0] == head


def test_a_head_that_is_neither_is_refused_with_the_choices_and_can_be_set():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([L.Input((1, 2, 1)), L.Flatten(), L.Activation("sigmoid")])
    with pytest.raises(ConfigError, match=r"whose rows sum to .* independent sigmoids.*--head probabilities"):
        decide_head(model)
    classifier = Classifier(model, PredictOptions(scale=1 / 255, head="probabilities"))
    images = np.array([[[[0], [255]]]], np.uint8)
    sigmoids = np.array([0.5, 0.7310586])
    np.testing.assert_allclose(classifier(images, np.array([True]))[0], sigmoids / sigmoids.sum(), rtol=1e-5)
    softmax_of_one = keras.Sequential([L.Input((1, 1, 1)), L.Flatten(), L.Dense(1, activation="softmax")])
    with pytest.raises(ConfigError, match="softmax over one unit"):
        decide_head(softmax_of_one)


def test_logits_declared_as_probabilities_are_refused():
    model = keras.Sequential([L.Input((1, 2, 1)), L.Rescaling(-1 / 8), L.Flatten()])
    with pytest.raises(ConfigError, match="pass --head logits"):
        Classifier(model, PredictOptions(scale=1.0, head="probabilities"))


class Labelled:
    """Images whose class is told by their brightness, except for every nth of class 0, and their labels."""

    def __init__(self, rows: int, bright_step: int = 0) -> None:
        draw = np.random.default_rng(4)
        self.labels = (np.arange(rows) >= rows // 2).astype(np.int32)  # sorted by class, as in many folders
        levels = np.where(self.labels == 1, draw.integers(150, 256, rows), draw.integers(0, 106, rows))
        if bright_step:
            levels[: rows // 2 : bright_step] = 200
        self._images = np.broadcast_to(levels[:, None, None, None], (rows, 1, 1, 1)).astype(np.uint8)

    def read(self, rows: list[int]) -> np.ndarray:
        return self._images[rows]


def threshold_model(threshold: float) -> keras.Model:
    """Returns a model of class 1 where the input exceeds a threshold."""
    model = keras.Sequential([L.Input((1, 1, 1)), L.Flatten(), L.Dense(1)])
    model.layers[-1].set_weights([np.ones((1, 1)), np.array([-threshold])])
    return model


@pytest.mark.parametrize(("threshold", "expected"), [(128, RAW), (0.5, UNIT), (0.0, SIGNED)])
def test_labelled_images_decide_between_input_ranges(threshold, expected):
    found = interpret_model(threshold_model(threshold), images=Labelled(200))
    assert found.pixels == expected
    assert f"1.0000 at {expected.range}" in found.pixels_reason
    assert "assumed" not in found.pixels_reason


def test_images_sorted_by_class_do_not_favour_a_range_that_predicts_their_first_class():
    """At 0 to 1, everything is of class 0; at 0 to 255, every fourth image of class 0 is mistaken."""
    images = Labelled(800, bright_step=4)
    assert not images.labels[:64].any()
    assert interpret_model(threshold_model(128), images=images).pixels == RAW


def test_too_few_labelled_images_decide_nothing_and_the_assumption_is_stated():
    found = interpret_model(threshold_model(128), images=Labelled(6))
    assert found.pixels == UNIT
    assert found.pixels_reason.startswith("assumed, because accuracy on 6 labelled images is ")
    assert "--scale" in found.pixels_reason


def test_options_precede_metadata_and_metadata_precede_the_model():
    known = Interpretation(SIGNED, "logits", "recorded", "recorded")
    model = dense_model(L.Rescaling(1 / 255))
    assert interpret_model(model, known=known) == known
    chosen = interpret_model(model, PredictOptions(0.5, offset=-3.0), known)
    assert (chosen.pixels, chosen.head) == (PixelTransform(0.5, -3.0), "logits")
    assert interpret_model(model, PredictOptions(head="probabilities"), known).pixels == SIGNED
    with pytest.raises(ConfigError, match="together with --scale"):
        PredictOptions(offset=-1.0)


def test_one_output_in_a_dict_or_a_list_works_and_several_are_refused_by_name(tmp_path):
    inputs = keras.Input((2, 2, 1))
    x = L.Dense(2)(L.Flatten()(inputs))
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1)).astype(np.uint8)
    plain = Classifier(keras.Model(inputs, L.Softmax()(x)))(images, np.ones(3, bool))
    for number, outputs in enumerate(({"p": L.Softmax()(x)}, [[L.Softmax()(x)]])):
        keras.Model(inputs, outputs).save(tmp_path / f"{number}.keras")
        loaded = load_model(tmp_path / f"{number}.keras")
        np.testing.assert_array_equal(Classifier(loaded)(images, np.ones(3, bool)), plain)
    keras.Model(inputs, {"z": x, "p": L.Softmax()(x)}).save(tmp_path / "two.keras")
    with pytest.raises(ConfigError, match=r"2 outputs named z, p: \(None, 2\), \(None, 2\)"):
        Classifier(load_model(tmp_path / "two.keras"))


def test_a_digit_model_trained_elsewhere_keeps_its_accuracy(shared: Path):
    images, labels = (
        gzip.decompress((shared / "data/mnist" / f"t10k-{name}.gz").read_bytes())
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    digits = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    truth = np.frombuffer(labels, np.uint8, offset=8)
    classifier = Classifier(load_model(shared / "seed_results/mnist_cnn.keras"))
    is_real = np.ones(500, bool)
    predicted = [classifier(digits[i : i + 500], is_real).argmax(axis=1) for i in range(0, 10_000, 500)]
    assert (np.concatenate(predicted) == truth).mean() == pytest.approx(0.9833, abs=1e-6)
