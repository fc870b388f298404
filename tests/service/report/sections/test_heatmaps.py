"""The pictures of heatmaps and saliency: each is of the image, the class, the layer and the method that the page says."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from service.report.drawing import heatmap
from service.report.drawing.album import Album
from service.report.options import ReportOptions
from service.report.sections import heatmaps, saliency
from service.report.subject import Section, Subject

L = keras.layers
BRIGHT = np.array([[0, 0, 200, 0], [0, 0, 0, 100], [40, 0, 0, 0]], np.uint8)  # three images of four pixels


class Rows:
    """The three images; the third is of the other class."""

    split, labels = "validation", np.array([1, 1, 0], np.int32)

    def read(self, rows):
        return BRIGHT[np.asarray(rows)][:, None, :, None]

    def batches(self):
        return [
            {
                "image": self.read(range(3)),
                "label": self.labels,
                "weight": np.ones(3, np.float32),
                "row": np.arange(3),
            }
        ]


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Two filters that pass on the right neighbour, one after the other; class 1 is what is bright after both."""
    shift = {"kernel_size": (1, 2), "padding": "same", "use_bias": False}
    model = keras.Sequential(
        [L.Input((1, 4, 1)), L.Conv2D(1, name="once", **shift), L.Conv2D(1, name="twice", **shift)]
    )
    model.add(L.GlobalAveragePooling2D())
    model.add(L.Dense(1))
    right = np.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    model.set_weights([right, right, np.array([[1.0]]), np.array([-10.0])])
    options = ReportOptions(heatmap_images=3, activation_images=3)
    return Subject("tiny", model, "m", "s", ("dark", "bright"), Rows(), Rows(), 1.0, options)  # type: ignore[arg-type]


def places(folder: Path, file: str) -> np.ndarray:
    return np.asarray(Image.open(folder / file))


def section_of(part: object, subject: Subject, folder: Path) -> Section:
    section = part.part(subject, Album(folder))  # type: ignore[attr-defined]
    assert section is not None
    assert sorted(section.figures["rows"]) == [0, 1, 2]
    return section


def test_every_map_is_of_its_image_class_layer_and_method(subject: Subject, tmp_path: Path) -> None:
    section, seen = section_of(heatmaps, subject, tmp_path), set()
    for n, look in enumerate(section.values["looks"]):
        image = BRIGHT[look["row"]].astype(np.float32)
        assert (
            look["photo"].alt
            == f"Validation image {look['row']}, {subject.classes[Rows.labels[look['row']]]}"
        )
        for shown in look["maps"]:
            when = shown["when"]
            assert when["image"] == str(n)
            moved = {"once": 1, "twice": 2}[when["layer"]]
            after = np.append(image[moved:], np.zeros(moved, np.float32))[None] * (
                when["class"] == "1"
            )  # nothing speaks for class 0
            assert shown["empty"] == (not after.any())
            np.testing.assert_array_equal(
                places(tmp_path, shown["picture"].file), heatmap.heat(after, (1, 4))
            )
            words = (
                heatmaps.TITLES[when["method"]],
                f"of {when['layer']} for {subject.classes[int(when['class'])]}:",
                f"image {look['row']},",
            )
            assert all(word in shown["picture"].alt for word in words)
            seen.add(tuple(when.values()))
    assert len(seen) == 3 * 2 * 2 * 3


def test_every_saliency_is_of_its_image_and_class(subject: Subject, tmp_path: Path) -> None:
    """The network is linear: a pixel counts a quarter, for class 1 or against it, where it is not moved out of the picture."""
    for look in section_of(saliency, subject, tmp_path).values["looks"]:
        sign = {"bright": 1, "dark": -1}[look["predicted"]]
        gradient = np.array([[0, 0, 1, 1]], np.float32) * sign / 8  # of z/2 or -z/2
        pictures = {title: places(tmp_path, picture.file) for title, picture in look["maps"]}
        assert list(pictures) == list(saliency.METHODS.values())
        np.testing.assert_array_equal(pictures["Gradient"], heatmap.heat(np.abs(gradient), (1, 4)))
        np.testing.assert_array_equal(pictures["SmoothGrad"], pictures["Gradient"])
        np.testing.assert_array_equal(
            pictures["Integrated gradients"], heatmap.diverging(gradient * BRIGHT[look["row"]], (1, 4))
        )
        assert look["incomplete"] < 1e-5 or not BRIGHT[look["row"], 2:].any()
