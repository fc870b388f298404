"""Activations: known kernels give known sheets, channel by channel and pixel by pixel."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from PIL import Image

from service.inference import Predictions
from service.report.activations import LayerOutput, blank, choose, layer_outputs, levels, part, sheet, statistics, strip
from service.report.pictures import FLAT, FRAME, VIRIDIS, Album
from service.report.subject import ReportOptions, Subject

L = keras.layers
IMAGE = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)  # rows differ from columns: a transposition shows


def one_convolution() -> keras.Model:
    """Channels: the image, its negative (dead after ReLU), its right neighbour, its lower neighbour."""
    model = keras.Sequential(
        [L.Input((3, 4, 1)), L.Conv2D(4, 2, activation="relu", name="convolution"), L.Flatten(), L.Dense(2, name="logits")]
    )
    kernel = np.zeros((2, 2, 1, 4), np.float32)
    kernel[0, 0, 0, 0], kernel[0, 0, 0, 1], kernel[0, 1, 0, 2], kernel[1, 0, 0, 3] = 1, -1, 1, 1
    model.get_layer("convolution").set_weights([kernel, np.zeros(4, np.float32)])
    return model


def expected_tile(values: np.ndarray) -> np.ndarray:
    """The tile, 14 times enlarged, of a map that needs no clipping, worked out by hand."""
    centred = (values - values.mean()) / values.std() * 64 + 128
    return np.kron(np.rint(np.clip(centred, 0, 255)), np.ones((14, 14))).astype(np.uint8)


def test_a_known_convolution_gives_a_known_sheet():
    maps = layer_outputs(one_convolution(), IMAGE)[0]
    assert (maps.name, maps.kind) == ("convolution", "Conv2D")
    image = IMAGE[0, :, :, 0]
    wanted = [image[:2, :3], np.zeros((2, 3)), image[:2, 1:], image[1:, :3]]
    np.testing.assert_array_equal(maps.values[0], np.stack(wanted, axis=-1))
    drawn = sheet(maps.values[0] * [1, 1, 1, 0.5])
    assert drawn.shape == (1 + 28 + 1, 4 * 43 + 1, 3)
    for channel in (0, 2, 3):
        np.testing.assert_array_equal(drawn[1:29, 1 + 43 * channel : 43 + 43 * channel], VIRIDIS[expected_tile(wanted[channel])])
    assert (drawn[1:29, 44:86] == FLAT).all()
    assert (drawn[0] == FRAME).all()
    assert (drawn[:, 43] == FRAME).all()


def test_channels_stand_sixteen_a_row_in_their_order():
    maps = np.zeros((40, 40, 18), np.float32)
    for channel in range(18):
        maps[channel, 2 * channel, channel] = 1.0  # one bright pixel tells the channel
    drawn = sheet(maps)
    assert drawn.shape == (2 * 41 + 1, 16 * 41 + 1, 3)
    for channel in range(18):
        top, left = 1 + channel // 16 * 41, 1 + channel % 16 * 41
        bright = (drawn[top : top + 40, left : left + 40] == VIRIDIS[255]).all(axis=2)
        assert np.argwhere(bright).tolist() == [[channel, 2 * channel]]


def test_large_maps_are_averaged_down():
    maps = np.zeros((100, 200, 1), np.float32)
    maps[:, 100:] = 1.0
    assert sheet(maps).shape == (34 + 2, 67 + 2, 3)


def test_levels_are_mean_128_and_deviation_64_for_each_channel():
    values = np.stack([[[0.0, 2.0]], [[-30.0, -10.0]], [[7.0, 7.0]]], axis=-1)
    np.testing.assert_array_equal(levels(values), [[[64.0, 192.0]], [[64.0, 192.0]], [[128.0, 128.0]]])


def test_levels_are_clipped_and_keep_their_sign():
    values = np.array([[[0.0]] * 24 + [[1.0]]])
    found = levels(values)[0, 0]
    assert found[24] == 255.0
    assert 0 < found[0] < 128
    assert levels(-values)[0, 0, 24] == 0.0


@pytest.mark.parametrize(
    ("values", "is_blank"),
    [([0, 0], True), ([-1, -2], True), ([-1, 0], True), ([3, 3], True), ([0, 1], False), ([-1, 1], False), ([np.nan, 1], True)],
)
def test_blank(values, is_blank):
    assert blank(np.array([values], np.float32)[..., None]).tolist() == [is_blank]


def test_a_strip_shows_units_in_their_order():
    drawn = strip(np.array([0.0, 2.0, 0.0, 2.0]))
    assert drawn.shape == (18, 4 * 17 + 1, 3)
    for unit, level in enumerate([64, 192, 64, 192]):
        assert (drawn[1:17, 1 + 17 * unit : 17 + 17 * unit] == VIRIDIS[level]).all()
    assert strip(np.arange(65.0)).shape == (2 * 17 + 1, 64 * 17 + 1, 3)


def test_negative_units_are_not_blank():
    assert len(np.unique(strip(np.array([-3.0, -1.0])).reshape(-1, 3), axis=0)) == 3  # two cells and the frame


def test_statistics():
    maps = np.zeros((2, 1, 2, 2), np.float32)
    maps[0, 0, 1, 0] = 5.0
    found = statistics(LayerOutput("a", "Conv2D", maps))
    assert found == {"layer": "a", "kind": "Conv2D", "shape": [1, 2, 2], "blank_channels": 0.75, "zeros": 7 / 8}
    assert statistics(LayerOutput("d", "Dense", np.array([[0.0, 1.0]])))["blank_channels"] is None


def nested(wrap) -> keras.Model:
    base_input = keras.Input((6, 6, 1))
    x = L.Conv2D(2, 3, name="inner", activation="relu")(base_input)
    base = keras.Model(base_input, L.Add(name="sum")([x, L.BatchNormalization(name="norm")(x)]), name="base")
    inputs = keras.Input((6, 6, 1))
    x = L.RandomFlip(seed=1, name="flip")(inputs)
    x = L.Dropout(0.5, name="drop")(wrap(base)(x))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.GlobalAveragePooling2D(name="pool")(x)))


@pytest.mark.parametrize("wrap", [lambda base: base, lambda base: keras.Sequential([base], name="wrapped")])
def test_nested_models_are_looked_into_and_run_in_inference_mode(wrap):
    model = nested(wrap)
    images = np.random.default_rng(0).random((2, 6, 6, 1), np.float32)
    found = layer_outputs(model, images)
    prefix = "wrapped/base" if wrap(L.Identity()).name == "wrapped" else "base"
    assert [output.name for output in found] == ["flip", f"{prefix}/inner", f"{prefix}/norm", f"{prefix}/sum", "drop", "pool", "logits"]
    np.testing.assert_array_equal(found[0].values, images)
    np.testing.assert_allclose(found[-1].values, model(images, training=False), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[4].values, found[3].values)


def test_half_precision_outputs_come_as_float32():
    model = keras.Sequential([L.Input((3, 4, 1)), L.Conv2D(1, 2, dtype="mixed_float16")])
    assert layer_outputs(model, IMAGE)[0].values.dtype == np.float32


def test_one_image_of_each_class_the_surest_right_one():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.7, 0.3]], np.float32)
    labels = np.array([0, 0, 1, 1, 1], np.int32)
    predictions = Predictions(probabilities, labels, np.arange(5))
    assert choose(predictions, 2).tolist() == [1, 2]
    assert choose(predictions, 5).tolist() == [1, 2, 0, 3, 4]
    assert choose(predictions, 0).tolist() == []


def test_a_class_without_a_right_answer_gives_its_least_wrong_one():
    predictions = Predictions(np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]], np.float32), np.array([0, 1, 1], np.int32), np.arange(3))
    assert choose(predictions, 2).tolist() == [0, 2]


class Pair:
    """Two images that differ: a bright left half of class 1, a bright right half of class 0."""

    split = "validation"
    labels = np.array([1, 0], np.int32)
    pixels = np.array([[[[255], [255], [0], [0]]], [[[0], [0], [0], [102]]]], np.uint8)

    def read(self, rows):
        return self.pixels[np.asarray(rows)]

    def ids(self, rows):
        return [f"image-{row}" for row in rows]

    def batches(self):
        return [{"image": self.pixels, "label": self.labels, "weight": np.ones(2, np.float32), "row": np.arange(2)}]


def test_every_image_is_shown_with_its_own_activations(tmp_path):
    model = keras.Sequential(
        [L.Input((1, 4, 1)), L.Conv2D(1, 1, name="identity"), L.GlobalAveragePooling2D(name="mean"), L.Dense(1, name="logits")]
    )
    model.set_weights([np.ones((1, 1, 1, 1)), np.zeros(1), np.array([[10.0]]), np.array([-3.0])])
    subject = Subject("tiny", model, "model-digest", "shards-digest", ("right", "left"), Pair(), Pair(), 1 / 255)
    section = part(subject, Album(tmp_path))
    assert section is not None
    assert section.figures["rows"] == [1, 0]
    for look, row, mean in zip(section.values["looks"], [1, 0], [0.1, 0.5], strict=True):
        assert look["truth"] == look["predicted"] == subject.classes[Pair.labels[row]]
        assert look["probability"] == pytest.approx(1 / (1 + np.exp(-abs(10 * mean - 3))), rel=1e-5)
        drawn = {layer["layer"]: layer for layer in look["layers"]}
        shown = np.asarray(Image.open(tmp_path / drawn["identity"]["picture"].file))
        np.testing.assert_array_equal(shown, sheet(Pair.pixels[row].astype(np.float32)))
        assert f"validation image {row}, {look['truth']}" in drawn["identity"]["picture"].alt
        photo = np.asarray(Image.open(tmp_path / look["picture"].file))
        np.testing.assert_array_equal(photo[0, ::28], Pair.pixels[row, 0, :, 0])
        assert drawn["mean"]["values"] == pytest.approx([mean], rel=1e-6)
        assert drawn["logits"]["values"] == pytest.approx([10 * mean - 3], rel=1e-5)


def test_no_image_wanted_no_section(tmp_path):
    model = keras.Sequential([L.Input((1, 4, 1)), L.Flatten(), L.Dense(1)])
    options = ReportOptions(activation_images=0)
    assert part(Subject("tiny", model, "", "", ("right", "left"), Pair(), Pair(), 1.0, options), Album(tmp_path)) is None
