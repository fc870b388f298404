"""Comparisons of models on the same images: exact results on hand-built models, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from report_samples import brightness_model, dim_and_bright, find_palette_indices

from pipelines.errors import ConfigError
from service.cli import main
from service.models.metadata import ModelMetadata, append_metadata
from service.report.drawing.colours import SEQUENTIAL
from service.report.pages.comparison import distinguish_names, render_comparison

pytestmark = pytest.mark.heavy
SIDE = 6  # of the images that the second model takes


def reversed_model(threshold: float) -> keras.Model:
    """A model for 6x6 images with two outputs, `bright` first, which calls images above a value bright."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((SIDE, SIDE, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(1, 1, name="values"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="logits"),
            layers.Softmax(),
        ]
    )
    model.get_layer("values").set_weights([np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)])
    bias = np.array([-threshold / 255 * 8, threshold / 255 * 8], np.float32)
    model.get_layer("logits").set_weights([np.array([[8.0, -8.0]], np.float32), bias])
    return model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of which one model gets row 2 wrong, and another one all rows right."""
    folder = tmp_path_factory.mktemp("models")
    dim_and_bright(folder / "shards")
    brightness_model().save(folder / "first.keras")
    second = folder / "second.keras"
    reversed_model(90).save(second)
    append_metadata(second, ModelMetadata(("bright", "dim"), "", (SIDE, SIDE), 1))
    return folder


@pytest.fixture(scope="module")
def page(inputs: Path) -> Path:
    """The comparison of both, as the command renders it."""
    out = inputs / "out"
    models = ["--model", str(inputs / "first.keras"), "--model", str(inputs / "second.keras")]
    assert main(["report", *models, "--data", str(inputs / "shards"), "--compare", "--out", str(out)]) == 0
    return out


def read_figures(page: Path) -> dict:
    return json.loads((page / "manifest.json").read_text())["figures"]["first and second on the same images"]


def test_the_outcomes_are_those_of_each_model(page: Path) -> None:
    figures = read_figures(page)
    assert figures["outcomes"] == {"both": 5, "only_first": 0, "only_second": 1, "neither": 0}
    assert figures["p_value"] == 1.0  # a single image
    assert figures["classes"] == {
        "bright": {"both": 3, "only_first": 0, "only_second": 1, "neither": 0},
        "dim": {"both": 2, "only_first": 0, "only_second": 0, "neither": 0},
    }
    html = (page / "index.html").read_text()
    assert (
        "second is better by 16.7 points: of the 1 image that only one of them gets right, it gets 1." in html
    )
    assert "could well be chance" in html
    results = html[html.index("<h2>Results</h2>") :]
    heads = re.findall(r"<th [^>]*>([^<]*)</th>", results[: results.index("</thead>")])
    assert heads == ["Model", "Accuracy", "Loss"]  # a model file says nothing about its training


def test_the_disagreements_are_listed_with_both_predictions(page: Path) -> None:
    (disagreement,) = read_figures(page)["disagreements"]
    of_bright = [1 / (1 + np.exp(-20 * (100 - 112) / 255)), 1 / (1 + np.exp(-16 * (100 - 90) / 255))]
    assert disagreement["row"] == 2
    assert disagreement["strength"] == pytest.approx(of_bright[1] - of_bright[0], abs=1e-5)
    html = (page / "index.html").read_text()
    listed = html[html.index('<ul class="disagreements">') :]
    listed = " ".join(listed[: listed.index("</ul>")].split())
    assert "<b>bright</b> (true class), row 2" in listed
    assert f"first: <b>dim</b> {1 - of_bright[0]:.1%}" in listed
    assert f"second: <b>bright</b> {of_bright[1]:.1%}" in listed


def test_both_heatmaps_of_an_image_share_one_scale(page: Path) -> None:
    manifest = json.loads((page / "manifest.json").read_text())
    maps = {view["row"]: view for view in read_figures(page)["maps"]}
    assert 2 in maps
    assert list(maps[2]["highest"]) == ["first", "second"]
    brightest = []
    for entry in manifest["pictures"]:
        for origin in entry["made_from"]:
            if entry["file"].startswith("pictures/map-") and origin["rows"] == [2]:
                assert origin["limit"] == maps[2]["limit"] == max(maps[2]["highest"].values())
                indices = find_palette_indices(page / entry["file"], SEQUENTIAL)
                brightest.append((origin["layer"], int(indices.max())))
    highest = maps[2]["highest"]
    expected = {
        "convolution": 253 * highest["first"] / maps[2]["limit"],
        "values": 253 * highest["second"] / maps[2]["limit"],
    }
    assert min(expected.values()) < 240  # on scales of their own, both would be 253
    assert dict(brightest) == pytest.approx(expected, abs=6)  # WebP has losses


def test_a_second_page_is_the_same_to_the_byte(page: Path, inputs: Path) -> None:
    models = [inputs / "first.keras", inputs / "second.keras"]
    again = render_comparison([], inputs / "again", inputs / "shards", models=models)
    assert again.read_bytes() == (page / "index.html").read_bytes()
    assert (inputs / "again/manifest.json").read_bytes() == (page / "manifest.json").read_bytes()


def test_what_cannot_be_compared_is_refused(inputs: Path) -> None:
    shards = inputs / "shards"
    first = inputs / "first.keras"
    with pytest.raises(ConfigError, match="different runs or models"):
        render_comparison([], inputs / "no", shards, models=[first, first])
    other = inputs / "other.keras"
    reversed_model(90).save(other)
    append_metadata(other, ModelMetadata(("bright", "dark"), "", (SIDE, SIDE), 1))
    with pytest.raises(ConfigError, match="unknown to the model: dim; missing: dark"):
        render_comparison([], inputs / "no", shards, models=[first, other])
    assert not (inputs / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{first}", "--compare", "--data", "{shards}"], "at least two models or runs"),
        (["--model", "{first}", "--model", "{second}", "--compare"], "--data with --model"),
        (
            ["--model", "{first}", "--model", "{second}", "--data", "{shards}", "--out", "o"],
            "one model, or --comp",
        ),
        (["--compare"], "one of: runs, --model, --all"),
    ],
)
def test_the_command_line_is_checked_first(
    inputs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {name: str(inputs / f"{name}.keras") for name in ("first", "second")}
    filled = [argument.format(**places, shards=inputs / "shards") for argument in arguments]
    assert main(["report", *filled]) == 2
    assert message in capsys.readouterr().err


def test_equal_names_are_numbered() -> None:
    assert distinguish_names(["a", "b", "a", "a"]) == ["a", "b", "a 2", "a 3"]
