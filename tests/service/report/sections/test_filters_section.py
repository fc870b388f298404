"""The section of filter patterns: which layers it shows, and how it classifies filters without a pattern."""

from __future__ import annotations

import keras
import numpy as np
from PIL import Image

from service.report.analysis.examples import ReportExample
from service.report.analysis.forward import ForwardPass, forward
from service.report.analysis.network import Network
from service.report.drawing.album import Album
from service.report.drawing.colours import INACTIVE
from service.report.sections.filters import build_section, select_layers
from service.report.sections.provenance import Provenance

L = keras.layers
PROVENANCE = Provenance("model-digest", "shards-digest", 1.0, "validation")


def build_network(*layers: keras.Layer) -> Network:
    return Network(keras.Sequential([L.Input((6, 8, 3)), *layers, L.GlobalAveragePooling2D(), L.Dense(2)]))


def run_on_red_image(network: Network) -> ForwardPass:
    pixels = np.broadcast_to(np.array([200, 0, 0], np.uint8), (6, 8, 3))
    example = ReportExample(0, pixels, 0, 0, 1.0, np.array([0, 1]), "validation image 0, red")
    return forward(network, [example], ["c"])


def test_layers_are_spread_over_the_depth():
    network = build_network(*[L.Conv2D(2, 1, name=f"c{n}") for n in range(12)])
    names = [layer.name for layer in select_layers(network)]
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
    section = build_section(Album(tmp_path), PROVENANCE, network, run_on_red_image(network), count=4, seed=0)
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
        assert (np.abs(tile - INACTIVE).max() <= 4) == (n in layer["sheet"]["blank"])


def test_there_is_no_section_without_convolutions(tmp_path):
    network = Network(keras.Sequential([L.Input((2, 2, 1)), L.Flatten(), L.Dense(2)]))
    outputs = ForwardPass(np.zeros((0, 2), np.float32), {}, {})
    assert build_section(Album(tmp_path), PROVENANCE, network, outputs, count=4, seed=0) is None
