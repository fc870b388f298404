"""The gallery in a browser: its table is decoded, images are sorted, filtered, opened and left again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chrome import Chrome
from gallery_samples import list_values, tables
from hypothesis import given, settings
from page_checks import find_violations
from PIL import Image
from report_samples import brightness_model
from section_pages import write_sections
from shard_samples import make_record, write_shards

from service.inference.classifier import Predictions
from service.report.analysis.examples import ReportExample
from service.report.analysis.gallery import GalleryTable, list_columns
from service.report.drawing.album import Album
from service.report.job import SECTIONS, render
from service.report.options import PageOptions, ReportOptions
from service.report.sections.gallery import GalleryLinks, build_section
from service.report.sections.provenance import Provenance
from service.report.subject import Subject, open_model, read_manifest

ROWS = 450  # three pages, two sheets
SHOWN = "[...document.querySelectorAll('.thumbnails button')].map((b) => +b.dataset.row)"
PANEL_IS_OPEN = "document.querySelector('dialog.inspect')?.open"
LOAD_SHEETS = """Promise.all([...document.querySelectorAll("[data-gallery] img")].map((image) => {
  image.loading = "eager";
  return image.decode();
}))"""
SELECT = """((field, value) => {{
  const select = document.querySelector(`[data-field="${{field}}"]`);
  select.value = value;
  select.dispatchEvent(new Event("input", {{bubbles: true}}));
}})({}, {})"""


def choose_grey(row: int) -> int:
    """Returns the grey value of a row; neighbours differ by much, and no two of 256 rows are the same."""
    return row * 101 % 256


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Images above a grey value of 112 are predicted to be of class 1; every seventh label is wrong."""
    folder = tmp_path_factory.mktemp("gallery")
    records = [
        make_record(
            np.full((8, 8, 1), choose_grey(row), np.uint8),
            int((choose_grey(row) > 112) != (row % 7 == 0)),
            f"grey/{row:03d}.png",
        )
        for row in range(ROWS)
    ]
    shards = write_shards(folder / "shards", ("dim", "<i>bright</i>"), {"validation": records})
    brightness_model().save(folder / "model.keras")
    options = ReportOptions(training_images=2, predictions=4)
    return open_model(folder / "model.keras", shards, read_manifest(shards), options)


@pytest.fixture(scope="module")
def gallery(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with the gallery, and with the sections that lead to it."""
    sections = {name: SECTIONS[name] for name in ("predictions", "confusion", "gallery", "heatmaps")}
    out = tmp_path_factory.mktemp("page") / "report"
    page = render(subject, out, PageOptions(), sections=sections)
    assert isinstance(page, Path)
    return page


def open_gallery(browser: Chrome, page: Path, fragment: str = "#gallery", **window: Any) -> None:
    browser.open(page, fragment, **window)
    browser.until("document.querySelector('.thumbnails button') && document.querySelector('dialog.inspect')")


def round_confidence(subject: Subject) -> np.ndarray:
    """Returns the probability of each predicted class to 0.01 %, as the page states it."""
    rest = 1 - subject.predictions.probabilities.max(axis=1).astype(np.float64)
    return np.asarray((10_000 - np.rint(rest * 10_000)) / 10_000)


def list_rows(subject: Subject, **conditions: int) -> list[int]:
    """Lists the rows of a true and a predicted class by falling loss, as NumPy sorts them."""
    predictions = subject.predictions
    exact = -np.log(predictions.probabilities[np.arange(ROWS), predictions.labels].astype(np.float64))
    is_correct = predictions.classes == predictions.labels
    losses = np.where(is_correct, -np.log(round_confidence(subject)), np.rint(4_000 * exact) / 4_000)
    is_listed = np.ones(ROWS, bool)
    for name, label in conditions.items():
        is_listed &= (predictions.labels if name == "truth" else predictions.classes) == label
    return [row for row in np.argsort(-losses, kind="stable").tolist() if is_listed[row]]


def test_the_page_reads_the_columns(browser: Chrome, gallery: Path) -> None:
    open_gallery(browser, gallery)

    @given(tables())
    @settings(max_examples=25)
    def read_in_the_page(table: GalleryTable) -> None:
        found = browser.run(f"readTable({json.dumps(list_columns(table))})")
        expected = list_values(table)
        shares = 1 - table.rests / 10_000
        shares[:, 1:] -= shares[:, :-1].copy()
        np.testing.assert_allclose(found["probabilities"], shares.T, atol=1e-12)
        losses = np.where(table.truths == table.top[:, 0], -np.log(shares[:, 0]), table.losses / 4_000)
        np.testing.assert_allclose(np.array(found["loss"], float), losses, atol=1e-9)
        assert found["classes"] == table.top.T.tolist()
        names = [name for name in ("row", "truth", "ids", "cluster") if name in expected]
        assert {name: found[name] for name in names} == {name: expected[name] for name in names}

    read_in_the_page()


def test_a_cell_of_the_confusion_matrix_shows_its_images(
    browser: Chrome, gallery: Path, subject: Subject
) -> None:
    browser.open(gallery, "#view-predictions")
    cell = "document.querySelector('[data-matrix] a[href=\"#gallery:truth=0,predicted=1\"]')"
    browser.until(cell)
    expected = list_rows(subject, truth=0, predicted=1)
    assert browser.run(f"{cell}.firstElementChild.firstChild.textContent.trim()") == str(len(expected))
    label = browser.run(f"{cell}.title")
    assert label.startswith(f"dim predicted as <i>bright</i>: {len(expected)} images, ")
    browser.run(f"{cell}.focus()")
    browser.press("Enter")
    browser.until("!document.querySelector('#view-gallery').hidden")
    browser.until(f"{SHOWN}.length === {len(expected)}")
    assert browser.run(SHOWN) == expected
    assert browser.run("document.querySelector('[data-field=truth]').value") == "0"
    browser.run("history.back()")
    browser.until("!document.querySelector('#view-predictions').hidden")


def test_pages_follow_the_order_of_the_loss(browser: Chrome, gallery: Path, subject: Subject) -> None:
    open_gallery(browser, gallery)
    shown = browser.run(SHOWN)
    for _ in range(2):
        browser.run("document.querySelector('[data-step=\"1\"]').click()")
        shown += browser.run(SHOWN)
    assert shown == list_rows(subject)
    assert browser.run("document.querySelector('[data-step=\"1\"]').disabled")


def test_images_are_sorted(browser: Chrome, gallery: Path, subject: Subject) -> None:
    open_gallery(browser, gallery)
    predictions = subject.predictions
    confidence = round_confidence(subject)
    assert subject.clusters is not None
    keys = {
        "confidence": -confidence,
        "unsure": confidence,
        "truth": predictions.labels,
        "cluster": subject.clusters,
        "row": predictions.rows,
    }
    by_loss = np.array(list_rows(subject))
    for sort, key in keys.items():
        browser.run(SELECT.format(json.dumps("sort"), json.dumps(sort)))
        assert browser.run("location.hash") == f"#gallery:sort={sort}"
        expected = by_loss[np.argsort(key[by_loss], kind="stable")]
        assert browser.run(SHOWN) == expected[:200].tolist(), sort


def test_filters_and_search_are_combined(browser: Chrome, gallery: Path, subject: Subject) -> None:
    open_gallery(browser, gallery, "#gallery:correct=no,predicted=1")
    expected = list_rows(subject, truth=0, predicted=1)
    assert browser.run(SHOWN) == expected
    name = f"grey/{expected[2]:03d}"
    search = "document.querySelector('.gallery input')"
    browser.run(f"{search}.value = {json.dumps(name.upper())}; {search}.dispatchEvent(new Event('input'))")
    assert browser.run(SHOWN) == [expected[2]]
    browser.run(f"{search}.value = 'nowhere'; {search}.dispatchEvent(new Event('input'))")
    assert browser.run("document.querySelector('[data-count]').textContent") == "No such images."
    browser.run("document.querySelector('[data-clear]').click()")
    assert len(browser.run(SHOWN)) == 200
    assert browser.run("location.hash") == "#gallery"


def test_a_thumbnail_shows_its_image(browser: Chrome, gallery: Path, tmp_path: Path) -> None:
    """Every thumbnail in the window has the grey value of its row, on either sheet."""
    for fragment in ("#gallery:sort=row", "#gallery:correct=no", "#gallery:row=250,sort=row"):
        open_gallery(browser, gallery, fragment, height=3000)
        browser.run("document.querySelector('dialog.inspect').close()")
        browser.run(LOAD_SHEETS)
        places = browser.run(
            """[...document.querySelectorAll('.thumbnails button')].map((button) => {
              const box = button.firstElementChild.getBoundingClientRect();
              return [+button.dataset.row, ...[0.05, 0.95].flatMap((share) =>
                [scrollX + box.x + share * box.width, scrollY + box.y + share * box.height])];
            })"""
        )
        with Image.open(io.BytesIO(browser.screenshot(tmp_path / "gallery.png").read_bytes())) as file:
            pixels = np.asarray(file.convert("L"))
        assert len(places) > 50
        for row, left, top, right, bottom in places:
            shade = round(choose_grey(row) / 17) * 17  # one of 16
            assert pixels[int(top), int(left)] == pixels[int(bottom), int(right)] == shade, row


class LargeImages:
    """Grey images of 120 x 120 pixels, which are shown as thumbnails of 95 x 95."""

    split = "validation"

    def read(self, rows: list[int]) -> np.ndarray:
        return np.stack([np.full((120, 120, 1), choose_grey(row), np.uint8) for row in rows])

    def read_ids(self, rows: list[int]) -> list[str]:
        return [f"grey/{row}.png" for row in rows]


def test_the_panel_shows_an_image_in_full_or_says_that_it_is_a_thumbnail(
    browser: Chrome, tmp_path: Path
) -> None:
    images = LargeImages()
    predictions = Predictions(np.eye(2, dtype=np.float32)[[0, 1]], np.array([0, 1], np.int32), np.arange(2))
    example = ReportExample(1, images.read([1])[0], 1, 1, 1.0, np.array([1]), "validation image 1")
    section = build_section(
        Album(tmp_path),
        Provenance("model", "shards", 1.0, "validation"),
        predictions,
        None,
        images,
        ("dim", "bright"),
        GalleryLinks([example]),
    )
    page = write_sections(tmp_path / "index.html", [section])
    open_gallery(browser, page, "#gallery:row=1")
    photo = "document.querySelector('dialog.inspect img')"
    browser.until(f"{photo}.complete")
    assert browser.run(f"[{photo}.naturalWidth, {photo}.naturalHeight]") == [120, 120]
    open_gallery(browser, page, "#gallery:row=0")
    assert browser.run(f"{photo} === null")
    caption = browser.run("document.querySelector('dialog.inspect figcaption').textContent")
    assert caption == "The thumbnail of 95 \N{MULTIPLICATION SIGN} 95 pixels, enlarged."
    assert find_violations(browser) == []
    assert browser.errors == []


def test_the_panel_opens_by_keyboard_and_is_left_by_the_back_button(
    browser: Chrome, gallery: Path, subject: Subject
) -> None:
    browser.open(gallery, "#view-predictions")
    browser.run("location.hash = '#gallery:truth=1'")
    browser.until("document.querySelector('#view-gallery:not([hidden]) .thumbnails button')")
    order = list_rows(subject, truth=1)
    browser.run("document.querySelector('.thumbnails [tabindex=\"0\"]').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    browser.press("Enter")
    browser.until(PANEL_IS_OPEN)
    assert browser.run("location.hash") == f"#gallery:truth=1,row={order[2]}"
    text = browser.run("document.querySelector('dialog.inspect').textContent")
    assert f"grey/{order[2]:03d}.png" in text
    assert f"--rows {order[2]}" in text
    loss = -np.log(subject.predictions.probabilities[order[2], 1])
    assert f"Loss{loss:.3f}" in text
    stated = browser.run("[...document.querySelectorAll('dialog.inspect .bars')].map((l) => l.innerText)")[0]
    confidence = round_confidence(subject)[order[2]]
    assert f"{confidence:.2%}" in stated
    assert f"{1 - confidence:.2%}" in stated
    assert find_violations(browser) == []
    browser.press("ArrowRight")
    browser.until(f"location.hash.endsWith('row={order[3]}')")
    browser.run("history.back()")
    browser.until(f"!{PANEL_IS_OPEN}")
    assert browser.run("location.hash") == "#gallery:truth=1"
    assert browser.run(f"{SHOWN}.length") == min(200, len(order))
    assert browser.run("document.activeElement.dataset.row") == str(order[2])

    browser.press("Enter")
    browser.until(PANEL_IS_OPEN)
    browser.press("Escape")
    browser.until(f"!{PANEL_IS_OPEN} && location.hash === '#gallery:truth=1'")
    browser.run("history.back()")  # the panel has left no entry in the history
    browser.until("location.hash === '#view-predictions'")


def test_a_link_to_an_image_opens_it(browser: Chrome, gallery: Path, subject: Subject) -> None:
    row = subject.examples[1].row
    open_gallery(browser, gallery, f"#gallery:row={row}")
    browser.until(PANEL_IS_OPEN)
    link = "document.querySelector('dialog.inspect a[href=\"#view-image:image=1\"]')"
    browser.run(f"{link}.click()")
    browser.until("!document.querySelector('#view-image').hidden")
    browser.until(f"!{PANEL_IS_OPEN}")
    selectors = ("select[data-key=image]", "[data-key=image]:checked")
    selector = ", ".join(f"#view-image {selector}" for selector in selectors)
    browser.until(f"document.querySelector({json.dumps(selector)})?.value === '1'")  # once it is loaded
    open_gallery(browser, gallery, "#gallery:row=99999")
    browser.until(PANEL_IS_OPEN)
    text = browser.run("document.querySelector('dialog.inspect').textContent")
    assert "does not hold this image" in text
    browser.run("document.querySelector('dialog.inspect button').click()")
    browser.until(f"!{PANEL_IS_OPEN} && location.hash === '#gallery'")


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1400, True)])
def test_the_gallery_is_accessible_and_fits(browser: Chrome, gallery: Path, width: int, dark: bool) -> None:
    open_gallery(browser, gallery, width=width, dark=dark)
    assert find_violations(browser) == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.errors == []


def test_sheets_are_loaded_when_they_are_shown(browser: Chrome, gallery: Path) -> None:
    browser.open(gallery)
    assert not [url for url in browser.requests if "/pictures/gallery-" in url]
    open_gallery(browser, gallery, "#gallery:correct=no")
    browser.screenshot(gallery.with_name("shown.png"), whole=False)
    assert len({url for url in browser.requests if "/pictures/gallery-" in url}) == 2


def test_a_single_file_holds_the_gallery(browser: Chrome, subject: Subject, tmp_path: Path) -> None:
    sections = {"gallery": SECTIONS["gallery"]}
    page = render(subject, tmp_path / "single", PageOptions(single_file=True), sections=sections)
    assert isinstance(page, Path)
    open_gallery(browser, page)
    assert browser.errors == []
    background = "getComputedStyle(document.querySelector('.tile')).backgroundImage"
    assert browser.run(background).startswith('url("data:image/png;base64,')
