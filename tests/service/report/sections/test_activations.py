"""Activations: known kernels give known sheets, channel by channel and pixel by pixel."""

from __future__ import annotations

import io
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from service.inference.classifier import Predictions, predict
from service.report.analysis.activations import (
    FeatureMapOutputs,
    VectorOutputs,
    compute_activations,
    find_inactive_channels,
    quantize_channels,
    standardize_channels,
    standardize_vector,
    summarize_layer,
)
from service.report.analysis.examples import choose_classes, choose_examples, select_examples
from service.report.analysis.forward import choose_heatmap_layers, forward
from service.report.analysis.network import LayerInfo, Network
from service.report.drawing.album import Album, Drawing, encode
from service.report.drawing.colours import FRAME, FRAME_INDEX, INACTIVE, INACTIVE_INDEX, SEQUENTIAL, VIRIDIS
from service.report.drawing.sheets import (
    BLOCK,
    TileScaling,
    choose_encoding,
    choose_scaling,
    compute_layout,
    compute_scaling,
    draw_channel_sheet,
    draw_sheet,
    draw_vector,
)
from service.report.options import ReportOptions
from service.report.sections.activations import build_section
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

L = keras.layers
IMAGE = (
    np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1) * 20
)  # rows differ from columns: a transposition shows


def one_convolution() -> keras.Model:
    """Channels: the image, its negative (dead after ReLU), its right neighbour, its lower neighbour."""
    model = keras.Sequential(
        [
            L.Input((3, 4, 1)),
            L.Conv2D(4, 2, activation="relu", name="convolution"),
            L.Flatten(),
            L.Dense(2, name="logits"),
        ]
    )
    kernel = np.zeros((2, 2, 1, 4), np.float32)
    kernel[0, 0, 0, 0], kernel[0, 0, 0, 1], kernel[0, 1, 0, 2], kernel[1, 0, 0, 3] = 1, -1, 1, 1
    model.get_layer("convolution").set_weights([kernel, np.zeros(4, np.float32)])
    return model


def expected(values: np.ndarray) -> np.ndarray:
    """The palette places of a map, worked out by hand: the mean is 128 of 255, a deviation 64."""
    centred = (values - values.mean()) / values.std() * 64 + 128
    return np.rint(np.clip(centred, 0, 255) * 253 / 255).astype(np.uint8)


def draw(maps: np.ndarray, scaling: TileScaling) -> np.ndarray:
    values = tf.constant(maps, tf.float32)[None]
    return draw_channel_sheet(
        quantize_channels(standardize_channels(values), scaling.shrink).numpy()[0],
        find_inactive_channels(values).numpy()[0],
        scaling,
    )


def test_a_known_convolution_gives_a_known_sheet():
    network = Network(one_convolution())
    maps = compute_activations(network, IMAGE)["convolution"]
    shown = draw_channel_sheet(
        maps.tiles[0], maps.is_inactive[0], choose_scaling(network.find_layer("convolution").shape)
    )
    image = IMAGE[0, :, :, 0].astype(float)
    wanted = [image[:2, :3], np.zeros((2, 3)), image[:2, 1:], image[1:, :3]]
    assert shown.shape == (17, 4 * 25)  # tiles of 16 x 24 pixels, a pixel of frame behind and below each
    for channel in (0, 2, 3):
        tile = np.kron(expected(wanted[channel]), np.ones((8, 8)))
        np.testing.assert_array_equal(shown[:16, 25 * channel : 25 * channel + 24], tile)
    assert (shown[:16, 25:49] == INACTIVE_INDEX).all()
    assert (shown[16] == FRAME_INDEX).all()
    assert (shown[:, 24::25] == FRAME_INDEX).all()
    np.testing.assert_allclose(maps.mean_activation, [[np.mean(w) for w in wanted]], rtol=1e-6)
    np.testing.assert_array_equal(maps.is_inactive, [[False, True, False, False]])
    assert maps.sparsity[0] == pytest.approx(7 / 24)  # the negative, and the black corner of the image


def test_channels_stand_sixteen_a_row_in_their_order():
    maps = np.zeros((40, 36, 18), np.float32)
    for channel in range(18):
        maps[channel, 2 * channel, channel] = 1.0  # one bright pixel tells the channel
    found = draw(maps, TileScaling(1, 1))
    lies = compute_layout(40, 36, 18, TileScaling(1, 1))
    assert (lies.columns, lies.count, lies.tile, lies.pitch, lies.offset) == (
        16,
        18,
        (36, 40),
        (48, 48),
        (0, 0),
    )
    assert found.shape == (2 * 48, 16 * 48)
    for channel in range(18):
        top, left = channel // 16 * 48, channel % 16 * 48
        assert np.argwhere(found[top : top + 40, left : left + 36] == 253).tolist() == [
            [channel, 2 * channel]
        ]
        assert (found[top + 40 : top + 48, left : left + 48] == FRAME_INDEX).all()
    assert (found[48:, 2 * 48 :] == FRAME_INDEX).all()


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (7, 7, (1, 4)),
        (2, 3, (1, 8)),
        (24, 20, (1, 1)),
        (64, 9, (1, 1)),
        (65, 9, (2, 1)),
        (224, 100, (4, 1)),
        (1, 1, (1, 24)),
    ],
)
def test_tiles_keep_between_24_and_64_pixels_by_whole_factors(height, width, wanted):
    scaled = compute_scaling(height, width)
    assert (scaled.shrink, scaled.grow) == wanted


def test_large_maps_are_averaged_down_and_their_edge_repeated():
    maps = np.zeros((3, 5, 1), np.float32)
    maps[:, 2:4], maps[:, 4] = 1.0, 3.0
    found = draw(maps, TileScaling(2, 1, 1))
    shades = (maps[0, :, 0] - maps.mean()) / maps.std() * 64 + 128
    means = [shades[0], shades[2], shades[4]]
    np.testing.assert_array_equal(found[:2, :3], [np.rint(np.clip(means, 0, 255) * 253 / 255)] * 2)


def test_no_tile_runs_into_its_neighbour_in_a_jpeg():
    maps = np.zeros((30, 30, 4), np.float32)
    maps[..., 0::2] = np.random.default_rng(0).normal(size=(30, 30, 2)) ** 3
    maps[0, 0, 1::2] = 1e-3
    places = draw(maps, TileScaling(1, 1, BLOCK))
    files = [
        encode(Drawing(p, "a", "", {}, "jpeg", SEQUENTIAL))
        for p in (places, np.where(places < 254, 127, places))
    ]
    loud, quiet = (np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files)
    assert np.abs(loud[:30, :30] - quiet[:30, :30]).max() > 40
    calm = draw(maps[..., [1, 1, 3, 3]], TileScaling(1, 1, BLOCK))
    alone = np.asarray(Image.open(io.BytesIO(encode(Drawing(calm, "a", "", {}, "jpeg", SEQUENTIAL))))).astype(
        int
    )
    apart = np.abs(loud[:30, 32:62] - alone[:30, 32:62])  # beside a loud tile as beside a calm one,
    assert not apart[:, 1:-1].any()
    assert apart.max() <= 16  # but for the outermost pixels, whose colour decoders mix with that of the frame


def test_levels_are_mean_128_and_deviation_64_for_each_channel_and_image():
    values = np.array(
        [[[[0.0, -30.0, 7.0], [2.0, -10.0, 7.0]]], [[[5.0, 0.0, 1.0], [9.0, 0.0, -1.0]]]], np.float32
    )
    wanted = [[[[64, 64, 128], [192, 192, 128]]], [[[64, 128, 192], [192, 128, 64]]]]
    np.testing.assert_array_equal(standardize_channels(values), wanted)
    np.testing.assert_array_equal(
        standardize_channels(values[:1], np.float32([0, 0, 0]), np.float32([1, 20, 0])),
        [[[[128, 32, 128], [255, 96, 128]]]],
    )


def test_levels_are_clipped_and_keep_their_sign():
    values = np.array([[[[0.0]] * 24 + [[1.0]]]], np.float32)
    found = standardize_channels(values).numpy()[0, 0, :, 0]
    assert found[24] == 255.0
    assert 0 < found[0] < 128
    assert standardize_channels(-values).numpy()[0, 0, 24, 0] == 0.0


@pytest.mark.parametrize(
    ("values", "is_blank"),
    [
        ([0, 0], True),
        ([-1, -2], True),
        ([-1, 0], True),
        ([3, 3], True),
        ([0, 1], False),
        ([-1, 1], False),
        ([np.nan, 1], True),
    ],
)
def test_blank(values, is_blank):
    assert find_inactive_channels(tf.constant([[values]], tf.float32)[..., None]).numpy().tolist() == [
        [is_blank]
    ]


def test_what_lies_below_zero_is_no_activity():
    model = keras.Sequential([L.Input((1, 2, 1)), L.Conv2D(1, 1, name="c"), L.Flatten(), L.Dense(2)])
    model.get_layer("c").set_weights([np.ones((1, 1, 1, 1)), np.array([-50.0])])
    found = compute_activations(Network(model), np.array([[[[10], [70]]]], np.uint8))["c"]
    assert found.mean_activation.tolist() == [[10.0]]
    assert found.sparsity.tolist() == [0.0]


def test_a_strip_shows_units_in_their_order():
    found = draw_vector(standardize_vector(np.array([0.0, 2.0, 0.0, 2.0])))
    assert found.shape == (18, 4 * 17 + 1, 3)
    for unit, level in enumerate([64, 192, 64, 192]):
        assert (found[1:17, 1 + 17 * unit : 17 + 17 * unit] == VIRIDIS[level]).all()
    assert draw_vector(standardize_vector(np.arange(65.0))).shape == (2 * 17 + 1, 64 * 17 + 1, 3)
    assert (
        len(np.unique(draw_vector(standardize_vector(np.array([-3.0, -1.0]))).reshape(-1, 3), axis=0)) == 3
    )  # negative units: two cells and the frame


def test_statistics():
    tap, maps = (
        LayerInfo("a", "Conv2D", (1, 2, 2), None),
        FeatureMapOutputs(None, None, np.array([[1, 1], [1, 0], [0, 0]]), np.array([1.0, 0.5, 0.0])),
    )
    assert summarize_layer(tap, maps, 2) == {
        "layer": "a",
        "kind": "Conv2D",
        "shape": [1, 2, 2],
        "blank_channels": 0.75,
        "zeros": 0.75,
    }
    units = VectorOutputs(np.array([[0.0, 1.0]]), np.array([0.5]))
    assert summarize_layer(LayerInfo("d", "Dense", (2,), None), units, 1)["blank_channels"] is None


def test_mosaics_of_coloured_tiles():
    tiles = np.zeros((3, 2, 1, 3), np.uint8)
    tiles[0, 1, 0], tiles[2] = (1, 2, 3), 9
    found = draw_sheet(tiles, TileScaling(1, 4, 16), np.array([False, True, False]))
    assert found.shape == (16, 48, 3)
    assert (found[:4, :4] == 0).all()
    assert (found[4:8, :4] == (1, 2, 3)).all()
    assert (found[:8, 16:20] == INACTIVE).all()
    assert (found[:8, 32:36] == 9).all()
    assert (found[8:] == FRAME).all()


@pytest.mark.parametrize(
    ("shape", "wanted", "kind"),
    [
        ((7, 7, 512), "auto", "png"),
        ((64, 64, 64), "auto", "jpeg"),
        ((32, 32, 32), "auto", "png"),
        ((64, 64, 64), "webp", "webp"),
        ((64, 64, 8192), "webp", "png"),
        ((7, 7, 5), "jpeg", "jpeg"),
        ((64, 64, 64), "png", "png"),
    ],
)
def test_formats(shape, wanted, kind):
    assert choose_encoding(shape, wanted) == kind


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_show_the_palette(kind):
    places = np.kron(np.array([[0, 100], [253, 255]], np.uint8), np.ones((16, 16), np.uint8))
    image = Image.open(io.BytesIO(encode(Drawing(places, "a", "", {}, kind, SEQUENTIAL))))
    assert image.format == kind.upper()
    apart = np.abs(np.asarray(image.convert("RGB")).astype(int) - SEQUENTIAL[places]).reshape(2, 16, 2, 16, 3)
    assert apart[:, 4:-4, :, 4:-4].max() <= (0 if kind == "png" else 12)


def test_one_image_of_each_class_the_surest_right_one():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.7, 0.3]], np.float32)
    labels = np.array([0, 0, 1, 1, 1], np.int32)
    predictions = Predictions(probabilities, labels, np.arange(5))
    assert choose_examples(predictions, 2).tolist() == [1, 2]
    assert choose_examples(predictions, 5).tolist() == [1, 2, 0, 3, 4]
    assert choose_examples(predictions, 0).tolist() == []


def test_a_class_without_a_right_answer_gives_its_least_wrong_one():
    predictions = Predictions(
        np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]], np.float32),
        np.array([0, 1, 1], np.int32),
        np.arange(3),
    )
    assert choose_examples(predictions, 2).tolist() == [0, 2]


def test_classes_that_maps_are_made_for():
    assert choose_classes(np.array([0.1, 0.2, 0.7]), 0).tolist() == [0, 1, 2]
    many = np.array([0.1, 0.2, 0.4, 0.25, 0.05])
    assert choose_classes(many, 1).tolist() == [2, 3, 1]
    assert choose_classes(many, 4).tolist() == [2, 3, 4]


CLASSES = ("right", "left")


class Pair:
    """Two images that differ: a bright left half of class 1, a bright right half of class 0."""

    split = "validation"
    labels = np.array([1, 0], np.int32)
    pixels = np.array([[[[255], [255], [0], [0]]], [[[0], [0], [0], [102]]]], np.uint8)

    def read(self, rows):
        return self.pixels[np.asarray(rows)]

    def read_ids(self, rows):
        return [f"image-{row}" for row in rows]

    def read_bboxes(self, rows):
        return [None for _ in rows]

    def iterate_batches(self):
        return [
            {
                "image": self.pixels,
                "label": self.labels,
                "weight": np.ones(2, np.float32),
                "row": np.arange(2),
            }
        ]


def build_activations(folder: Path, count: int) -> Section | None:
    """Builds the section for the first examples of the pair."""
    model = keras.Sequential(
        [
            L.Input((1, 4, 1)),
            L.Conv2D(1, 1, name="identity"),
            L.GlobalAveragePooling2D(name="mean"),
            L.Dense(1, name="logits"),
        ]
    )
    model.set_weights([np.ones((1, 1, 1, 1)), np.zeros(1), np.array([[10.0]]), np.array([-3.0])])
    scale = 1 / 255
    network = Network(model, scale)
    predictions = predict(model, Pair().iterate_batches(), scale)
    examples = select_examples(predictions, Pair(), CLASSES, ReportOptions())
    return build_section(
        Album(folder),
        Provenance("model-digest", "shards-digest", scale, "validation"),
        network,
        examples[:count],
        forward(network, examples, choose_heatmap_layers(network, 1)),
        CLASSES,
        "auto",
    )


def test_every_image_is_shown_with_its_own_activations(tmp_path):
    section = build_activations(tmp_path, 2)
    assert section is not None
    assert section.figures["rows"] == [1, 0]
    for example, row, mean in zip(section.values["examples"], [1, 0], [0.1, 0.5], strict=True):
        assert example["truth"] == example["predicted"] == CLASSES[Pair.labels[row]]
        assert example["probability"] == pytest.approx(1 / (1 + np.exp(-abs(10 * mean - 3))), rel=1e-5)
        layers = {layer["layer"]: layer for layer in example["layers"]}
        picture = np.asarray(Image.open(tmp_path / layers["identity"]["picture"].file).convert("RGB"))
        values = Pair.pixels[row][..., 0].astype(float)
        tile = SEQUENTIAL[np.kron(expected(values), np.ones((6, 6), np.uint8))]
        np.testing.assert_array_equal(picture[:6, :24], tile)
        assert layers["identity"]["sheet"]["tile"] == (24, 6)
        assert f"validation image {row}, {example['truth']}" in layers["identity"]["picture"].alt
        photo = np.asarray(Image.open(tmp_path / example["picture"].file))
        np.testing.assert_array_equal(photo[0, ::28], Pair.pixels[row, 0, :, 0])
        assert layers["mean"]["values"] == pytest.approx([mean], rel=1e-6)
        assert layers["logits"]["values"] == pytest.approx([10 * mean - 3], rel=1e-5)


def test_without_examples_there_is_no_section(tmp_path):
    assert build_activations(tmp_path, 0) is None
