"""Sanity checks: a network with correct heatmaps passes all of them, and each kind of wrong ones fails."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.inference.classifier import predict
from service.report.analysis.measures import (
    STEPS,
    PerturbationCurves,
    compute_edge_strength,
    score_localization,
)
from service.report.analysis.network import Network
from service.report.sections import trust
from service.report.sections.section import Section

L = keras.layers
RNG = np.random.default_rng(0)


def test_correct_maps_pass_all_scores_and_wrong_ones_fail_at_least_one():
    images = []
    boxes = []
    maps = []
    for n in range(24):
        image = RNG.normal(100, 5, (32, 32, 3))
        y, x = RNG.integers(3, 13, 2)
        image[y : y + 12, x : x + 12] += 60
        image[26:31:2, 2 + n % 20 : 8 + n % 20] += 120  # the distractor
        right = np.zeros((16, 16), np.float32)
        right[(y + 2) // 2 : (y + 10) // 2, (x + 2) // 2 : (x + 10) // 2] = 1
        right[(y + 6) // 2, (x + 6) // 2] = 3
        images.append(image), maps.append(right), boxes.append((y / 32, x / 32, (y + 12) / 32, (x + 12) / 32))

    def passes(wrong) -> list[bool | None]:
        return [check.is_passed for check in trust.check_localization(wrong, images, boxes, 0)]

    assert passes(maps) == [True, True, True]
    assert score_localization(maps, images, boxes).chance == pytest.approx((12 / 32) ** 2)
    wrong = {
        "edges": [compute_edge_strength(image).astype(np.float32) for image in images],
        "transposed": [m.T.copy() for m in maps],
        "neighbour's": maps[1:] + maps[:1],
        "noise": [RNG.random((16, 16)).astype(np.float32) for _ in maps],
        "spread": [m + 1 for m in maps],
        "empty": [np.zeros_like(m) for m in maps],
        "flipped": [1 - m / 3 for m in maps],
    }
    verdicts = {name: passes(values) for name, values in wrong.items()}
    assert not any(all(verdict) for verdict in verdicts.values())
    assert verdicts["spread"] == [True, False, True]
    assert verdicts["empty"] == [False, False, True]
    assert verdicts["edges"][2] is False


class Spots:
    """Pictures with a bright square that decides the class by its colour, and its box; grey elsewhere."""

    split = "validation"
    count = 32

    def __init__(self, boxes: bool = True) -> None:
        generator = np.random.default_rng(1)
        self.labels = np.arange(self.count, dtype=np.int32) % 2
        self.places = generator.integers(0, 12, (self.count, 2))
        self.images = generator.integers(90, 110, (self.count, 16, 16, 3)).astype(np.uint8)
        self.boxes = boxes
        for image, label, (y, x) in zip(self.images, self.labels, self.places, strict=True):
            image[y : y + 4, x : x + 4, 2 * label] = 250

    def read(self, rows):
        return self.images[np.asarray(rows)]

    def read_ids(self, rows):
        return [str(row) for row in rows]

    def read_bboxes(self, rows):
        return [
            (y / 16, x / 16, (y + 4) / 16, (x + 4) / 16) if self.boxes else None for y, x in self.places[rows]
        ]

    def iterate_batches(self):
        return [
            {
                "image": self.images,
                "label": self.labels,
                "weight": np.ones(self.count, np.float32),
                "row": np.arange(self.count),
            }
        ]


def colour_model(trained: bool = True) -> keras.Model:
    """Channel 0 responds to red above 110, channel 1 to blue; class 0 is red. Or an untrained network."""
    keras.utils.set_random_seed(0)
    convolution = L.Conv2D(2, 1, activation="relu", name="colours")
    model = keras.Sequential(
        [L.Input((16, 16, 3)), convolution, L.GlobalAveragePooling2D(), L.Dense(2, activation="softmax")]
    )
    if trained:
        kernel = np.zeros((1, 1, 3, 2), np.float32)
        kernel[0, 0, 0, 0] = kernel[0, 0, 2, 1] = 1
        model.set_weights([kernel, np.array([-115.0, -115.0]), np.eye(2) * 2 - np.eye(2)[::-1], np.zeros(2)])
    return model


def build_section(model: keras.Model, images: Spots, count: int) -> Section | None:
    predictions = predict(model, images.iterate_batches(), 1.0)
    return trust.build_section(Network(model), predictions, images, count, seed=0)


def checks_of(model: keras.Model, images: Spots, count: int = 24) -> dict[str, dict]:
    section = build_section(model, images, count)
    assert section is not None
    return {check["name"]: check for check in section.figures["checks"]}


def test_a_network_that_looks_at_the_object_passes():
    section = build_section(colour_model(), Spots(), 24)
    assert section is not None
    checks = {check["name"]: check for check in section.figures["checks"]}
    assert list(checks) == [
        "Reproducibility",
        "Weight randomization",
        "Class sensitivity",
        "Deletion",
        "Insertion",
        "Pointing game",
        "Energy in the bounding box",
        "Distraction by edges",
    ]
    assert checks["Reproducibility"]["value"] == pytest.approx(1)
    for name in checks.keys() - {"Weight randomization"}:  # of two filters, a shuffle changes little
        assert checks[name]["passed"], checks[name]
    assert checks["Pointing game"]["value"] == 1
    assert checks["Class sensitivity"]["value"] < 0
    assert len(section.figures["rows"]) == len(set(section.figures["rows"])) == 24
    assert section.values["plots"][0].lines[0].values[0] > 0.9


@pytest.mark.parametrize(
    ("correlation", "same", "shuffled", "second"),
    [
        (0.6, False, False, False),
        (-0.5, False, False, True),
        (0.2, False, True, True),
        (1.0, True, False, False),
    ],
)
def test_heatmaps_that_are_alike_or_opposite_where_they_should_not_be_fail(
    correlation, same, shuffled, second
):
    correlations = np.full(9, correlation)
    reproducibility, randomization = trust.check_randomization(correlations, correlations, 0)
    assert reproducibility.is_passed is same
    assert randomization.is_passed is shuffled
    assert trust.check_second_class(correlations, 0).is_passed is second


@pytest.mark.parametrize(
    ("value", "spread", "outcome"),
    [(0.3, 0.1, "passed"), (0.45, 1.0, "inconclusive"), (0.55, 1.0, "inconclusive"), (0.7, 0.1, "failed")],
)
def test_a_check_passes_only_if_its_interval_is_clear_of_the_bound(value, spread, outcome):
    """The bound is 0.5; 24 images, half of them above and half below the mean."""
    correlations = value + spread * np.tile([-1.0, 1.0], 12)
    check = trust.check_second_class(correlations, seed=0)
    assert check.outcome == outcome
    low, high = check.interval
    # The standard error is spread / sqrt(24), and the interval about four of them wide.
    assert high - low == pytest.approx(2 * 1.96 * spread / np.sqrt(24), rel=0.15)
    assert low < value < high


def test_one_image_decides_nothing():
    assert trust.check_second_class(np.array([-1.0]), seed=0).outcome == "inconclusive"


def perturbation_curves(areas: list[float]) -> PerturbationCurves:
    """Constant curves with these areas."""
    constant = np.repeat(np.array(areas)[:, None], STEPS + 1, axis=1)
    return PerturbationCurves(constant, constant)


def test_curves_are_compared_image_by_image():
    """The areas differ more from image to image than from map to chance, but on every image alike."""
    by_map = perturbation_curves([0.1, 0.5, 0.9] * 8)
    by_chance = perturbation_curves([0.15, 0.55, 0.95] * 8)
    deletion, insertion = trust.check_perturbations(by_map, by_chance, seed=0)
    assert (deletion.outcome, insertion.outcome) == ("passed", "failed")
    assert (deletion.value, insertion.value) == pytest.approx((-0.05, -0.05))
    by_chance = perturbation_curves([0.95, 0.15, 0.55] * 8)
    deletion, insertion = trust.check_perturbations(by_map, by_chance, seed=0)
    assert (deletion.outcome, insertion.outcome) == ("inconclusive", "inconclusive")


def test_a_map_that_is_as_good_as_chance_on_every_image_fails():
    """As for a network whose probabilities do not depend on the image."""
    constant = perturbation_curves([0.5] * 24)
    checks = trust.check_perturbations(constant, constant, seed=0)
    assert [check.outcome for check in checks] == ["failed", "failed"]
    assert all("no faster than random order" in check.message for check in checks)


def test_the_heatmaps_of_a_model_that_has_learned_nothing_get_no_verdict():
    section = build_section(colour_model(trained=False), Spots(), 24)
    assert section is not None
    assert not section.values["has_learned"]
    assert {check.outcome for check in section.values["checks"]} == {"no verdict"}
    assert {check["passed"] for check in section.figures["checks"]} == {None}
    messages = " ".join(check.message for check in section.values["checks"])
    assert "learned" not in messages  # which would contradict the warning


def test_a_single_logit_has_no_heatmap_of_another_class():
    model = colour_model()
    one_unit = keras.Sequential([*model.layers[:-1], L.Dense(1, activation="sigmoid")])
    one_unit.build((None, 16, 16, 3))
    one_unit.layers[-1].set_weights([np.array([[-3.0], [3.0]]), np.zeros(1)])
    checks = checks_of(one_unit, Spots())
    assert "Class sensitivity" not in checks
    assert checks["Pointing game"]["passed"]


def test_images_without_a_bounding_box_are_not_scored_by_one():
    assert list(checks_of(colour_model(), Spots(boxes=False), 8))[-1] == "Insertion"


def test_heatmaps_that_ignore_the_class_fail(monkeypatch):
    monkeypatch.setattr(
        "service.report.analysis.gradcam.compute_cam",
        lambda values, gradients, method: tf.reduce_mean(values, axis=-1),
    )
    checks = checks_of(colour_model(), Spots())
    assert not checks["Class sensitivity"]["passed"]
    assert (
        checks["Class sensitivity"]["words"]
        == "The heatmap of the second most probable class is much the same (Spearman 1.00)."
    )
    assert checks["Pointing game"]["passed"]  # the only score that does not detect it


def test_without_feature_maps_or_images_there_is_no_section():
    dense = keras.Sequential([L.Input((16, 16, 3)), L.Flatten(), L.Dense(2, activation="softmax")])
    assert build_section(dense, Spots(), 24) is None
    assert build_section(colour_model(), Spots(), 0) is None
