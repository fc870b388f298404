"""Sample photos: read like shards, answered, scored by their names, and never in the way of a report."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ConfigError
from service.report.drawing.album import Album
from service.report.options import ReportOptions
from service.report.pages import page
from service.report.sections.samples import BATCH, build_section, files_of, truth_of
from service.report.subject import Subject

L = keras.layers


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("cat.1500.jpg", 0),
        ("Dogs 7.png", 1),
        ("cat_and_dog.jpg", None),
        ("african_elephant.jpg", None),
        ("a_dog.jpg", 1),
        ("category.jpg", None),
    ],
)
def test_names_that_tell_the_class(name, truth):
    assert truth_of(name, ("cats", "dogs")) == truth


def test_files_by_number_and_only_pictures(tmp_path):
    for name in ("dog.10.jpg", "dog.9.JPG", "cat.1.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in files_of(tmp_path)] == ["cat.1.png", "dog.9.JPG", "dog.10.jpg"]
    with pytest.raises(ConfigError, match="no such folder"):
        files_of(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="none in it"):
        files_of(tmp_path / "empty")


def brightness() -> keras.Model:
    """Says dogs to what is brighter than 128 on average."""
    model = keras.Sequential(
        [L.Input((4, 6, 3)), L.GlobalAveragePooling2D(), L.Dense(1, activation="sigmoid")]
    )
    model.set_weights([np.full((3, 1), 20.0), np.array([-30.0])])
    return model


def section(folder, tmp_path):
    subject = Subject(
        "n", brightness(), "m", "s", ("cats", "dogs"), None, None, 1 / 255, ReportOptions(samples=folder)
    )  # type: ignore[arg-type]
    return build_section(subject, Album(tmp_path))


def test_samples_are_answered_scored_and_escaped(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(BATCH + 2):
        Image.new("RGB", (30, 20), (250,) * 3 if number % 2 else (5,) * 3).save(
            folder / f"{'dog' if number % 2 else 'cat'}.{number}.png"
        )
    Image.new("L", (9, 9), 250).save(folder / "cat.900.png")  # a bright cat: wrong
    (folder / "<script>.jpg").write_bytes(b"no picture")
    found = section(folder, tmp_path)
    assert (found.values["right"], found.values["known"]) == (BATCH + 2, BATCH + 3)
    assert found.values["unreadable"] == ["<script>.jpg"]
    answers = {answer["file"]: answer for answer in found.values["answers"]}
    assert answers["cat.0.png"]["top"][0]["name"] == "cats"
    assert answers[f"dog.{BATCH + 1}.png"]["top"][0] == {"name": "dogs", "probability": pytest.approx(1.0)}
    for name, answer in answers.items():
        with Image.open(tmp_path / answer["picture"].file) as picture:
            assert picture.convert("L").getpixel((3, 3)) == (
                5 if name.startswith("cat") and name != "cat.900.png" else 250
            ), name
    assert answers["cat.900.png"]["picture"].alt == "cat.900.png: dogs with 100.0%, is cats"
    html = page.templates().get_template("samples.html").render(values=found.values)
    assert "<script>" not in html
    assert html.count('class="wrong"') == 1


def test_none_without_a_folder(tmp_path):
    assert section(None, tmp_path) is None
