"""Sources to evaluate or predict are opened as they are; nothing is learned from them."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from shard_samples import make_record, write_shards

from pipelines.errors import DataError
from pipelines.shards.images import DEEP
from pipelines.shards.manifest import load_manifest
from pipelines.sources import open_source
from service.inference.datasets import find_split, open_dataset, open_labelled_dataset, use_levels
from service.models.metadata import ModelMetadata


@pytest.fixture
def folder(tmp_path):
    """A folder with nothing but a test split, and an archive and tables of it next to it."""
    for name in ("cat", "dog"):
        path = tmp_path / "set/test" / name / "1.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"image")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.jpg")):
            archive.write(path, path.relative_to(tmp_path / "set"))
    (tmp_path / "set/test.csv").write_text("path,label\ntest/cat/1.jpg,cat\ntest/dog/1.jpg,dog\n")
    return tmp_path / "set"


@pytest.mark.parametrize("kind", ["folder", "archive", "csv"])
def test_a_source_with_only_a_test_split_can_be_evaluated_and_predicted(folder, kind):
    name = f"{kind}:{folder}{'.zip' if kind == 'archive' else ''}"
    for open_images in (open_dataset, open_labelled_dataset):
        dataset = open_images(name)
        assert dict(dataset.rows()) == {"test": 2}
        assert dataset.classes == ("cat", "dog")
    with pytest.raises(DataError, match="train"):
        open_source(name)


def test_usual_names_of_a_split_are_understood_unless_a_split_has_that_name():
    rows = {"train": 2, "validation": 1}
    assert [find_split(rows, name) for name in ("validation", "valid", "VAL")] == ["validation"] * 3
    assert find_split(rows, "testing") == "testing"  # which the commands report as unknown
    assert find_split({"val": 1, "validation": 1}, "val") == "val"


@pytest.mark.parametrize(
    ("levels", "deep_images", "is_logged"), [("full", 3, True), ("0:4095", 3, False), ("full", 0, False)]
)
def test_a_shard_set_with_other_levels_than_the_model_is_logged(
    tmp_path, caplog, levels, deep_images, is_logged
):
    pixels = np.zeros((4, 4, 1), np.uint8)
    records = [make_record(pixels, label, str(label)) for label in (0, 1)]
    shards = write_shards(tmp_path / "shards", ("dim", "bright"), {"train": records})
    manifest = load_manifest(shards)
    notices = {DEEP: deep_images} if deep_images else {}
    manifest.model_copy(update={"levels": levels, "notices": notices}).save(shards)
    dataset = open_dataset(shards)
    metadata = ModelMetadata(("dim", "bright"), "00", (4, 4), 1, levels="0:4095")
    assert use_levels(dataset, metadata) is dataset
    is_warned = "3 images of more than 8 bits were reduced with levels full" in caplog.text
    assert is_warned == is_logged
