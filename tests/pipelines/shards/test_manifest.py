"""Saving and loading the manifest, and the errors of damaged ones."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import shard_samples

from pipelines.errors import DataError
from pipelines.shards.manifest import VERSION, ShardFile, StoredFile, load_manifest


@pytest.fixture
def directory(tmp_path):
    records = [
        shard_samples.make_record(np.zeros((2, 2), np.uint8), index % 2, str(index)) for index in range(4)
    ]
    return shard_samples.write_shards(tmp_path / "set", ("ant", "bee"), {"train": records})


def change_entries(directory, **entries):
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]  # as older versions wrote it
    path.write_text(json.dumps(content | entries))


def test_a_manifest_is_loaded_as_saved(directory):
    manifest = load_manifest(directory)
    manifest.save(directory)
    assert load_manifest(directory) == manifest
    assert (manifest.classes, manifest.splits["train"].rows) == (("ant", "bee"), 4)


def test_a_newer_version_is_reported_as_newer(directory):
    (directory / "manifest.json").write_text(json.dumps({"version": VERSION + 1, "shards": []}))
    with pytest.raises(
        DataError, match=rf"version={VERSION + 1}, which is newer\. Fix: read it with the newer glassbox"
    ):
        load_manifest(directory)


@pytest.mark.parametrize("version", [1, "two", None])
def test_an_older_version_must_be_built_again(directory, version):
    change_entries(directory, version=version)
    with pytest.raises(DataError, match=rf"version={version}\. Fix: build the shard set again"):
        load_manifest(directory)


def test_splits_of_another_version_are_refused(directory):
    change_entries(directory, version=2)
    with pytest.raises(DataError, match=r"splits\.train is not described as in version 2"):
        load_manifest(directory)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"{\xff", "codec can't decode"),
        (b"[]", "no version"),
        (b"{}", "no version"),
        (b"3", "no version"),
        (b'{"version": %d}' % VERSION, "format: Field required"),
    ],
)
def test_a_damaged_manifest_is_reported(directory, content, reason):
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json: .*build the shard set again") as caught:
        load_manifest(directory)
    assert reason in caught.value.received


def test_an_entry_of_the_wrong_type_is_named(directory):
    change_entries(directory, classes=["ant", 3])
    with pytest.raises(DataError, match=r"classes\.1: "):
        load_manifest(directory)


def test_a_source_in_place_of_a_shard_set_is_reported():
    with pytest.raises(DataError, match="build one of it first: glassbox shards build folder:photos OUT"):
        load_manifest("folder:photos")


def test_a_missing_manifest_is_reported(tmp_path):
    with pytest.raises(DataError, match="a complete shard set"):
        load_manifest(tmp_path)


def test_an_unknown_split_is_reported(directory):
    with pytest.raises(DataError, match=r"one of train\. Received: split=test"):
        load_manifest(directory).get_split("test")


def test_files_of_a_shard():
    index = StoredFile(file="i", bytes=1, sha256="")
    assert ShardFile(file="s", bytes=1, sha256="", rows=0).files == ()
    shard = ShardFile(file="s", bytes=1, sha256="", rows=2, index=index)
    assert shard.files == (index, shard)


def test_fields_that_say_nothing_are_not_written(directory):
    """The digest of a set written before these fields existed stays the same, and its runs can resume."""
    manifest = load_manifest(directory)
    content = json.loads((directory / "manifest.json").read_text())
    del content["sha256"]
    assert not {"levels", "notes", "notices"} & content.keys()
    assert (
        manifest.digest() == hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
    )
    changed = manifest.model_copy(
        update={"levels": "0:4095", "notes": ("a note",), "notices": {"suffix .jpe": 2}}
    )
    changed.save(directory)
    assert load_manifest(directory) == changed
    assert changed.digest() != manifest.digest()


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "a/b.arrow", "..", "a\\b", "", "a\0b"])
def test_a_file_outside_of_the_set_is_refused(directory, name):
    path = directory / "manifest.json"
    splits = json.loads(path.read_text())["splits"]
    for split in splits.values():
        split["index"]["file"] = name
    change_entries(directory, splits=splits)
    with pytest.raises(DataError, match=r"index\.file: .*may not lead out of its folder"):
        load_manifest(directory)


def test_a_changed_manifest_is_damaged_and_one_without_a_digest_is_read(directory):
    path = directory / "manifest.json"
    manifest = load_manifest(directory)
    change_entries(directory)
    assert load_manifest(directory) == manifest
    manifest.save(directory)
    path.write_text(path.read_text().replace('"ant"', '"ape"'))
    with pytest.raises(DataError, match="the digest does not fit"):
        load_manifest(directory)
