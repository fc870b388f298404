"""`glassbox look`: the user's own images as the report would show them, and the messages on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics
from shard_samples import encode_png, make_record, write_shards

import service.api as glassbox
from pipelines.shards.manifest import load_manifest
from pipelines.storage import hash_file
from service.cli import main
from service.models.metadata import ModelMetadata
from service.report.job import SECTIONS, render
from service.report.options import PageOptions, ReportOptions
from service.report.subject import open_run, read_manifest
from service.runs import Run

ROWS = (1, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 1)).astype(np.uint8)
L = keras.layers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose model takes cropped images, pixels of 0 to 1, and has its classes in another order."""
    folder = tmp_path_factory.mktemp("look")
    records = [make_record(IMAGES[row], row % 2, f"{row}.png") for row in range(6)]
    shards = write_shards(
        folder / "shards", ("ant", "bee", "cat"), {"train": records[::-1], "validation": records}
    )
    run = make_run(folder / "run", shards, None, metrics(3))
    digest = load_manifest(shards).digest()
    metadata = ModelMetadata(("cat", "bee", "ant"), digest, (8, 8), 1, scale=1 / 255, fit="crop")
    run.write_metadata(metadata)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            L.Input((8, 8, 1)),
            L.Conv2D(4, 3, activation="relu", bias_initializer="normal", name="convolution"),
            L.Conv2D(4, 3, activation="tanh", bias_initializer="normal", name="last"),
            L.Flatten(),
            L.Dense(3, activation="softmax"),
        ]
    )
    run.write_model(model.save)
    return run


@pytest.fixture(scope="module")
def report(run: Run) -> dict[str, Any]:
    """The manifest of the heatmaps in the report of the run, for `ROWS`."""
    shards = Path(run.config()["shards"])
    options = ReportOptions(activation_rows=ROWS)
    subject = open_run(run, shards, read_manifest(shards, run), options)
    sections = {name: SECTIONS[name] for name in ("heatmaps", "saliency")}
    page = render(subject, run.path.parent / "report", PageOptions(), sections=sections)
    return read_page(page)


def read_page(page: Path) -> dict[str, Any]:
    return dict(json.loads((page.parent / "manifest.json").read_text()))


def find_maps(manifest: dict[str, Any], images: list[Any]) -> dict[tuple[Any, ...], str]:
    """Returns the file of every map, named by its content, by image, class, layer and method."""
    maps = {}
    for picture in manifest["pictures"]:
        for origin in picture["made_from"]:
            if "method" not in origin or origin["method"] == "signed":
                continue
            image = origin.get("image") or origin["rows"][0]
            key = (images.index(image), origin.get("class"), origin.get("layer"), origin["method"])
            maps[key] = picture["file"]
    return maps


def write_images(folder: Path, rows: tuple[int, ...] = ROWS) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"photo {row}.png" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        path.write_bytes(encode_png(IMAGES[row]))
    return [str(path) for path in paths]


def test_rows_have_the_heatmaps_of_the_report(run: Run, report: dict[str, Any], tmp_path: Path) -> None:
    before = {path: hash_file(path) for path in run.path.rglob("*") if path.is_file()}
    assert main(["look", str(run.path), "--rows", "1,4", "--out", str(tmp_path / "out")]) == 0
    look = read_page(tmp_path / "out" / "index.html")
    expected = find_maps(report, list(ROWS))
    assert len(expected) == 2 * (3 * 2 * 3 + 3)  # classes, layers and methods; saliency
    assert len(set(expected.values())) > len(expected) / 2  # nearly all of them differ
    assert find_maps(look, list(ROWS)) == expected
    assert look["classes"] == ["cat", "bee", "ant"]
    assert look["figures"]["gradcam"]["rows"] == list(ROWS)
    assert look["figures"]["gradcam"]["probabilities"] == report["figures"]["gradcam"]["probabilities"]
    assert {path: hash_file(path) for path in run.path.rglob("*") if path.is_file()} == before


def test_files_have_the_heatmaps_of_their_rows(
    run: Run, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the shard set: classes and pixel scale come from the model."""
    shards = Path(run.config()["shards"])
    hidden = shards.rename(shards.with_name("moved"))
    try:
        files = write_images(tmp_path / "own")
        assert main(["look", str(run.path), *files, "--out", str(tmp_path / "out")]) == 0
    finally:
        hidden.rename(shards)
    output = capsys.readouterr().out
    assert "pixels: 0 to 1 (scale=0.00392157, offset=0): recorded when the model was trained" in output
    assert "classes: cat, bee, ant: recorded in the model file" in output
    assert output.endswith(f"open {tmp_path / 'out' / 'index.html'}\n")
    look = read_page(tmp_path / "out" / "index.html")
    names = [Path(file).name for file in files]
    assert look["images"] == names
    assert find_maps(look, names) == find_maps(report, list(ROWS))
    assert look["figures"]["gradcam"]["classes"] == report["figures"]["gradcam"]["classes"]
    html = (tmp_path / "out" / "index.html").read_text()
    assert "correct" not in html.partition("<body>")[2].partition("<script>")[0]
    assert set(look["figures"]) == {"gradcam", "saliency", "activations", "image_checks"}


def test_with_a_label_the_page_says_what_is_correct(run: Run, tmp_path: Path) -> None:
    image = write_images(tmp_path / "own")[0]
    page = glassbox.look(run.path, image, tmp_path / "out", label="bee", single_file=True)
    assert isinstance(page, Path)
    html = page.read_text()
    assert "<b>bee</b>, predicted" in html
    assert "one image is too few" in html
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "manifest.json"]


def test_unreadable_images_are_left_out_by_name(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "own")
    (tmp_path / "own" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    arguments = ["look", str(run.path), str(tmp_path / "own"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "left out: broken.jpg: " in capsys.readouterr().out
    assert "Left out: broken.jpg" in (tmp_path / "out" / "index.html").read_text()
    for name in ("photo 1.png", "photo 4.png"):
        (tmp_path / "own" / name).unlink()
    assert main(arguments) == 3
    assert "Received: images=broken.jpg: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected images, or rows of the shard set."),
        (["none.png"], "Received: image=none.png (does not exist)."),
        (["--rows", "1,x"], "Received: rows=1,x."),
        (["--rows", "6"], "Expected rows from 0 to 5. Received: rows=6."),
        (["--rows", "1", "OWN"], "Received: images=1 rows=1."),
        (["--rows", "1", "--label", "ant"], "Received: label=ant."),
        (["OWN", "--label", "ants"], "Expected a class of the model: cat, bee, ant. Received: label=ants."),
        (["OWN", "--data", "somewhere"], "Expected --data with --rows alone."),
        (["--rows", "1", "--classes", "a", "b"], "Expected --classes with images alone."),
        (["OWN", "--classes", "a", "b"], "Expected 3 class names"),
        (["OWN", "--scale", "-1"], "Received: scale=-1.0."),
    ],
)
def test_mistakes_are_explained(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    own = write_images(tmp_path / "own")[0]
    words = [own if word == "OWN" else word for word in arguments]
    assert main(["look", str(run.path), *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_many_images_and_a_foreign_folder_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_images(tmp_path / "own") * 26
    assert main(["look", str(run.path), *files, "--out", str(tmp_path / "out")]) == 2
    assert "Expected at most 50 images on a page. Received: images=52." in capsys.readouterr().err
    assert main(["look", str(run.path), files[0], "--out", str(tmp_path / "own")]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_a_model_with_one_logit_and_one_without_convolutions(tmp_path: Path) -> None:
    """A model file without names; both classes have heatmaps, and no check compares them."""
    image = write_images(tmp_path / "own")[0]
    brightness_model().save(tmp_path / "one.keras")
    page = glassbox.look(tmp_path / "one.keras", image, tmp_path / "one")
    look = read_page(Path(str(page)))
    assert look["figures"]["gradcam"]["classes"] == [["class_0", "class_1"]]
    assert "with_second" not in look["figures"]["image_checks"]["images"][0]

    dense = keras.Sequential([L.Input((8, 8, 1)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(3)])
    dense.save(tmp_path / "dense.keras")
    page = glassbox.look(tmp_path / "dense.keras", image, tmp_path / "dense", classes=("a", "b", "c"))
    assert set(read_page(Path(str(page)))["figures"]) == {"saliency", "activations"}


def test_rows_of_a_model_without_a_run_need_its_shard_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = dim_and_bright(tmp_path / "shards")
    brightness_model().save(tmp_path / "one.keras")
    arguments = ["look", str(tmp_path / "one.keras"), "--rows", "5", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "name it with --data" in capsys.readouterr().err
    assert main([*arguments, "--data", str(shards)]) == 0
    assert read_page(tmp_path / "out" / "index.html")["classes"] == ["dim", "bright"]
