"""The section of training images: where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.input.mixed_manifest import MixedSet
from service.report.drawing.album import Album
from service.report.pages.page import render
from service.report.sections import training_images
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

MIX = (
    MixedSet(location="/data/photos", weight=0.7, rows=6, first_row=0, epoch_images=6, digest="a"),
    MixedSet(location="s3://bucket/<b>", weight=0.3, rows=4, first_row=6, epoch_images=2, digest="b"),
)


class Greys:
    """Ten images of one grey each, of two classes in turn."""

    split = "train"
    labels = np.arange(10, dtype=np.int32) % 2

    def read(self, rows: Sequence[int]) -> np.ndarray:
        return np.stack([np.full((4, 4, 3), 20 * row, np.uint8) for row in rows])

    def read_ids(self, rows: Sequence[int]) -> list[str]:
        return [f"{row}.png" for row in rows]


def build_section(folder: Path, mix: tuple[MixedSet, ...]) -> Section:
    return training_images.build_section(
        Album(folder),
        Provenance("model", "shards", 1.0, "validation"),
        images=Greys(),
        classes=("ant", "bee"),
        input_shape=(4, 4, 3),
        count=10,
        mix=mix,
    )


def test_every_training_image_of_a_mix_names_its_set(tmp_path: Path) -> None:
    section = build_section(tmp_path, MIX)
    html = render("training_images.html", [], values=section.values)
    assert "Training image 5, bee: 5.png (/data/photos)" in html
    assert "Training image 6, ant: 6.png (s3://bucket/&lt;b&gt;)" in html
    assert "<td>6 to 9</td>" in html
    assert section.figures["mix"] == [one.model_dump() for one in MIX]
    sets = dict(zip(section.figures["shown_rows"], section.figures["shown_sets"], strict=True))
    assert sets == {row: MIX[row >= 6].location for row in range(10)}


def test_the_images_of_one_set_name_no_origin(tmp_path: Path) -> None:
    section = build_section(tmp_path, ())
    html = render("training_images.html", [], values=section.values)
    assert "Training image 5, bee: 5.png" in html
    assert "sets" not in html
    assert "mix" not in section.figures
