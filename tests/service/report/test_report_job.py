"""The report of a whole run: page, pictures, manifest and refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_samples import brightness_model, dim_and_bright, make_run, metrics, read_whole_page

from pipelines.errors import ConfigError
from pipelines.shards.manifest import load_manifest
from pipelines.storage import hash_file
from service.report.drawing.formatting import number, percent
from service.report.job import render_model_report, render_report
from service.report.options import ReportOptions
from service.report.pages.scripts import PAGE_SCRIPTS, PLOTTING
from service.runs import Run

SMALL = ReportOptions(training_images=4, predictions=4, layer_times=False)


class Tags(HTMLParser):
    """Every start tag of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    run = make_run(
        folder / "runs" / "dim_or_bright", dim_and_bright(folder / "shards"), brightness_model(), metrics(6)
    )
    assert render_report(run, options=SMALL) == run.report / "index.html"
    return run


@pytest.fixture(scope="module")
def page(run) -> Tags:
    return Tags(read_whole_page(run.report / "index.html"))


@pytest.fixture(scope="module")
def manifest(run) -> dict:
    return json.loads((run.report / "manifest.json").read_text())


def test_the_figures_are_right(manifest):
    summary = manifest["figures"]["summary"]
    predictions = manifest["figures"]["predictions"]
    assert (summary["accuracy"], summary["majority_class_share"], summary["best_epoch"]) == (5 / 6, 4 / 6, 4)
    assert summary["training_accuracy"] == metrics(6)[3]["accuracy"]
    assert summary["gap"] == metrics(6)[3]["accuracy"] - metrics(6)[3]["val_accuracy"]
    assert summary["images_per_second"] == 904.0  # the median of 902 to 906: the first epoch compiles
    assert predictions["wrong"] == 1
    assert [(shown["row"], shown["true"]) for shown in predictions["shown"]] == [
        (2, "bright"),
        (0, "dim"),
        (5, "bright"),
        (1, "dim"),
    ]
    assert manifest["figures"]["training_images"]["shown_rows"] == [0, 1, 2, 4]
    assert manifest["figures"]["activations"]["rows"] == [0, 5]
    layers = {row["layer"]: row for row in manifest["figures"]["activations"]["layers"]}
    assert layers["convolution"]["blank_channels"] == 1.0  # a grey image is the same everywhere
    assert list(layers) == ["rescaling", "convolution", "pooling", "logits", "probabilities"]


def test_the_page_shows_the_figures(page):
    for words in (
        "dim_or_bright",
        "5 of 6 validation images are predicted correctly",
        "83.33%",
        "true class: bright",
        "66.7%",
        "best epoch 4",
    ):
        assert words in page.text


def test_incorrect_predictions_are_marked(page):
    kinds = [
        figure.get("class")
        for figure in page.all("figure")
        if figure.get("class") in ("correct", "incorrect")
    ]
    assert kinds == ["incorrect", "correct", "correct", "correct"]
    marks = [
        span["aria-label"]
        for span in page.all("span")
        if span.get("class") == "mark" and "aria-label" in span
    ]
    assert marks == kinds


def test_every_picture_exists_is_lazy_sized_and_described(run, page):
    images = page.all("img")
    for image in images:
        with Image.open(run.report / image["src"]) as file:
            file.load()
            assert (str(file.width), str(file.height)) == (image["width"], image["height"])
        assert image["loading"] == "lazy"
    shown = [image for image in images if image["alt"]]
    # The others are thumbnails of the views, or repeat a picture that is described.
    undescribed = {image["src"] for image in images} - {image["src"] for image in shown}
    assert len(undescribed) < len(re.findall("data-view", read_whole_page(run.report / "index.html")))
    for image in shown:
        assert any(letter.isdigit() for letter in image["alt"])


def test_nothing_is_fetched_from_elsewhere(page):
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "base")
        assert tag != "script" or "src" not in attributes
        for key in ("src", "href"):
            assert not (attributes.get(key) or "").startswith(("http", "//", "/", "file:")), attributes
        assert not any(key.startswith("on") for key in attributes)


def test_only_the_scripts_of_the_page_may_run(run):
    html = (run.report / "index.html").read_text()
    policy = (
        re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
        .group(1)
        .replace("&#39;", "'")
    )
    (allowed,) = re.findall(r"script-src ([^;]*)", policy)
    inside = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inside]
    assert allowed.split() == [*(f"'sha256-{digest}'" for digest in digests), "'strict-dynamic'"]
    assert len(digests) == len(PLOTTING + PAGE_SCRIPTS)
    assert "default-src 'none'" in policy


def test_every_photo_shows_the_image_its_text_names(run, page, manifest):
    splits = {
        picture["file"]: {origin.get("split") for origin in picture["made_from"]}
        for picture in manifest["pictures"]
    }
    photos = [
        image
        for image in page.all("img")
        if image["alt"] and re.match(r"pictures/(training|prediction)-", image["src"])
    ]
    assert len(photos) == 4 + 4
    for photo in photos:
        split, row = re.match(r"(Training|Validation) image (\d+)", photo["alt"]).groups()
        with Image.open(run.report / photo["src"]) as file:
            assert file.convert("L").getextrema() == (20 * int(row) + 60,) * 2
        assert splits[photo["src"]] == {"train" if split == "Training" else "validation"}


def test_the_manifest_accounts_for_every_file(run, manifest):
    on_disk = {path.relative_to(run.report).as_posix() for path in run.report.rglob("*.*")}
    entries = [*manifest["pictures"], *manifest["views"]]
    assert on_disk == {"index.html", "manifest.json"} | {entry["file"] for entry in entries}
    for entry in entries:
        assert entry["sha256"] == hashlib.sha256((run.report / entry["file"]).read_bytes()).hexdigest()
    for picture in manifest["pictures"]:
        for origin in picture["made_from"]:
            kind = (origin.get("thumbnail_of") or picture["file"]).removeprefix("pictures/").split("-")[0]
            # Pictures of patterns and weights do not depend on the shards
            assert kind in ("patterns", "weights") or origin["shards"] == manifest["shards"]
            assert kind in ("training", "health", "mean") or origin["checkpoint"] == manifest["checkpoint"]
    assert manifest["checkpoint"] == hash_file(run.model_path)
    assert manifest["shards"] == load_manifest(run.config()["shards"]).digest()


def test_rendering_again_gives_the_same_bytes_and_removes_old_files(run):
    files = lambda: {path.name: path.read_bytes() for path in run.report.rglob("*.*")}  # noqa: E731
    before = files()
    (run.report / "stale.png").write_bytes(b"old")
    render_report(run, options=SMALL)
    assert files() == before


def test_every_layer_is_described_and_linked_to_its_activations(run, page, manifest):
    figures = manifest["figures"]["architecture"]
    layers = {layer["layer"]: layer for layer in figures["layers"]}
    assert list(layers) == ["rescaling", "convolution", "pooling", "logits", "probabilities"]
    convolution = layers["convolution"]
    assert (convolution["shape"], convolution["parameters"], convolution["trainable"]) == (
        [6, 6, 3],
        30,
        True,
    )
    assert convolution["multiply_adds"] == 6 * 6 * 9 * 3
    assert (convolution["receptive_field"], convolution["receptive_field_stride"]) == ([3, 3], [1, 1])
    assert (convolution["dtype"], convolution["time_share"]) == ("float32", None)
    assert layers["pooling"]["sees_whole_image"]
    assert (figures["parameters"], figures["multiply_adds"]) == (34, 6 * 6 * 9 * 3 + 3)
    assert figures["times_measured"] is None
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {link["href"] for link in page.all("a") if str(link["href"]).startswith("#layer-")}
    assert links == {f"#layer-{name}" for name in layers}
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_layer_times_are_measured_on_request_and_recorded(run, tmp_path):
    options = SMALL.model_copy(update={"layer_times": True, "patterns": 0, "trust_images": 0})
    out = render_model_report(run.model_path, Path(run.config()["shards"]), tmp_path / "out", options)
    manifest = json.loads((out.parent / "manifest.json").read_text())
    figures = manifest["figures"]["architecture"]
    assert manifest["options"]["layer_times"] is True
    assert figures["times_measured"] == {"device": "CPU", "images": 4}
    assert sum(layer["time_share"] for layer in figures["layers"]) == pytest.approx(1)
    assert "of the time is spent in" in read_whole_page(out)


def test_rows_for_activations_can_be_chosen(run, tmp_path):
    options = SMALL.model_copy(update={"activation_rows": (3,)})
    out = render_model_report(run.model_path, Path(run.config()["shards"]), tmp_path / "out", options)
    manifest = json.loads((out.parent / "manifest.json").read_text())
    assert manifest["figures"]["activations"]["rows"] == [3]
    assert "curves" not in manifest["figures"]
    bad = SMALL.model_copy(update={"activation_rows": (6,)})
    with pytest.raises(ConfigError, match="activation_rows=6"):
        render_model_report(run.model_path, Path(run.config()["shards"]), tmp_path / "out", bad)
    assert json.loads((out.parent / "manifest.json").read_text()) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_hostile_class_name_is_harmless(tmp_path):
    shards = dim_and_bright(
        tmp_path / "shards", classes=("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>')
    )
    run = make_run(tmp_path / "runs" / "<b>run", shards, brightness_model(), metrics(2))
    html = read_whole_page(render_report(run, options=SMALL))
    tags = Tags(html)
    assert len(re.findall(r"<script>", html)) == len(PLOTTING + PAGE_SCRIPTS)
    assert not tags.all("b") or "<b>run" not in html
    assert all("onerror" not in image for image in tags.all("img"))
    assert "<script>alert(1)</script>" in tags.text


def test_without_validation_the_training_split_is_evaluated(tmp_path):
    shards = dim_and_bright(tmp_path / "shards", splits=("train",))
    run = make_run(tmp_path / "run", shards, brightness_model(), metrics(3, validation=False))
    text = Tags(read_whole_page(render_report(run, options=SMALL))).text
    assert "5 of 6 training images are predicted correctly" in text
    assert "There is no validation split" in text


def test_a_run_without_a_model_is_not_finished(tmp_path):
    run = make_run(tmp_path / "run", dim_and_bright(tmp_path / "shards"), None, [])
    with pytest.raises(ConfigError, match="not finished"):
        render_report(run)
    assert not run.report.exists()


def test_shards_that_moved_are_found_with_data(run, tmp_path):
    moved = make_run(tmp_path / "run", tmp_path / "gone", None, metrics(2))
    shutil.copy(run.model_path, moved.model_path)
    with pytest.raises(ConfigError, match=r"gone.*--data"):
        render_report(moved)
    assert render_report(moved, Path(run.config()["shards"]), SMALL).is_file()


def test_another_number_of_classes_is_refused(run, tmp_path):
    shards = dim_and_bright(tmp_path / "shards", classes=("a", "b", "c"))
    with pytest.raises(ConfigError, match="classes=3"):
        render_model_report(run.model_path, shards, tmp_path / "out")


def test_a_folder_of_something_else_is_never_replaced(run, tmp_path):
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "photo.jpg").write_bytes(b"dear")
    (holiday / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds something else"):
        render_model_report(run.model_path, Path(run.config()["shards"]), holiday)
    assert (holiday / "photo.jpg").read_bytes() == b"dear"


def test_percentages_near_0_and_100_are_not_rounded_to_them():
    assert [percent(share) for share in (0.0, 0.00001, 0.5, 0.9999, 0.99999994, 1.0)] == [
        "0.0%",
        "<0.1%",
        "50.0%",
        ">99.9%",
        "100.0%",
        "100.0%",
    ]
    assert number(-1.16e-9) == "\N{MINUS SIGN}1.16e\N{MINUS SIGN}09"
    assert percent(None) == percent(float("nan")) == number(float("inf")) == "\N{EN DASH}"


def test_numbers():
    assert [number(value) for value in (0.001, 12.0, 12345.6, 0.053909)] == [
        "0.001",
        "12",
        "12,346",
        "0.0539",
    ]
