"""The gallery: which images it shows, and that its figures are those of the predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gallery_samples import read_columns

from service.inference.classifier import Predictions
from service.report.analysis.examples import ReportExample
from service.report.analysis.gallery import alternate_classes, build_table, select_images
from service.report.drawing.album import Album
from service.report.drawing.sprites import SHEET_IMAGES
from service.report.pages import page
from service.report.sections.gallery import GalleryLinks, build_section, describe_clusters
from service.report.sections.provenance import Provenance


def predict_randomly(images: int, classes: int, seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(classes), images).astype(np.float32)
    labels = generator.integers(0, classes, images).astype(np.int32)
    return Predictions(probabilities, labels, np.arange(images, dtype=np.int64))


def name_rows(rows) -> list[str]:
    return [f"photos/{row}.png" for row in rows]


class GreyImages:
    """Grey images of 4 x 4 pixels; each has two values that tell its row."""

    split = "validation"

    def __init__(self, count: int) -> None:
        self.labels = np.zeros(count, np.int32)
        self.largest_read = 0

    def read(self, rows):
        self.largest_read = max(self.largest_read, len(rows))
        pixels = np.zeros((len(rows), 4, 4, 1), np.uint8)
        pixels[:, :2] = (np.array(rows) % 256)[:, None, None, None]
        pixels[:, 2:] = (np.array(rows) // 256)[:, None, None, None]
        return pixels

    def read_ids(self, rows):
        return name_rows(rows)


def test_all_images_are_selected_if_they_fit() -> None:
    assert select_images(predict_randomly(50, 3), 50).tolist() == list(range(50))
    assert select_images(predict_randomly(50, 3), 80).tolist() == list(range(50))


def test_half_are_the_worst_and_the_others_a_sample_of_every_class() -> None:
    predictions = predict_randomly(400, 4)
    selected = select_images(predictions, 101)
    assert len(selected) == len(set(selected.tolist())) == 101
    loss = -np.log(predictions.probabilities[np.arange(400), predictions.labels])
    worst = np.argsort(-loss)[:51]
    assert set(worst.tolist()) <= set(selected.tolist())
    others = sorted(set(selected.tolist()) - set(worst.tolist()))
    counts = np.bincount(predictions.labels[others], minlength=4)
    assert counts.max() - counts.min() <= 1
    # A sample rather than the beginning or the least wrong.
    assert max(others) > 300
    assert loss[others].max() > np.quantile(loss, 0.6)


def test_classes_alternate_and_keep_their_order() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    assert alternate_classes(np.array([2, 0, 1, 3, 4, 5]), labels).tolist() == [2, 3, 5, 0, 4, 1]


def test_the_table_holds_the_predictions() -> None:
    predictions = predict_randomly(60, 5)
    indices = np.array([3, 17, 41, *np.flatnonzero(predictions.classes == predictions.labels)[-2:]])
    clusters = np.arange(60) % 7
    table = build_table(predictions, indices, clusters, name_rows(indices))
    for place, index in enumerate(indices):
        probabilities = predictions.probabilities[index]
        assert table.rows[place] == index
        assert table.truths[place] == predictions.labels[index]
        assert table.top[place, 0] == predictions.classes[index]
        assert table.top[place].tolist() == np.argsort(-probabilities)[:3].tolist()
        sums = 1 - table.rests[place] / 10_000
        np.testing.assert_allclose(sums, np.cumsum(np.sort(probabilities)[::-1][:3]), atol=5.001e-5)
        loss = -np.log(probabilities[predictions.labels[index]])
        is_wrong = predictions.labels[index] != probabilities.argmax()
        assert table.losses[place] / 4_000 == pytest.approx(loss * is_wrong, abs=1.2501e-4)
    assert table.clusters[:3].tolist() == [3, 3, 6]


def test_two_classes_have_two_probabilities() -> None:
    assert build_table(predict_randomly(5, 2), np.arange(5), None, name_rows(range(5))).top.shape == (5, 2)


def test_clusters_are_described_by_their_most_frequent_class() -> None:
    probabilities = np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 0]]
    predictions = Predictions(probabilities, np.array([0, 1, 0, 0, 1], np.int32), np.arange(5))
    clusters = np.array([0, 1, 0, 0, -1])
    assert describe_clusters(predictions, clusters, ("a", "b")) == [
        {"images": 3, "class": "a", "share": 1.0, "accuracy": pytest.approx(2 / 3)},
        {"images": 1, "class": "b", "share": 1.0, "accuracy": 1.0},
    ]


def test_sheets_hold_the_images_of_the_table_in_order(tmp_path) -> None:
    count = SHEET_IMAGES + 25
    images = GreyImages(count)
    album = Album(tmp_path)
    section = build_section(
        album,
        Provenance("m", "s", 1.0, "validation"),
        predict_randomly(count, 3),
        None,
        images,
        ("a", "<b>", "c"),
        GalleryLinks([ReportExample(4, images.read([4])[0], 0, 0, 1.0, np.array([0]), "validation image 4")]),
    )
    assert images.largest_read <= SHEET_IMAGES
    assert section.figures["shown"] == count
    origins = [album.entries[sheet.file]["made_from"][0] for sheet in section.values["sheets"]]
    assert [origin["rows"] for origin in origins] == [
        list(range(SHEET_IMAGES)),
        list(range(SHEET_IMAGES, count)),
    ]
    assert all(origin["split"] == "validation" for origin in origins)
    html = page.load_templates().get_template("gallery.html").render(values=section.values)
    assert f"All {count} validation images" in html
    assert "<b>" not in html
    columns = json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])
    assert read_columns(columns)["row"] == list(range(count))
    assert columns["examples"] == {"4": 0}
    assert not section.values["photos"]  # its thumbnail is the whole image


def test_no_images_make_no_gallery(tmp_path) -> None:
    nothing = Predictions(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), np.zeros(0, np.int64))
    provenance = Provenance("m", "s", 1.0, "train")
    assert build_section(Album(tmp_path), provenance, nothing, None, None, (), GalleryLinks()) is None
