"""The map of the images: points that the page can decode, small, and with the right rows and classes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.inference.classifier import Features, Predictions
from service.report.analysis.embedding import embed
from service.report.pages import page
from service.report.sections.embedding import (
    MAX_POINTS,
    build_section,
    choose_points,
    encode,
    measure_agreement,
)


def decode(data: dict) -> dict[str, np.ndarray]:
    """Reads points as the script of the page does."""
    truth = np.array(data["truth"])
    predicted = truth.copy()
    for index, label in data["errors"].items():
        predicted[int(index)] = label
    return {
        "x": np.array(data["x"]) / data["steps"],
        "y": np.array(data["y"]) / data["steps"],
        "truth": truth,
        "predicted": predicted,
        "row": np.cumsum(data["gaps"]),
    }


@pytest.mark.parametrize("classes", [3, 1000])
def test_points_are_decoded_as_they_were(classes: int) -> None:
    generator = np.random.default_rng(0)
    positions = generator.normal(size=(500, 2)) * [3, 1] + [7, -20]
    labels = generator.integers(0, classes, 500).astype(np.int32)
    predicted = generator.integers(0, classes, 500).astype(np.int32)
    rows = np.sort(generator.permutation(4000)[:500])
    data = encode(positions, labels, predicted, rows, [str(k) for k in range(classes)], "validation")
    points = decode(json.loads(json.dumps(data)))
    np.testing.assert_array_equal(points["row"], rows)
    np.testing.assert_array_equal(points["truth"], labels)
    np.testing.assert_array_equal(points["predicted"], predicted)
    # The same scale for both axes, y from the top.
    x = points["x"]
    y = -points["y"] * data["ratio"]
    scale = np.ptp(x) / np.ptp(positions[:, 0])
    np.testing.assert_allclose(x - x.mean(), (positions[:, 0] - positions[:, 0].mean()) * scale, atol=2e-3)
    np.testing.assert_allclose(y - y.mean(), (positions[:, 1] - positions[:, 1].mean()) * scale, atol=2e-3)
    assert points["x"].min() >= 0
    assert points["x"].max() <= 1
    assert points["y"].min() >= 0
    assert points["y"].max() <= 1


def test_of_many_images_all_errors_and_evenly_spaced_others_are_shown_in_little_space() -> None:
    is_wrong = np.zeros(5000, np.bool_)
    is_wrong[4000:4100] = True
    shown = choose_points(is_wrong)
    assert len(shown) == MAX_POINTS
    assert (np.diff(shown) > 0).all()
    assert is_wrong[shown].sum() == 100
    assert np.diff(shown[~is_wrong[shown]]).max() <= 100 + 3
    assert choose_points(np.ones(5000, np.bool_)).tolist() == [
        n * 5000 // MAX_POINTS for n in range(MAX_POINTS)
    ]
    assert choose_points(is_wrong[3900:4100]).tolist() == list(range(200))
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, MAX_POINTS).astype(np.int32)
    positions = generator.normal(size=(MAX_POINTS, 2))
    data = encode(positions, labels, labels, shown * 2, ["a", "b"], "validation")
    assert len(json.dumps(data)) < 26_000


def test_neighbours_of_separated_classes_agree_and_of_noise_do_not() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(400) % 2
    noise = generator.normal(size=(400, 5)).astype(np.float32)
    assert measure_agreement(noise, labels) == pytest.approx(0.5, abs=0.05)
    assert measure_agreement(noise + 20 * labels[:, None].astype(np.float32), labels) == 1.0


def test_the_section_states_method_layer_and_number_of_images() -> None:
    generator = np.random.default_rng(2)
    labels = np.arange(40) % 2
    probabilities = np.eye(2, dtype=np.float32)[labels]
    predictions = Predictions(probabilities, labels.astype(np.int32), np.arange(40))
    features = Features(generator.normal(size=(20, 6)).astype(np.float32), np.arange(1, 40, 2), "logits")
    section = build_section(
        predictions, features, embed(features.values, "pca", 0), ("<a>", "b"), "validation"
    )
    html = page.load_templates().get_template("embedding.html").render(values=section.values)
    assert "20 of the 40 evaluated images, evenly spaced" in html
    assert "principal component analysis" in html
    assert "<code>logits</code>" in html
    assert "&lt;a&gt;" in html
    assert section.figures["points"]["row"] == list(range(1, 40, 2))
    assert decode(section.values["data"])["truth"].tolist() == [1] * 20
    assert build_section(predictions, features, None, ("a", "b"), "validation") is None
