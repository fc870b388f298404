"""Scores in a browser: a threshold that is dragged or moved by keys, the map of the images, many classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chrome import Chrome
from page_checks import find_broken_lines, find_violations, inspect_pictures
from section_pages import write_sections

from service.inference.classifier import Features, Predictions
from service.report.analysis.calibration import assess_calibration
from service.report.analysis.embedding import embed
from service.report.sections import calibration, class_scores, dynamics, embedding, thresholds

READ = """Object.fromEntries([...document.querySelectorAll("[data-thresholds] [data-out]")].map(
  (output) => [output.dataset.out, output.textContent]
))"""
COUNTS = ("hits", "misses", "alarms", "rejections")
CLASSES = 40


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Two hundred images of two classes; some are predicted incorrectly, and many scores are tied."""
    generator = np.random.default_rng(0)
    labels = (np.arange(200) % 2).astype(np.int32)
    p = np.round(np.clip(generator.normal(0.35 + 0.3 * labels, 0.2), 0.01, 0.99), 2)
    return Predictions(np.stack([1 - p, p], axis=1).astype(np.float32), labels, np.arange(200))


@pytest.fixture(scope="module")
def page(predictions: Predictions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("<i>cat</i>", "dog")
    values = np.random.default_rng(1).normal(size=(200, 8)) + predictions.labels[:, None]
    features = Features(values.astype(np.float32), np.arange(200), "logits")
    labels = np.repeat(np.arange(CLASSES), 3).astype(np.int32)
    many = Predictions(np.eye(CLASSES, dtype=np.float32)[labels], labels, np.arange(len(labels)))
    norms = {f"layer{index}": {"weights": 2.0, "gradients": 10.0**-index} for index in range(12)}
    sections = [
        class_scores.build_section(many, [f"class {k}" for k in range(CLASSES)]),
        thresholds.build_section(predictions, names, seed=0),
        calibration.build_section(
            predictions, assess_calibration(predictions.probabilities, predictions.labels, seed=0)
        ),
        embedding.build_section(predictions, features, embed(features.values, "pca", 0), names, "validation"),
        dynamics.build_section([{"epoch": epoch, "layers": norms} for epoch in (1, 2, 3)]),
    ]
    return write_sections(tmp_path_factory.mktemp("scores") / "index.html", sections)


def read_counts(browser: Chrome) -> tuple[float, list[int]]:
    """Returns the threshold that is shown, and its counts in the order of `COUNTS`."""
    shown = browser.run(READ)
    return float(shown["threshold"]), [int(shown[name]) for name in COUNTS]


def count(predictions: Predictions, threshold: float, label: int = 1) -> list[int]:
    is_found = predictions.probabilities[:, label].astype(np.float64) >= threshold
    is_positive = predictions.labels == label
    return [
        int((is_found & is_positive).sum()),
        int((~is_found & is_positive).sum()),
        int((is_found & ~is_positive).sum()),
        int((~is_found & ~is_positive).sum()),
    ]


def test_counts_follow_the_threshold_by_keys_and_by_dragging(
    browser: Chrome, page: Path, predictions: Predictions
) -> None:
    browser.open(page)
    threshold, counts = read_counts(browser)
    assert threshold == 0.5
    assert counts == count(predictions, 0.5)
    browser.run("document.querySelector('[data-thresholds] input').focus()")
    seen = [threshold]
    for _ in range(5):
        browser.press("ArrowRight")
        threshold, counts = read_counts(browser)
        assert counts == count(predictions, threshold)
        assert threshold > seen[-1]
        seen.append(threshold)
    assert "precision" in browser.run(
        "document.querySelector('[data-thresholds] input').getAttribute('aria-valuetext')"
    )
    browser.run(
        """(() => {
          const drawing = document.querySelector('[data-curve="roc"]').closest(".drawing");
          drawing.setPointerCapture = () => {};
          const box = drawing.getBoundingClientRect();
          drawing.dispatchEvent(new PointerEvent("pointerdown", {
            pointerId: 1, clientX: box.left + 0.9 * box.width, clientY: box.top + 2,
          }));
        })()"""
    )
    threshold, counts = read_counts(browser)
    assert threshold < 0.5
    assert counts == count(predictions, threshold)


def test_the_other_class_can_be_the_one_to_find(
    browser: Chrome, page: Path, predictions: Predictions
) -> None:
    browser.open(page)
    browser.run(
        """(() => {
          const select = document.querySelector("[data-class]");
          select.value = 0;
          select.dispatchEvent(new Event("change"));
        })()"""
    )
    threshold, counts = read_counts(browser)
    assert counts == count(predictions, threshold, label=0)


def test_a_point_of_the_map_is_described_and_leads_to_its_image(
    browser: Chrome, page: Path, predictions: Predictions
) -> None:
    browser.open(page)
    browser.run("document.querySelector('[data-embedding] canvas').focus()")
    for _ in range(3):
        browser.press("ArrowRight")
    text = browser.run("document.querySelector('[data-readout]').textContent")
    address = browser.run("document.querySelector('[data-readout] a').getAttribute('href')")
    row = int(address.removeprefix("#gallery:row="))
    name = ("<i>cat</i>", "dog")[predictions.labels[row]]
    assert text.startswith(f"validation image {row}: {name}, predicted ")
    assert ("correctly" in text) == (predictions.classes[row] == predictions.labels[row])


def test_the_other_classes_are_listed_on_request(browser: Chrome, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.querySelectorAll('[data-rest] tbody tr').length") == 0
    browser.run("document.querySelector('[data-rest] summary').click()")
    browser.until(f"document.querySelectorAll('[data-rest] tbody tr').length === {CLASSES - 20}")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_sections_are_accessible_and_fit(browser: Chrome, page: Path, dark: bool, width: int) -> None:
    browser.open(page, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert find_violations(browser) == []
    assert find_broken_lines(browser, ".x-labels span") == []
    assert inspect_pictures(browser)["overflow"] == 0
    assert browser.errors == []
