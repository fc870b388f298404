"""Sample images: read like shards, predicted, and scored by their file names."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ConfigError
from service.inference.interpretation import UNIT, Interpretation
from service.report.drawing.album import Album
from service.report.pages import page
from service.report.sections.provenance import Provenance
from service.report.sections.samples import BATCH, build_section, find_label, list_images
from service.report.sections.section import Section

L = keras.layers


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cat.1500.jpg", 0),
        ("Dogs 7.png", 1),
        ("cat_and_dog.jpg", None),
        ("african_elephant.jpg", None),
        ("a_dog.jpg", 1),
        ("category.jpg", None),
    ],
)
def test_the_label_is_found_in_the_file_name(name, label):
    assert find_label(name, ("cats", "dogs")) == label


def test_images_are_listed_in_numeric_order(tmp_path):
    for name in ("dog.10.jpg", "dog.9.JPG", "cat.1.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_images(tmp_path)] == ["cat.1.png", "dog.9.JPG", "dog.10.jpg"]
    with pytest.raises(ConfigError, match="no such folder"):
        list_images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no images in it"):
        list_images(tmp_path / "empty")


def brightness() -> keras.Model:
    """Predicts dogs for images brighter than 128 on average."""
    model = keras.Sequential(
        [L.Input((4, 6, 3)), L.GlobalAveragePooling2D(), L.Dense(1, activation="sigmoid")]
    )
    model.set_weights([np.full((3, 1), 20.0), np.array([-30.0])])
    return model


def build_samples(folder: Path | None, out: Path) -> Section | None:
    provenance = Provenance("model-digest", "shards-digest", 1 / 255, "validation")
    interpretation = Interpretation(UNIT, "probabilities", "known", "known")
    return build_section(Album(out), provenance, brightness(), ("cats", "dogs"), folder, interpretation)


def test_samples_are_predicted_scored_and_escaped(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(BATCH + 2):
        Image.new("RGB", (30, 20), (250,) * 3 if number % 2 else (5,) * 3).save(
            folder / f"{'dog' if number % 2 else 'cat'}.{number}.png"
        )
    Image.new("L", (9, 9), 250).save(folder / "cat.900.png")  # a bright cat: wrong
    (folder / "<script>.jpg").write_bytes(b"no picture")
    found = build_samples(folder, tmp_path)
    assert (found.values["correct"], found.values["labelled"]) == (BATCH + 2, BATCH + 3)
    assert found.values["unreadable"] == ["<script>.jpg"]
    predictions = {prediction["file"]: prediction for prediction in found.values["predictions"]}
    assert predictions["cat.0.png"]["top"][0]["name"] == "cats"
    assert predictions[f"dog.{BATCH + 1}.png"]["top"][0] == {
        "name": "dogs",
        "probability": pytest.approx(1.0),
    }
    for name, prediction in predictions.items():
        with Image.open(tmp_path / prediction["picture"].file) as picture:
            assert picture.convert("L").getpixel((3, 3)) == (
                5 if name.startswith("cat") and name != "cat.900.png" else 250
            ), name
    assert (
        predictions["cat.900.png"]["picture"].alt
        == "cat.900.png: predicted dogs with 100.0%, true class cats"
    )
    html = page.load_templates().get_template("samples.html").render(values=found.values)
    assert "<script>" not in html
    assert html.count('class="incorrect"') == 1


def test_without_a_folder_there_is_no_section(tmp_path):
    assert build_samples(None, tmp_path) is None
