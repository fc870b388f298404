"""The section of activations: every example is shown with its own layer outputs."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from service.inference.classifier import predict
from service.report.analysis.architecture import describe_architecture
from service.report.analysis.examples import select_examples
from service.report.analysis.forward import choose_heatmap_layers, forward
from service.report.analysis.network import Network
from service.report.drawing.album import Album
from service.report.drawing.colours import SEQUENTIAL
from service.report.options import ReportOptions
from service.report.sections.activations import build_section
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

L = keras.layers


def standardize_and_quantize(values: np.ndarray) -> np.ndarray:
    """The palette indices of a map: its mean is level 128 of 255, its standard deviation 64 levels."""
    levels = (values - values.mean()) / values.std() * 64 + 128
    return np.rint(np.clip(levels, 0, 255) * 253 / 255).astype(np.uint8)


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


def mean_model() -> keras.Model:
    """A model of one logit: ten times the mean, minus 3."""
    model = keras.Sequential(
        [
            L.Input((1, 4, 1)),
            L.Conv2D(1, 1, name="identity"),
            L.GlobalAveragePooling2D(name="mean"),
            L.Dense(1, name="logits"),
        ]
    )
    model.set_weights([np.ones((1, 1, 1, 1)), np.zeros(1), np.array([[10.0]]), np.array([-3.0])])
    return model


def build_activations(folder: Path, count: int, model: keras.Model | None = None) -> Section | None:
    """Builds the section for the first examples of the pair."""
    model = model or mean_model()
    scale = 1 / 255
    network = Network(model, scale)
    predictions = predict(model, Pair().iterate_batches(), scale)
    examples = select_examples(predictions, Pair(), CLASSES, ReportOptions())
    return build_section(
        Album(folder),
        Provenance("model-digest", "shards-digest", scale, "validation"),
        describe_architecture(network),
        examples[:count],
        forward(network, examples, choose_heatmap_layers(network, 1)),
        CLASSES,
        "auto",
    )


def list_layers(section: Section) -> list[dict]:
    """The layers of all blocks, in order."""
    parts = [part for block in section.values["blocks"] for part in block["parts"]]
    return [layer for part in parts for layer in part["layers"]]


def test_every_image_is_shown_with_its_own_activations(tmp_path):
    section = build_activations(tmp_path, 2)
    assert section is not None
    assert section.figures["rows"] == [1, 0]
    assert [shown.row for shown in section.examples] == [1, 0]
    for n, (row, mean) in enumerate([(1, 0.1), (0, 0.5)]):
        example = section.values["examples"][n]
        shown = example["shown"]
        assert shown.truth == shown.predicted == CLASSES[Pair.labels[row]]
        assert shown.probability == pytest.approx(1 / (1 + np.exp(-abs(10 * mean - 3))), rel=1e-5)
        layers = {layer["layer"]: layer["outputs"][n] for layer in list_layers(section)}
        picture = np.asarray(Image.open(tmp_path / layers["identity"]["picture"].file).convert("RGB"))
        values = Pair.pixels[row][..., 0].astype(float)
        tile = SEQUENTIAL[np.kron(standardize_and_quantize(values), np.ones((6, 6), np.uint8))]
        np.testing.assert_array_equal(picture[:6, :24], tile)
        assert layers["identity"]["sheet"]["tile"] == (24, 6)
        assert f"validation image {row}, {shown.truth}" in layers["identity"]["picture"].alt
        photo = np.asarray(Image.open(tmp_path / shown.photo.file))
        np.testing.assert_array_equal(photo[0, ::28], Pair.pixels[row, 0, :, 0])
        assert layers["mean"]["values"] == pytest.approx([mean], rel=1e-6)
        assert layers["logits"]["values"] == pytest.approx([10 * mean - 3], rel=1e-5)
        outputs = example["outputs"]
        assert outputs["kind"] == "logit"
        assert [name for name, _ in outputs["values"]] == list(CLASSES)
        assert [value for _, value in outputs["values"]] == pytest.approx([3 - 10 * mean, 10 * mean - 3])


def test_the_output_of_a_sigmoid_is_listed_as_probabilities(tmp_path):
    """The analysis takes the logits before the sigmoid, but the layer that is shown is the sigmoid."""
    model = mean_model()
    model.add(L.Activation("sigmoid", name="probabilities"))
    section = build_activations(tmp_path, 2, model)
    assert section is not None
    for n, (example, mean) in enumerate(zip(section.values["examples"], [0.1, 0.5], strict=True)):
        probability = 1 / (1 + np.exp(3 - 10 * mean))
        assert example["outputs"]["kind"] == "probability"
        values = [value for _, value in example["outputs"]["values"]]
        assert values == pytest.approx([1 - probability, probability], rel=1e-5)
        layers = {layer["layer"]: layer["outputs"][n] for layer in list_layers(section)}
        assert layers["probabilities"]["values"] == pytest.approx([probability], rel=1e-5)


def test_probabilities_that_are_no_sigmoid_of_keras_are_listed_by_class(tmp_path):
    inputs = L.Input((1, 4, 1))
    logit = L.Dense(1)(L.GlobalAveragePooling2D(name="mean")(L.Conv2D(1, 1)(inputs)))
    model = keras.Model(
        inputs, L.Rescaling(0.5, offset=0.25, name="squeezed")(L.Activation("sigmoid")(logit))
    )
    model.set_weights([np.ones((1, 1, 1, 1)), np.zeros(1), np.array([[10.0]]), np.array([-3.0])])
    section = build_activations(tmp_path, 2, model)
    assert section is not None
    for example, mean in zip(section.values["examples"], [0.1, 0.5], strict=True):
        probability = 0.5 / (1 + np.exp(3 - 10 * mean)) + 0.25
        outputs = example["outputs"]
        assert outputs["kind"] == "probability"
        assert [value for _, value in outputs["values"]] == pytest.approx([1 - probability, probability])


def test_without_examples_there_is_no_section(tmp_path):
    assert build_activations(tmp_path, 0) is None


def gated_model() -> keras.Model:
    """A convolution, a gate beside it, and a shortcut with a convolution."""
    inputs = L.Input((1, 4, 1))
    x = L.Conv2D(1, 1, name="conv")(inputs)
    gate = L.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = L.Conv2D(1, 1, activation="sigmoid", name="excite")(gate)
    x = L.Multiply(name="scaled")([x, gate])
    y = L.Conv2D(1, (1, 3), padding="same", name="long")(x)
    y = L.Conv2D(1, (1, 3), padding="same", name="longer")(y)
    x = L.Add(name="sum")([L.Conv2D(1, 1, name="short")(x), y])
    return keras.Model(inputs, L.Dense(1, name="logits")(L.GlobalAveragePooling2D(name="mean")(x)))


def test_layers_are_listed_once_by_block_and_side_branches_apart(tmp_path):
    section = build_activations(tmp_path, 2, gated_model())
    assert section is not None
    parts = [
        [part["title"], part["end"], *(layer["layer"] for layer in part["layers"])]
        for block in section.values["blocks"]
        for part in block["parts"]
    ]
    assert parts == [
        ["", "conv", "conv"],
        ["Gate (squeeze-and-excitation)", "scaled", "squeeze", "excite"],
        ["", "scaled", "scaled"],
        ["", "long", "long"],
        ["", "longer", "longer"],
        ["Shortcut", "sum", "short"],
        ["", "sum", "sum"],
        ["", "mean", "mean"],
        ["", "logits", "logits"],
    ]
    assert section.anchors == {f"layer-{layer['layer']}" for layer in list_layers(section)}
    assert all(len(layer["outputs"]) == 2 for layer in list_layers(section))
