"""Data sets that tensorflow-datasets has prepared, and its image folders."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ConfigError, DataError
from pipelines.records import Rejected
from pipelines.sources import open_source

pytestmark = pytest.mark.heavy  # data sets are written with TensorFlow

tfds = pytest.importorskip("tensorflow_datasets")


def encode_picture(value: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(file, form)
    return file.getvalue()


class GlassboxTiny(tfds.core.GeneratorBasedBuilder):
    """Nine training images with red values of 20 times their key; three test images, one without a label."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["b", "a"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(9, 0), "test": self._generate_examples(3, 100)}

    def _generate_examples(self, count, first):
        for index in range(count):
            yield (
                index,
                {
                    "picture": io.BytesIO(encode_picture(first + 20 * index, "JPEG")),
                    "kind": -1 if first and not index else index % 2,
                },
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(num_shards=3)
    GlassboxTiny(data_dir=directory).download_and_prepare(download_config=config)
    assert len(list(directory.glob("*/*/*train*"))) == 3
    return directory


@pytest.fixture
def tiny(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return prepared


def test_a_prepared_data_set(tiny):
    source = pickle.loads(pickle.dumps(open_source("tfds:glassbox_tiny")))
    assert source.name == "tfds:glassbox_tiny"
    assert source.classes == ("b", "a")
    assert dict(source.counts()) == {"train": 9, "test": 3}
    assert source.notes == ("splits: train=train, test=test",)
    whole = list(source.read("train", 0, 9))
    expected = {encode_picture(20 * index, "JPEG"): index % 2 for index in range(9)}
    assert {item.image: item.label for item in whole} == expected
    assert [item.id for item in whole] == [f"train/{index:06d}" for index in range(9)]


def test_ranges_cover_the_split(tiny):
    source = open_source("tfds:glassbox_tiny:1.2.0")
    parts = [item for start in (0, 4, 8) for item in source.read("train", start, start + 4)]
    assert parts == list(source.read("train", 0, 9))


def test_an_image_without_a_label_is_rejected(tiny):
    items = list(open_source("tfds:glassbox_tiny").read("test", 0, 3))
    assert [item.reason for item in items if isinstance(item, Rejected)] == ["no label: -1"]
    assert all(item.id.startswith("test/") for item in items)


def test_damaged_records_are_a_data_error(tiny, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(tiny, tmp_path / "copy")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "copy"))
    for path in (tmp_path / "copy/glassbox_tiny/1.2.0").glob("*train*"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="glassbox_tiny"):
        list(open_source("tfds:glassbox_tiny").read("train", 0, 9))


@pytest.mark.parametrize(
    "name", ["cats_vs_dogs", "glassbox_tiny:9.9.9", "glassbox_tiny/config", "no such thing!", "kaggle:what"]
)
def test_a_data_set_that_is_not_prepared_is_not_downloaded(tiny, name):
    with pytest.raises(DataError, match="TFDS_DATA_DIR"):
        open_source(f"tfds:{name}")
    assert [path.name for path in tiny.iterdir() if path.name not in ("glassbox_tiny", "downloads")] == []


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        path = tmp_path / f"{'train' if index < 4 else 'validation'}/{'ab'[index % 2]}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_picture(index))
    return tmp_path


def test_an_image_folder(folder):
    source = pickle.loads(pickle.dumps(open_source(f"tfds:folder={folder}")))
    assert source.classes == ("a", "b")
    assert dict(source.counts()) == {"train": 4, "validation": 2}
    assert {item.image: item.label for item in source.read("train", 0, 4)} == {
        encode_picture(index): index % 2 for index in range(4)
    }
    assert {item.image: item.label for item in source.read("validation", 0, 2)} == {
        encode_picture(4): 0,
        encode_picture(5): 1,
    }
    assert [*source.read("train", 0, 3), *source.read("train", 3, 6)] == list(source.read("train", 0, 4))
    dataset = tfds.folder_dataset.ImageFolder(str(folder)).as_dataset(split="train")
    for item, example in zip(source.read("train", 0, 4), dataset.as_numpy_iterator(), strict=True):
        # in the library's own order
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(item.image))), example["image"])
        assert item.label == example["label"]


def test_images_added_to_a_folder_are_found_in_the_same_process(folder):
    assert open_source(f"tfds:folder={folder}").counts()["train"] == 4
    (folder / "train" / "a" / "new.png").write_bytes(encode_picture(9))
    assert open_source(f"tfds:folder={folder}").counts()["train"] == 5


def test_a_missing_image_folder_is_reported(folder):
    with pytest.raises(ConfigError, match="no such folder"):
        open_source(f"tfds:folder={folder}/missing")
    with pytest.raises(DataError, match="train split"):
        open_source(f"tfds:folder={folder}/train")
