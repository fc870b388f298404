"""Heatmaps and saliency maps: each picture is of the image, class, layer and method it is labelled with."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from PIL import Image

from service.inference.classifier import predict
from service.report.analysis.examples import ReportExample, select_examples
from service.report.analysis.forward import ForwardPass, choose_heatmap_layers, forward
from service.report.analysis.network import Network
from service.report.drawing import heatmap
from service.report.drawing.album import Album
from service.report.drawing.colours import DIVERGING, SEQUENTIAL
from service.report.options import ReportOptions
from service.report.pages.page import load_templates
from service.report.sections import heatmaps, image_checks, saliency
from service.report.sections.provenance import Provenance

L = keras.layers
CLASSES = ("dark", "bright")
PROVENANCE = Provenance("model-digest", "shards-digest", 1.0, "validation")
BRIGHT = np.array([[0, 0, 200, 0], [0, 0, 0, 100], [40, 0, 0, 0]], np.uint8)  # three images of four pixels


class Rows:
    """The three images; the third is of the other class."""

    split = "validation"
    labels = np.array([1, 1, 0], np.int32)

    def read(self, rows):
        return BRIGHT[np.asarray(rows)][:, None, :, None]

    def iterate_batches(self):
        return [
            {
                "image": self.read(range(3)),
                "label": self.labels,
                "weight": np.ones(3, np.float32),
                "row": np.arange(3),
            }
        ]


class Outputs(NamedTuple):
    """Forward pass and predictions of the three images, as the sections receive them."""

    network: Network
    examples: tuple[ReportExample, ...]
    forward_pass: ForwardPass


@pytest.fixture(scope="module")
def outputs() -> Outputs:
    """Two filters that shift the image left, one after the other; class 1 is what is bright after both."""
    shift = {"kernel_size": (1, 2), "padding": "same", "use_bias": False}
    model = keras.Sequential(
        [L.Input((1, 4, 1)), L.Conv2D(1, name="once", **shift), L.Conv2D(1, name="twice", **shift)]
    )
    model.add(L.GlobalAveragePooling2D())
    model.add(L.Dense(1))
    right = np.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    model.set_weights([right, right, np.array([[1.0]]), np.array([-10.0])])
    network = Network(model)
    options = ReportOptions(heatmap_images=3, activation_images=3)
    predictions = predict(model, Rows().iterate_batches(), 1.0)
    examples = select_examples(predictions, Rows(), CLASSES, options)  # type: ignore[arg-type]
    return Outputs(network, examples, forward(network, examples, choose_heatmap_layers(network, 3)))


def assert_shows(file: Path, indices: np.ndarray, palette: np.ndarray = SEQUENTIAL) -> None:
    """Asserts that a picture shows these colours of a palette, up to the errors of its encoding."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(pixels - palette[indices]).mean() < 4
    assert np.abs(pixels - palette[indices]).max() < 60


def test_every_map_is_of_its_image_class_layer_and_method(outputs: Outputs, tmp_path: Path) -> None:
    section = heatmaps.build_section(
        Album(tmp_path), PROVENANCE, outputs.examples, outputs.forward_pass, CLASSES
    )
    assert section is not None
    assert sorted(section.figures["rows"]) == [0, 1, 2]
    combinations = set()
    for n, example in enumerate(section.values["examples"]):
        shown = example["shown"]
        row = shown.row
        image = BRIGHT[row].astype(np.float32)
        assert section.examples[n] == shown
        assert shown.photo.alt == f"Validation image {row}, {CLASSES[Rows.labels[row]]}"
        assert shown.truth == CLASSES[Rows.labels[row]]
        for map_of_class in example["maps"]:
            when = map_of_class["when"]
            label = int(when["class"][-1])
            assert ("predicted" in when["class"]) == (CLASSES[label] == shown.predicted)
            shift = {"once": 1, "twice": 2}[when["layer"]]
            supports = label == 1  # nothing supports class 0
            shifted = np.append(image[shift:], np.zeros(shift, np.float32))[None] * supports
            assert map_of_class["is_empty"] == (not shifted.any())
            assert_shows(tmp_path / map_of_class["picture"].file, heatmap.quantize_heatmap(shifted, (1, 4)))
            for text in (
                heatmaps.TITLES[when["method"]],
                f"of {when['layer']} for {CLASSES[label]}:",
                f"image {row},",
            ):
                assert text in map_of_class["picture"].alt
            combinations.add((n, label, when["layer"], when["method"]))
    assert len(combinations) == 3 * 2 * 2 * 3


def test_every_map_is_next_to_its_photo_and_the_script_puts_it_over_the_photo(
    outputs: Outputs, tmp_path: Path
) -> None:
    """The overlay follows the figure whose maps it repeats; until the script does so, it is hidden."""
    section = heatmaps.build_section(
        Album(tmp_path), PROVENANCE, outputs.examples, outputs.forward_pass, CLASSES
    )
    assert section is not None
    template = load_templates().get_template("gradcam.html")
    html = template.render(values=section.values)
    by_example = html.split('class="side-by-side"')[1:]
    assert len(by_example) == 3
    for example, text in zip(section.values["examples"], by_example, strict=True):
        original, alone, overlay = re.split("<figure[^>]*>", text)[1:]
        photo = f'src="{example["shown"].photo.file}"'
        assert (original.count(photo), alone.count(photo), overlay.count(photo)) == (1, 0, 1)
        shown_when = re.compile(r"src=\"(pictures/map[^\"]*)\".*?data-when='([^']*)'")
        expected = [(m["picture"].file, m["when"]) for m in example["maps"]]
        assert [(file, json.loads(when)) for file, when in shown_when.findall(alone)] == expected
        assert re.findall("<figure[^>]*>", text)[2] == "<figure hidden data-overlay>"
        assert not shown_when.search(overlay)


def test_every_choice_of_the_class_control_shows_a_map_of_every_image(outputs: Outputs) -> None:
    few = heatmaps.list_class_choices(outputs.examples, CLASSES)
    assert few == {"predicted": "predicted class", "0": "dark", "1": "bright"}
    many = heatmaps.list_class_choices(outputs.examples, [f"class {label}" for label in range(9)])
    assert list(many) == ["0", "1", "2"]
    assert many["2"].endswith("or true class")
    unlabelled = [replace(example, truth=None) for example in outputs.examples]
    assert "true" not in heatmaps.list_class_choices(unlabelled, [""] * 9)["2"]


def test_without_a_true_class_nothing_is_said_about_correctness(outputs: Outputs, tmp_path: Path) -> None:
    examples = [replace(example, truth=None, row=None, file="own.png") for example in outputs.examples]
    section = heatmaps.build_section(Album(tmp_path), PROVENANCE, examples, outputs.forward_pass, CLASSES)
    assert section is not None
    html = load_templates().get_template("gradcam.html").render(values=section.values)
    selector = load_templates().get_template("picture.html").module.image_selector(section.examples)
    for text in (html, str(selector)):
        assert "correct" not in text
        assert "None" not in text
    assert "own.png" in selector


def test_every_saliency_map_is_of_its_image_and_class(outputs: Outputs, tmp_path: Path) -> None:
    """The network is linear: a pixel has a gradient if the shifts keep it in the picture."""
    section = saliency.build_section(
        Album(tmp_path), PROVENANCE, outputs.network, outputs.examples, CLASSES, seed=0
    )
    assert section is not None
    for example in section.values["examples"]:
        sign = {"bright": 1, "dark": -1}[example["shown"].predicted]
        gradient = np.array([[0, 0, 1, 1]], np.float32) * sign / 8  # of z/2 or -z/2
        files = {method: tmp_path / picture.file for method, picture in example["maps"].items()}
        assert list(files) == list(saliency.METHODS)
        for method in ("gradient", "smooth"):
            assert_shows(files[method], heatmap.quantize_heatmap(np.abs(gradient), (1, 4)))
        signed = heatmap.quantize_signed_map(gradient * BRIGHT[example["shown"].row], (1, 4))
        assert_shows(files["integrated"], signed, DIVERGING)
        assert example["incomplete"] < 1e-5 or not BRIGHT[example["shown"].row, 2:].any()


def test_every_check_is_of_its_image(outputs: Outputs, tmp_path: Path) -> None:
    """The signed map of the last layer is the image shifted twice, negative for the first class."""
    weights = [weight.copy() for weight in outputs.network.model.get_weights()]
    section = image_checks.build_section(
        Album(tmp_path), PROVENANCE, outputs.network, outputs.examples, CLASSES, seed=0
    )
    assert section is not None
    for before, after in zip(weights, outputs.network.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    for example, figures in zip(section.values["examples"], section.figures["images"], strict=True):
        shown = example["shown"]
        assert figures["image"] == f"row {shown.row}"
        sign = {"bright": 1, "dark": -1}[shown.predicted]
        shifted = np.append(BRIGHT[shown.row][2:], [0, 0])[None].astype(np.float32)
        signed = heatmap.quantize_signed_map(shifted * sign, (1, 4))
        assert_shows(tmp_path / example["map"].file, signed, DIVERGING)
        assert "shuffled" not in example["map"].alt
        assert "with shuffled weights" in example["shuffled"].alt
        assert example["with_second"] is None  # one unit: the map of the other class is the negative
        assert -1 <= example["with_shuffled"] <= 1
        for area in ("deletion", "insertion", "random_deletion", "random_insertion"):
            assert 0 <= figures[area] <= 1
