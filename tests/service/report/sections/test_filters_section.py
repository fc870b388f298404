"""The section of filter patterns: which layers it shows, and how it classifies filters without a pattern."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from PIL import Image

from service.report.analysis.examples import ReportExample
from service.report.analysis.forward import ForwardPass, forward
from service.report.analysis.network import Network
from service.report.analysis.patterns import choose_pattern_layers
from service.report.analysis.receptive_field import compute_receptive_fields
from service.report.analysis.top_crops import Scan, scan_images
from service.report.drawing.album import Album
from service.report.drawing.colours import INACTIVE
from service.report.sections.channel_crops import CropPictures
from service.report.sections.filter_cards import FilterCards
from service.report.sections.filters import build_section
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

L = keras.layers
PROVENANCE = Provenance("model-digest", "shards-digest", 1.0, "validation")


def build_network(*layers: keras.Layer) -> Network:
    return Network(keras.Sequential([L.Input((6, 8, 3)), *layers, L.GlobalAveragePooling2D(), L.Dense(2)]))


def run_on_red_image(network: Network) -> ForwardPass:
    pixels = np.broadcast_to(np.array([200, 0, 0], np.uint8), (6, 8, 3))
    example = ReportExample(0, pixels, 0, 0, 1.0, np.array([0, 1]), "validation image 0, red")
    return forward(network, [example], ["c"])


class Photos:
    """Images in memory, as a split."""

    split = "validation"

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.labels = np.zeros(len(pixels), np.int32)

    def read(self, rows):
        return self.pixels[list(rows)]


def open_cards(
    directory: Path, network: Network, images: Photos, scan: Scan | None = None, count: int = 0
) -> FilterCards:
    album = Album(directory)
    fields = compute_receptive_fields(network)
    crops = CropPictures(album, PROVENANCE, images, scan, fields, network.shape[:2])
    return FilterCards(album, PROVENANCE, network, crops, fields, np.eye(3), count, seed=0)


def build(directory: Path, network: Network, forward_pass: ForwardPass, cards: FilterCards) -> Section | None:
    return build_section(cards.album, PROVENANCE, network, forward_pass, cards, count=4, seed=0)


def test_layers_are_spread_over_the_depth():
    network = build_network(*[L.Conv2D(2, 1, name=f"c{n}") for n in range(12)])
    names = [layer.name for layer in choose_pattern_layers(network)]
    assert names == ["c0", "c2", "c3", "c5", "c6", "c8", "c9", "c11"]


def test_dead_filters_are_distinguished_from_those_that_only_images_activate(tmp_path):
    """Filter 1 needs more red than gradient ascent reaches from grey, but the red image has it."""
    network = build_network(L.Conv2D(20, 1, activation="relu", name="c"))
    kernel = np.zeros((1, 1, 3, 20), np.float32)
    kernel[0, 0, 0, 1] = 1
    kernel[0, 0, 2, 2] = 1
    bias = np.full(20, -1.0)
    bias[1] = -195
    bias[2] = 0
    network.model.get_layer("c").set_weights([kernel, bias])
    cards = open_cards(tmp_path, network, Photos(np.zeros((0, 6, 8, 3), np.uint8)))
    section = build(tmp_path, network, run_on_red_image(network), cards)
    assert section is not None
    (layer,) = section.values["layers"]
    assert [row["state"] for row in layer["table"]] == ["dead", "no pattern", "active", "dead"]
    assert section.figures["layers"][0]["dead"] == [0, 3]
    assert layer["picture"].alt.endswith("dead: 0, 3")
    assert layer["sheet"]["blank"] == [0, 1, 3]
    # Noise that did not change is not shown as if it had been learned.
    pixels = np.asarray(Image.open(tmp_path / layer["picture"].file).convert("RGB")).astype(int)
    width, height = layer["sheet"]["tile"]
    pitch = layer["sheet"]["pitch"][0]
    for n in range(4):
        tile = pixels[:height, n * pitch : n * pitch + width]
        assert (np.abs(tile - INACTIVE).max() <= 8) == (n in layer["sheet"]["blank"])


def test_there_is_no_section_without_convolutions(tmp_path):
    network = Network(keras.Sequential([L.Input((2, 2, 1)), L.Flatten(), L.Dense(2)]))
    outputs = ForwardPass(np.zeros((0, 2), np.float32), {}, {})
    cards = FilterCards(Album(tmp_path), PROVENANCE, network, None, {}, np.eye(1), 2, seed=0)
    assert build(tmp_path, network, outputs, cards) is None


def test_convolutions_of_one_position_have_no_pattern():
    image = keras.Input((6, 8, 3))
    x = L.Conv2D(2, 3, name="c")(image)
    gate = L.Conv2D(2, 1, name="gate")(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.GlobalAveragePooling2D()(L.Multiply()([x, gate]))
    network = Network(keras.Model(image, L.Dense(2)(x)))
    assert [layer.name for layer in choose_pattern_layers(network)] == ["c"]


def test_cards_show_pattern_crops_and_kernel(tmp_path):
    """Filter 0 looks for red, filter 1 for green, filter 2 for nothing."""
    network = build_network(L.Conv2D(3, 1, activation="relu", name="c"))
    kernel = np.zeros((1, 1, 3, 3), np.float32)
    kernel[0, 0, :, 0] = [2, -1, 0]
    kernel[0, 0, :, 1] = [-1, 2, 0]
    network.model.get_layer("c").set_weights([kernel, np.array([0.0, 0.0, -1.0])])
    pixels = np.zeros((4, 6, 8, 3), np.uint8)
    pixels[1, 2, 5] = [250, 10, 10]
    pixels[3, 4, 1] = [0, 120, 0]
    images = Photos(pixels)
    scan = scan_images(network, images, np.arange(4), {"c": 3})
    cards = open_cards(tmp_path, network, images, scan, count=3)
    section = build(tmp_path, network, run_on_red_image(network), cards)
    assert section is not None
    (layer,) = section.values["layers"]
    red, green, nothing = layer["cards"]
    assert layer["field"] == [1, 1]
    assert section.figures["scanned_images"] == 4
    assert section.figures["layers"][0]["crops"][:2] == [
        {"rows": [1], "activations": [490]},
        {"rows": [3], "activations": [240]},
    ]
    assert nothing["state"] == "dead"
    assert nothing["pattern"] is None
    assert nothing["crops"] is None
    for card, colour, other in ((red, 0, 1), (green, 1, 0)):
        pattern = np.asarray(Image.open(tmp_path / card["pattern"].file)).astype(int)
        assert pattern[..., colour].mean() > pattern[..., other].mean() + 20
        crop = np.asarray(Image.open(tmp_path / card["crops"]["picture"].file)).astype(int)[10:50, 10:50]
        assert crop[..., colour].min() > crop[..., other].max() + 60
        shown = np.asarray(Image.open(tmp_path / card["kernel"].file))
        assert shown.shape == (96, 96, 3)
        assert shown[0, 0, colour] == 255
        assert shown[0, 0, other] == 64
        assert shown[0, 0, 2] == 128
    entries = [origin for entry in cards.album.entries.values() for origin in entry["made_from"]]
    assert {"positions": [[2, 5]], "rows": [1], "channel": 0}.items() <= next(
        entry for entry in entries if entry.get("channel") == 0
    ).items()
