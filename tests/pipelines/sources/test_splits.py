"""Which folder, file or value belongs to which split."""

from __future__ import annotations

import pytest

from pipelines.errors import ConfigError, DataError
from pipelines.sources.splits import (
    find_split_folders,
    find_split_of_file,
    find_split_of_folder,
    parse_splits,
)


class PathTree:
    """Folders of a list of image paths; a path that ends with `/` is an empty folder."""

    def __init__(self, *paths):
        self.paths = paths

    def list_folders(self, path):
        start = f"{path}/" if path else ""
        inside = [other[len(start) :] for other in self.paths if other.startswith(start)]
        return sorted({rest.partition("/")[0] for rest in inside if "/" in rest})

    def has_images(self, path):
        return any(
            other.rpartition("/")[0] == path and not other.endswith("/") and other.endswith(".png")
            for other in self.paths
        )


def make_tree(*folders):
    return PathTree(*(f"{folder}/{name}/1.png" for folder in folders for name in ("cat", "dog")))


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "valid"], {"train": "train", "validation": "valid"}),
        (["train", "valid", "test"], {"train": "train", "validation": "valid", "test": "test"}),
        (["Training", "Testing"], {"train": "Training", "test": "Testing"}),
        (["Train", "Test"], {"train": "Train", "test": "Test"}),
        (["seg_train", "seg_test"], {"train": "seg_train", "test": "seg_test"}),
        (["training_set/training_set", "test_set/test_set"],
         {"train": "training_set/training_set", "test": "test_set/test_set"}),
        (["train", "dev"], {"train": "train", "validation": "dev"}),
        (["train", "eval"], {"train": "train", "validation": "eval"}),
        (["TRAIN", "VAL"], {"train": "TRAIN", "validation": "VAL"}),
        (["train_images", "val-images"], {"train": "train_images", "validation": "val-images"}),
        (["train"], {"train": "train"}),
    ],
)  # fmt: skip
def test_the_usual_names_are_recognised(folders, expected):
    assert dict(find_split_folders("x", make_tree(*folders)).folders) == expected


def test_other_folders_are_classes():
    layout = find_split_folders("x", PathTree("trains/1.png", "validators/1.png", "test tube/1.png"))
    assert layout.folders == {"train": ""}
    assert layout.describe() == []


def test_a_kaggle_export_is_read_as_downloaded():
    tree = PathTree(
        "seg_train/seg_train/sea/1.png",
        "seg_test/seg_test/sea/2.png",
        "seg_pred/seg_pred/3.png",
        "__MACOSX/seg_train/sea/1.png",
    )
    layout = find_split_folders("x", tree)
    assert layout.folders == {"train": "seg_train/seg_train", "test": "seg_test/seg_test"}
    assert layout.describe() == [
        "splits: train=seg_train/seg_train, test=seg_test/seg_test",
        "folders not read: 'seg_pred' (not the name of a split)",
    ]


def test_a_test_folder_without_classes_is_not_read():
    layout = find_split_folders("x", PathTree("train/a/1.png", "train/b/1.png", "test/1.png"))
    assert layout.folders == {"train": "train"}
    assert layout.unread == {"test": "no class folders in it"}


@pytest.mark.parametrize(
    ("tree", "reason", "fix"),
    [
        (make_tree("train", "val", "valid"), "2 folders for validation", "train=train,validation=val"),
        (make_tree("valid", "test"), "none for train", "train=FOLDER,validation=valid,test=test"),
        (PathTree("train/1.png", "validation/a/1.png"), "no class folders in train", "train=FOLDER"),
        (PathTree("bus/1.png", "train/1.png"), "no class folders in train", r"train=\. if every folder"),
        (PathTree("bus/1.png", "train/old/1.png"), "bus may be classes next to train", r"train=\."),
        (PathTree("cat/train/1.png", "cat/test/1.png", "dog/train/1.png"), "cat/test", r"train=\."),
    ],
)
def test_a_layout_that_fits_no_rule_is_refused(tree, reason, fix):
    with pytest.raises(DataError, match=fix) as caught:
        find_split_folders("x", tree)
    assert reason in caught.value.received


def test_a_source_to_evaluate_needs_no_train_split():
    tree = make_tree("test")
    assert find_split_folders("x", tree, needs_train=False).folders == {"test": "test"}
    assert find_split_folders("x", tree, "test=test", needs_train=False).folders == {"test": "test"}
    with pytest.raises(DataError, match="none for train"):
        find_split_folders("x", tree)
    with pytest.raises(DataError, match=r"no class folders in test.*photos:DIR"):
        find_split_folders("x", PathTree("test/1.png"), needs_train=False)


def test_a_requested_mapping_decides():
    tree = make_tree("a/one", "two", "train")
    layout = find_split_folders("x", tree, "test=two,train=a/one")
    assert list(layout.folders.items()) == [("train", "a/one"), ("test", "two")]
    assert layout.unread == {"train": "not in --splits"}
    assert find_split_folders("x", tree, "train=.").folders == {"train": ""}


@pytest.mark.parametrize("text", ["", "train", "train=", "validation=b", "train=a,train=b", "train=a,dev=b"])
def test_a_wrong_mapping_is_refused(text):
    with pytest.raises(ConfigError, match=r"splits="):
        parse_splits(text)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/validation/0000.parquet", "validation"),
        ("set/test_01.tar", "test"),
        ("train/val-0.tar", "validation"),
        ("train_vs_test.csv", None),
        ("labels.csv", None),
    ],
)
def test_the_split_of_a_file_follows_from_its_name(path, split):
    assert find_split_of_file(path) == split


def test_words_in_other_names_are_no_splits():
    assert find_split_of_folder("Training Set 2") == "train"
    assert [find_split_of_folder(name) for name in ("test tube", "train test", "trainer", "")] == [None] * 4
