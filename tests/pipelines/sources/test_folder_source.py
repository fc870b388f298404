"""Images in folders: splits, classes, a fixed order, links, and files that cannot be read."""

from __future__ import annotations

import errno
import os
import pickle
import shutil

import pytest

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.sources import SourceOptions, open_source
from pipelines.sources.base import build_listing_error
from pipelines.sources.options import read_class_names


def fill(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def read_items(root, split="train"):
    source = open_source(f"folder:{root}")
    return list(source.read(split, 0, source.counts()[split]))


def read_labels(root, split="train"):
    return {item.id: item.label for item in read_items(root, split)}


def test_folders_are_classes(tmp_path):
    source = open_source(f"folder:{fill(tmp_path, 'dog/a.jpg', 'cat/a.JPEG', 'cat/b.png', 'dog/sub/c.webp')}")
    assert source.name == f"folder:{tmp_path}"
    assert source.classes == ("cat", "dog")
    assert dict(source.counts()) == {"train": 4}
    examples = {item.id: item for item in source.read("train", 0, 4)}
    assert examples["cat/a.JPEG"] == Example(b"cat/a.JPEG", 0, "cat/a.JPEG")
    assert examples["dog/sub/c.webp"] == Example(b"dog/sub/c.webp", 1, "dog/sub/c.webp")
    assert set(examples) == {"dog/a.jpg", "cat/a.JPEG", "cat/b.png", "dog/sub/c.webp"}


def test_split_folders_share_one_numbering_of_the_classes(tmp_path, caplog):
    fill(
        tmp_path,
        "Train/a/1.png",
        "Train/b/2.png",
        "Train/stray.png",
        "Valid/b/3.png",
        "test/a/4.png",
        "other/d/5.png",
        "README.txt",
    )
    caplog.set_level("INFO")
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("a", "b")
    assert read_labels(tmp_path) == {"Train/a/1.png": 0, "Train/b/2.png": 1}
    assert read_labels(tmp_path, "validation") == {"Valid/b/3.png": 1}
    assert read_labels(tmp_path, "test") == {"test/a/4.png": 0}
    assert source.notes == (
        "splits: train=Train, validation=Valid, test=test",
        "folders not read: 'other' (not the name of a split)",
        "warning: no validation images of class 'a'",
        "images outside of class folders, not read: 1",
    )
    assert source.notes[0] in caplog.text


def test_splits_can_be_specified(tmp_path):
    fill(tmp_path, "mine/a/1.png", "mine/b/2.png", "yours/a/3.png", "train/c/4.png")
    options = SourceOptions(splits="train=mine,validation=yours")
    source = open_source(f"folder:{tmp_path}", options=options)
    assert dict(source.counts()) == {"train": 2, "validation": 1}
    assert source.notes[:2] == (
        "splits: train=mine, validation=yours",
        "folders not read: 'train' (not in --splits)",
    )
    with pytest.raises(ConfigError, match="train=nowhere"):
        open_source(f"folder:{tmp_path}", options=SourceOptions(splits="train=nowhere"))


def test_a_class_may_be_named_train(tmp_path):
    fill(tmp_path, "bus/1.png", "car/2.png", "train/3.png")
    with pytest.raises(DataError, match=r"write --splits train=\. if every folder is a class"):
        open_source(f"folder:{tmp_path}")
    source = open_source(f"folder:{tmp_path}", options=SourceOptions(splits="train=."))
    assert source.classes == ("bus", "car", "train")


def test_an_option_that_a_source_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="leave --splits out"):
        open_source("synthetic:evidence", options=SourceOptions(splits="train=."))


def test_a_class_without_training_images_is_refused(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/2.png", "validation/later/3.png")
    with pytest.raises(DataError, match="no training images of class 'later'"):
        open_source(f"folder:{tmp_path}")


def test_spellings_of_one_class_are_merged(tmp_path):
    composed = "caf\u00e9"
    decomposed = "cafe\u0301"  # as macOS stores it
    fill(tmp_path, "train/Cat/1.png", "train/Cat/2.png", "train/cat/3.png")
    fill(tmp_path, f"train/{composed}/4.png", f"validation/{decomposed}/5.png", "validation/CAT/6.png")
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("Cat", composed)
    assert sorted(read_labels(tmp_path).values()) == [0, 0, 0, 1]
    assert sorted(read_labels(tmp_path, "validation").values()) == [0, 1]
    assert any(
        note.startswith("merged into the class 'Cat': 'CAT' and 'Cat' and 'cat'") for note in source.notes
    )


def test_a_file_of_class_names_sets_their_order_and_keeps_spellings_apart(tmp_path):
    fill(tmp_path, "photos/a/1.png", "photos/A/2.png", "photos/b/3.png")
    (tmp_path / "names.txt").write_text("b\nA\na\n")
    names = read_class_names(tmp_path / "names.txt")
    source = open_source(f"folder:{tmp_path / 'photos'}", options=SourceOptions(class_names=names))
    assert source.classes == ("b", "A", "a")
    assert {item.id: item.label for item in source.read("train", 0, 3)} == {
        "a/1.png": 2,
        "A/2.png": 1,
        "b/3.png": 0,
    }
    with pytest.raises(DataError, match="unknown class 'b'"):
        open_source(f"folder:{tmp_path / 'photos'}", options=SourceOptions(class_names=("A", "a")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a\n", "1 names"), ("a\na\n", "line 2: 'a'"), ("a\n\nb", "line 2: ''"), (None, "No such file")],
)
def test_a_wrong_file_of_class_names_is_refused(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "names.txt").write_text(content)
    with pytest.raises(ConfigError, match=reason):
        read_class_names(tmp_path / "names.txt")


def test_a_huge_file_is_rejected_without_reading_it(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    with (tmp_path / "a/sparse.png").open("wb") as file:
        file.truncate(2**40)
    assert Rejected("a/sparse.png", f"larger than 256 MiB: {2**40} bytes") in read_items(tmp_path)


def test_the_only_folder_at_the_top_is_suggested(tmp_path):
    fill(tmp_path, "photos/a/1.png", "photos/b/2.png")
    with pytest.raises(DataError, match=f"write folder:{tmp_path}/photos"):
        open_source(f"folder:{tmp_path}")


def test_ranges_cover_the_split_and_mix_the_classes(tmp_path):
    fill(tmp_path, *(f"{name}/{index}.png" for name in "ab" for index in range(50)))
    source = open_source(f"folder:{tmp_path}")
    whole = list(source.read("train", 0, 100))
    assert [item for start in range(0, 100, 30) for item in source.read("train", start, start + 30)] == whole
    assert 5 <= sum(item.label for item in whole[-20:]) <= 15


def test_a_copy_is_read_in_the_same_order(tmp_path):
    fill(tmp_path / "one", "a/1.png", "b/2 ü.png", "a/3.png", "b/4.png")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two/a/1.png", (1, 1))
    first, second = (open_source(f"folder:{tmp_path / name}") for name in ("one", "two"))
    assert list(first.read("train", 0, 4)) == list(second.read("train", 0, 4))
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize("change", ["add", "remove", "rename", "grow", "move"])
def test_the_fingerprint_changes_with_the_files(tmp_path, change):
    fill(tmp_path, "a/1.png", "b/2.png", "b/3.png")
    before = open_source(f"folder:{tmp_path}").fingerprint()
    if change == "add":
        fill(tmp_path, "a/4.png")
    elif change == "remove":
        (tmp_path / "b/3.png").unlink()
    elif change == "grow":
        (tmp_path / "b/3.png").write_bytes(b"longer than before")
    else:
        (tmp_path / "b/3.png").rename(tmp_path / ("b/4.png" if change == "rename" else "a/3.png"))
    assert open_source(f"folder:{tmp_path}").fingerprint() != before


def test_other_files_are_rejected_with_a_reason(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png", "b/notes.TXT", "b/none")
    rejected = {item.id: item.reason for item in read_items(tmp_path) if isinstance(item, Rejected)}
    assert rejected == {"b/notes.TXT": "not an image suffix: .TXT", "b/none": "not an image suffix: none"}


def test_hidden_files_and_folders_are_ignored(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png", "a/.DS_Store", ".cache/3.png", "b/.thumbs/4.png", "5.png")
    assert read_labels(tmp_path) == {"a/1.png": 0, "b/2.png": 1}


def test_a_folder_without_images_is_no_class_and_is_logged(tmp_path, caplog):
    fill(
        tmp_path,
        "train/a/1.png",
        "train/b/2.png",
        "train/noimages/text.txt",
        "validation/a/3.png",
    )
    (tmp_path / "train/empty").mkdir()
    caplog.set_level("INFO")
    assert open_source(f"folder:{tmp_path}").classes == ("a", "b")
    assert "'empty', 'noimages'" in caplog.text
    assert Rejected("train/noimages/text.txt", "not an image suffix: .txt") in read_items(tmp_path)


def test_links_to_files_and_to_classes_are_followed(tmp_path):
    root = fill(tmp_path / "root", "a/1.png", "b/2.png")
    fill(tmp_path / "far", "3.png")
    (root / "a/file.png").symlink_to(tmp_path / "far/3.png")
    (root / "a/broken.png").symlink_to(tmp_path / "nowhere")
    (root / "b/loop").symlink_to(root / "b")
    (root / "up").symlink_to(root)
    (root / "upper").symlink_to(tmp_path)
    (root / "class").symlink_to(tmp_path / "far")
    items = {item.id: item for item in read_items(root)}
    assert set(items) == {"a/1.png", "b/2.png", "a/file.png", "a/broken.png", "class/3.png"}
    assert items["a/file.png"] == Example(b"3.png", 0, "a/file.png")
    assert items["class/3.png"].label == 2
    assert items["a/broken.png"] == Rejected("a/broken.png", "cannot be read: No such file or directory")


def test_a_pipe_is_rejected(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    assert Rejected("a/pipe.png", "not a regular file") in read_items(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_rejected(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a/1.png").chmod(0)
    assert Rejected("a/1.png", "cannot be read: Permission denied") in read_items(tmp_path)


@pytest.mark.parametrize("name", ["a/café", "a/café".encode()])
def test_a_folder_that_cannot_be_listed_is_named_as_text(name):
    error = build_listing_error(PermissionError(errno.EACCES, "Permission denied", name))
    assert error.received == "folder=a/café: Permission denied"


def test_a_name_that_is_not_utf8_is_rejected(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / os.fsdecode(b"a/\xff.png")).write_bytes(b"")
    assert Rejected("a/\\xff.png", "the name is not UTF-8") in read_items(tmp_path)
    open_source(f"folder:{tmp_path}").fingerprint()


def test_a_file_that_was_removed_is_an_error(tmp_path):
    source = open_source(f"folder:{fill(tmp_path, 'a/1.png', 'b/2.png')}")
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(DataError, match=r"a/1\.png: No such file"):
        list(source.read("train", 0, 2))


def test_a_source_can_be_pickled(tmp_path):
    source = open_source(f"folder:{fill(tmp_path, 'a/1.png', 'b/2.png')}")
    assert pickle.loads(pickle.dumps(source)) == source


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        open_source(f"folder:{tmp_path / 'missing'}")


@pytest.mark.parametrize(
    "paths", [["a/1.png"], ["1.png", "2.png"], ["a/1.txt", "b/2.txt"], ["a/1.png", "b/2.txt"]]
)
def test_fewer_than_two_classes_are_refused(tmp_path, paths):
    with pytest.raises(DataError, match="at least two classes"):
        open_source(f"folder:{fill(tmp_path, *paths)}")
