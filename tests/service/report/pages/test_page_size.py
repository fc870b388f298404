"""The size of a page: what every page holds, and sections that could grow with the number of images."""

from __future__ import annotations

import numpy as np
import pytest

from service.inference.classifier import Features, Predictions
from service.report.analysis.calibration import assess_calibration
from service.report.analysis.embedding import embed
from service.report.pages.page import load_templates, remove_indentation, render
from service.report.pages.scripts import load_scripts
from service.report.sections import calibration, class_scores, embedding, thresholds
from service.report.sections.section import Section

IMAGES = 10_000
CLASSES = tuple("0123456789")
MAX_FRAME_BYTES = 155_000  # of the 350 kB of the first view; the overview and its pictures take the rest
MAX_KNOWLEDGE_BYTES = 64_000  # of four sections of a view that is loaded when it is shown


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Ten thousand digits, of which two in a hundred are predicted incorrectly."""
    generator = np.random.default_rng(0)
    labels = (np.arange(IMAGES) % len(CLASSES)).astype(np.int32)
    logits = generator.normal(size=(IMAGES, len(CLASSES))) + 6 * np.eye(len(CLASSES))[labels]
    exponentials = np.exp(2 * logits)
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return Predictions(probabilities, labels, np.arange(IMAGES))


def measure(section: Section | None) -> int:
    assert section is not None
    template = load_templates().get_template(f"{section.id}.html")
    return len(remove_indentation(template.render(values=section.values)).encode())


def test_scripts_and_styles_of_a_report_take_less_than_half_of_its_first_view() -> None:
    html = render("base.html", load_scripts())
    templates = load_templates()
    names = templates.list_templates(extensions=["css"])
    styles = [
        templates.get_template(name).render() for name in names if name not in ("page.css", "index.css")
    ]
    own_styles = "\n".join(styles)  # those that `page.html` adds, and some others
    assert len(html.encode()) + len(own_styles.encode()) <= MAX_FRAME_BYTES


def test_what_the_model_knows_about_many_images_stays_small(predictions: Predictions) -> None:
    generator = np.random.default_rng(1)
    rows = np.arange(0, IMAGES, 2)
    values = generator.normal(size=(len(rows), 8)) + predictions.labels[rows, None]
    features = Features(values.astype(np.float32), rows, "logits")
    assessed = assess_calibration(predictions.probabilities, predictions.labels, seed=0)
    placed = embed(features.values, "pca", 0)
    sizes = [
        measure(class_scores.build_section(predictions, CLASSES)),
        measure(thresholds.build_section(predictions, CLASSES, seed=0)),
        measure(calibration.build_section(predictions, assessed)),
        measure(embedding.build_section(predictions, features, placed, CLASSES, "validation")),
    ]
    assert sum(sizes) <= MAX_KNOWLEDGE_BYTES, sizes
