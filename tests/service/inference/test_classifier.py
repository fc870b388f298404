"""`Classifier` and `load_model`: exact probabilities, files, and errors."""

from __future__ import annotations

import json
import math
import zipfile

import keras
import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.inference.classifier import (
    Classifier,
    Predictions,
    PredictOptions,
    check_class_count,
    class_count,
    input_spec,
    load_model,
    predict,
    predict_with_features,
)
from service.inference.inspection import interpret_model

L = keras.layers


def batch(images: list, labels: list[int], weights: list[float] | None = None, first_row: int = 0) -> dict:
    return {
        "image": np.asarray(images, np.uint8),
        "label": np.asarray(labels, np.int32),
        "weight": np.asarray(weights or [1.0] * len(labels), np.float32),
        "row": np.arange(first_row, first_row + len(labels), dtype=np.int64),
    }


def one_pixel_model(
    kernel: list[list[float]], bias: list[float], activation: str | None, *before: keras.Layer
) -> keras.Model:
    """Maps images [1, 1, C] to one dense layer, whose outputs have a closed form."""
    model = keras.Sequential(
        [L.Input((1, 1, len(kernel))), *before, L.Flatten(), L.Dense(len(bias), activation=activation)]
    )
    model.layers[-1].set_weights([np.asarray(kernel, np.float32), np.asarray(bias, np.float32)])
    return model


def softmax(z: list[float]) -> list[float]:
    return [math.exp(v) / sum(math.exp(w) for w in z) for v in z]


def test_softmax_outputs_are_the_probabilities():
    model = one_pixel_model([[1, 2, -1]], [0, 0.5, 0], "softmax")
    found = predict(model, [batch([[[[255]]], [[[51]]]], [1, 2])])
    np.testing.assert_allclose(
        found.probabilities, [softmax([1, 2.5, -1]), softmax([0.2, 0.9, -0.2])], rtol=1e-6
    )
    assert found.probabilities.dtype == np.float32
    assert found.classes.tolist() == [1, 1]
    assert found.accuracy == 0.5
    assert found.loss == pytest.approx(
        -(math.log(softmax([1, 2.5, -1])[1]) + math.log(softmax([0.2, 0.9, -0.2])[2])) / 2, rel=1e-6
    )


def test_logits_become_probabilities():
    kernel = [[1, 2, -1]]
    bias = [0.0, 0.5, 0.0]
    images = [batch([[[[255]]]], [0])]
    from_logits = predict(one_pixel_model(kernel, bias, None), images).probabilities
    np.testing.assert_allclose(from_logits, [softmax([1, 2.5, -1])], rtol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_single_unit_is_the_probability_of_class_1(activation):
    found = predict(one_pixel_model([[3]], [-1], activation), [batch([[[[255]]], [[[0]]]], [1, 1])])
    p = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    np.testing.assert_allclose(found.probabilities, [[1 - p[0], p[0]], [1 - p[1], p[1]]], rtol=1e-6)
    assert found.classes.tolist() == [1, 0]


@pytest.mark.parametrize(
    "head", [[L.Activation("softmax")], [L.Softmax()], [L.Activation("softmax"), L.Dropout(0.5)]]
)
def test_an_activation_in_its_own_layer_is_not_applied_twice(head):
    model = keras.Sequential([L.Input((1, 1, 3)), L.Flatten(), *head])
    found = predict(model, [batch([[[[255, 0, 0]]]], [0])], scale=1 / 255)
    np.testing.assert_allclose(found.probabilities, [softmax([1, 0, 0])], rtol=1e-6)


def test_padding_is_left_out_and_rows_and_order_are_kept():
    model = one_pixel_model([[1, -1]], [0, 0], "softmax")
    found = predict(
        model,
        [
            batch([[[[200]]], [[[9]]]], [0, 1], first_row=4),
            batch([[[[7]]], [[[7]]]], [1, 0], [1.0, 0.0], first_row=8),
        ],
    )
    assert found.rows.tolist() == [4, 5, 8]
    assert found.labels.tolist() == [0, 1, 1]
    assert (found.probabilities[:, 0] > 0.5).tolist() == [True, True, True]


def test_dropout_and_batch_statistics_are_those_of_inference():
    normalization = L.BatchNormalization(epsilon=1e-9)
    model = keras.Sequential(
        [L.Input((1, 1, 3)), normalization, L.Dropout(0.9), L.Flatten(), L.Activation("softmax")]
    )
    normalization.set_weights(
        [np.ones(3), np.zeros(3), np.array([0.5, 0.0, 0.0]), np.array([0.25, 1.0, 1.0])]
    )
    found = predict(model, [batch([[[[255, 0, 0]]]], [0])])
    np.testing.assert_allclose(found.probabilities, [softmax([1.0, 0.0, 0.0])], rtol=1e-5)


def test_a_probability_of_zero_gives_a_finite_loss():
    found = Predictions(np.array([[1.0, 0.0]], np.float32), np.array([1], np.int32), np.array([0]))
    assert found.loss == pytest.approx(-math.log(1e-7))


def test_no_batches_give_empty_predictions():
    found = predict(one_pixel_model([[1, 1]], [0, 0], "softmax"), [])
    assert found.probabilities.shape == (0, 2)
    assert math.isnan(found.accuracy)
    assert math.isnan(found.loss)


def test_one_graph_serves_all_batches():
    model = one_pixel_model([[1, -1]], [0, 0], "softmax")
    interpretation = interpret_model(model)
    calls: list[int] = []
    original = model.call
    model.call = lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1]
    batches = [batch([[[[1]]]], [0]), batch([[[[2]]]], [0]), batch([[[[3]]], [[[4]]]], [0, 1])]
    predict(model, batches, interpretation=interpretation)
    assert len(calls) == 1


def test_the_scale_is_applied_and_can_be_overridden():
    images = [batch([[[[102]]]], [0])]
    logit = lambda found: math.log(found.probabilities[0, 1] / found.probabilities[0, 0])  # noqa: E731
    assert logit(predict(one_pixel_model([[1]], [0], None), images)) == pytest.approx(0.4, rel=1e-5)
    assert logit(predict(one_pixel_model([[1]], [0], None, L.Rescaling(0.01)), images)) == pytest.approx(
        1.02, rel=1e-5
    )
    assert logit(predict(one_pixel_model([[1]], [0], None), images, scale=0.02)) == pytest.approx(
        2.04, rel=1e-5
    )


def test_input_spec_has_height_before_width():
    model = keras.Sequential([L.Input((20, 30, 3)), L.Flatten(), L.Dense(2)])
    assert input_spec(model).image_size == (20, 30)
    assert input_spec(model).channels == 3


@pytest.mark.parametrize("shape", [(None, None, 3), (8, 8, 4), (8, 8)])
def test_models_without_an_image_input(shape):
    with pytest.raises(ConfigError, match="one input"):
        input_spec(
            keras.Sequential(
                [L.Input(shape), L.Flatten() if None not in shape else L.GlobalAveragePooling2D(), L.Dense(2)]
            )
        )


def test_class_count():
    assert class_count(one_pixel_model([[1]], [0], "sigmoid")) == 2
    assert class_count(one_pixel_model([[1, 1, 1]], [0, 0, 0], None)) == 3
    check_class_count(one_pixel_model([[1]], [0], "sigmoid"), ["cat", "dog"])
    with pytest.raises(ConfigError, match=r"3 classes.*Received: classes=2"):
        check_class_count(one_pixel_model([[1, 1, 1]], [0, 0, 0], None), ["cat", "dog"])


def test_labels_images_and_heads_that_do_not_fit_are_errors():
    model = one_pixel_model([[1, 1]], [0, 0], "softmax")
    with pytest.raises(ConfigError, match="label=2"):
        predict(model, [batch([[[[1]]]], [2])])
    with pytest.raises(ConfigError, match="images of shape"):
        predict(model, [batch([[[[1], [1]]]], [0])])
    with pytest.raises(ConfigError, match="2 units: outputs that stay within -1 and 1"):
        predict(one_pixel_model([[1, 1]], [0, 0], "tanh"), [])
    with pytest.raises(ConfigError, match="2 units: outputs within 0 and 1 whose rows sum to"):
        predict(one_pixel_model([[1, 1]], [0, 0], "sigmoid"), [])


def test_non_finite_probabilities_are_errors_except_in_padding():
    inputs = keras.Input((1, 1, 3))
    values = L.Flatten()(inputs)
    shares = values / keras.ops.sum(values, axis=-1, keepdims=True)  # 0 / 0 where an image is black
    images = np.array([[[[30, 10, 0]]], [[[0, 0, 0]]]], np.uint8)
    classifier = Classifier(keras.Model(inputs, L.Softmax()(shares)))
    np.testing.assert_allclose(
        classifier(images, np.array([True, False])), [softmax([0.75, 0.25, 0])], rtol=1e-6
    )
    with pytest.raises(ConfigError, match="finite probabilities"):
        classifier(images, np.array([True, True]))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_invalid_scales(scale):
    with pytest.raises(ConfigError, match="a factor above 0"):
        Classifier(one_pixel_model([[1, 1]], [0, 0], "softmax"), PredictOptions(scale))


def lopsided_model(units: int) -> keras.Model:
    """Maps images [5, 4, 3] to classes that depend on what is left and what is right."""
    keras.utils.set_random_seed(2)
    head = L.Dense(units, activation="sigmoid" if units == 1 else "softmax")
    return keras.Sequential([L.Input((5, 4, 3)), L.Rescaling(1 / 255), L.Flatten(), head])


@pytest.mark.parametrize("units", [1, 3])
def test_flip_tta_is_the_mean_over_both_orientations(units):
    images = np.random.default_rng(0).integers(0, 256, (8, 5, 4, 3)).astype(np.uint8)
    mirrored = images[:, :, ::-1]
    is_real = np.ones(8, bool)
    model = lopsided_model(units)
    plain = Classifier(model)
    flipped = Classifier(model, PredictOptions(tta="flip"))
    one = plain(images, is_real)
    other = plain(mirrored, is_real)
    assert np.abs(one - other).max() > 0.05
    np.testing.assert_array_equal(flipped(images, is_real), (one + other) / 2)
    np.testing.assert_array_equal(flipped(mirrored, is_real), flipped(images, is_real))


def test_an_unknown_tta_mode_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"none or flip. Received: tta=flop. Fix: use flip"):
        Classifier(lopsided_model(1), PredictOptions(tta="flop"))


def test_a_saved_model_predicts_as_before(tmp_path):
    model = one_pixel_model([[1, 2, -1]], [0, 0.5, 0], "softmax")
    model.save(tmp_path / "model.keras")
    images = [batch([[[[77]]]], [0])]
    np.testing.assert_array_equal(
        predict(load_model(tmp_path / "model.keras"), images).probabilities,
        predict(model, images).probabilities,
    )


def test_a_model_of_any_name_predicts(tmp_path):
    dense = L.Dense(3, activation="softmax", name="_dense")
    model = keras.Sequential([L.Input((1, 1, 1)), L.Flatten(), dense], name="my <b>model")
    dense.set_weights([np.array([[1, 2, -1]], np.float32), np.array([0, 0.5, 0], np.float32)])
    model.save(tmp_path / "model.keras")
    batches = [batch([[[[51]]]], [1])]
    loaded = load_model(tmp_path / "model.keras")
    found, _ = predict_with_features(loaded, batches, 1, interpret_model(loaded, PredictOptions()))
    np.testing.assert_allclose(found.probabilities, [softmax([0.2, 0.9, -0.2])], rtol=1e-6)


@pytest.mark.parametrize("name", ["two words", "<b>", "a\u202eb"])
def test_a_layer_name_that_no_graph_can_have_is_refused(tmp_path, name):
    path = tmp_path / "model.keras"
    inner = keras.Sequential([L.Input((1, 1, 3)), L.Flatten(name=name)], name="inner")
    keras.Sequential([L.Input((1, 1, 3)), inner, L.Dense(2, activation="softmax")]).save(path)
    with pytest.raises(ConfigError, match="rename the layer"):
        load_model(path)


def test_files_that_are_not_models(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_model(tmp_path / "missing.keras")
    text = tmp_path / "text.keras"
    archive = tmp_path / "other.keras"
    text.write_text("hello")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "hello")
    damaged = tmp_path / "damaged.keras"
    with zipfile.ZipFile(damaged, "w") as file:
        file.writestr("config.json", json.dumps({"class_name": "Sequential"}))
        file.writestr("metadata.json", "{}")
    for path in (text, archive, damaged):
        with pytest.raises(ConfigError, match=str(path)) as caught:
            load_model(path)
        assert caught.value.__cause__ is None


def test_code_in_a_model_file_is_not_executed(tmp_path):
    model = keras.Sequential([L.Input((1, 1, 1)), L.Lambda(lambda x: x), L.Flatten(), L.Dense(2)])
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(ConfigError, match="Lambda") as caught:
        load_model(tmp_path / "lambda.keras")
    assert "\n" not in str(caught.value)


def nested_model() -> keras.Model:
    inner_input = L.Input((8, 8, 4))
    inner = keras.Model(
        inner_input, L.BatchNormalization()(L.Conv2D(6, 3, activation="relu")(inner_input)), name="backbone"
    )
    x = inputs = L.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same")(L.Rescaling(1 / 255)(x))
    x = L.Dropout(0.5)(L.GlobalAveragePooling2D()(inner(x)))
    return keras.Model(inputs, L.Activation("sigmoid")(L.Dense(1, name="head")(x)))


def convolution_head() -> keras.Model:
    """The last layer with a kernel receives feature maps, as that of MobileNetV3 does."""
    x = inputs = L.Input((8, 8, 3))
    x = L.Conv2D(5, 3, activation="relu", name="features")(L.Rescaling(1 / 255)(x))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 1, name="head")(x))
    return keras.Model(inputs, L.Softmax()(x))


@pytest.mark.parametrize("build", [nested_model, convolution_head])
def test_features_are_what_the_head_receives_and_leave_the_predictions_as_they_are(build):
    keras.utils.set_random_seed(0)
    model = build()
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3))
    batches = [
        batch(images[:8], [0] * 8),
        batch(images[8:16], [1] * 8, first_row=8),
        batch([*images[16:], *images[:4]], [1] * 8, [1.0] * 4 + [0.0] * 4, first_row=16),
    ]
    interpretation = interpret_model(model, PredictOptions())
    found, features = predict_with_features(model, batches, 20, interpretation)
    plain = predict(model, batches, interpretation=interpretation)
    np.testing.assert_array_equal(found.probabilities, plain.probabilities)
    assert features.indices.tolist() == list(range(20))
    assert features.layer == "head"
    kernel, bias = model.get_layer("head").get_weights()
    logits = features.values @ kernel.reshape(-1, kernel.shape[-1]) + bias
    # The mean over positions and a convolution of one pixel can be exchanged.
    if logits.shape[1] == 1:
        expected = 1 / (1 + np.exp(-logits[:, 0]))
    else:
        exponentials = np.exp(logits)
        expected = exponentials[:, 1] / exponentials.sum(axis=1)
    np.testing.assert_allclose(expected, plain.probabilities[:, 1], rtol=1e-4)


def test_features_of_many_images_are_kept_for_evenly_spaced_ones(monkeypatch):
    monkeypatch.setattr("service.inference.classifier.MAX_FEATURE_IMAGES", 4)
    model = one_pixel_model([[1, 2, -1]], [0, 0.5, 0], "softmax")
    batches = [batch([[[[value]]] for value in range(n, n + 5)], [0] * 5, first_row=n) for n in (0, 5)]
    found, features = predict_with_features(model, batches, 10, interpret_model(model, PredictOptions()))
    assert len(found.labels) == 10
    assert features.indices.tolist() == [2, 4, 7, 9]
    np.testing.assert_allclose(features.values[:, 0] * 255, [2, 4, 7, 9], rtol=1e-5)
