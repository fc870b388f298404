"""Metadata in `.keras` files and in runs: what is written is read, and damage is an error."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from run_samples import write_older_record

from pipelines.errors import ConfigError
from service.models.metadata import MEMBER, ModelMetadata, append_metadata, read_metadata
from service.runs import Run

METADATA = ModelMetadata(("Kätzchen", "日本語"), "ab" * 32, (8, 6), 3)


def write_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("config.json", (2020, 1, 1, 0, 0, 0)), "{}")


def test_metadata_are_read_as_written_in_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("a.keras", "b.keras")]
    for path in paths:
        write_archive(path)
        assert read_metadata(path) is None
        append_metadata(path, METADATA)
        assert read_metadata(path) == METADATA
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_fit_that_older_programs_do_not_know_makes_a_newer_version():
    assert json.loads(METADATA.to_json())["version"] == 1
    cropped = replace(METADATA, fit="crop", resize=256, antialias=True)
    assert json.loads(cropped.to_json())["version"] == 2
    assert ModelMetadata.from_json(cropped.to_json(), "x") == cropped
    with pytest.raises(ConfigError, match="damaged"):
        ModelMetadata.from_json(cropped.to_json().replace('"crop"', '"squash"'), "x")


def test_the_members_before_the_metadata_are_not_rewritten(tmp_path):
    path = tmp_path / "a.keras"
    write_archive(path)
    with zipfile.ZipFile(path) as archive:
        end = archive.start_dir
    content = path.read_bytes()[:end]
    append_metadata(path, METADATA)
    assert path.read_bytes()[:end] == content


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"version": 1}', METADATA.to_json().replace('"channels": 3', '"channels": "x"')],
)
def test_damaged_metadata_are_an_error_that_names_the_file(tmp_path, text):
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, text)
    with pytest.raises(ConfigError, match=r"a\.keras: glassbox\.json \(damaged\)"):
        read_metadata(path)


def test_metadata_of_a_newer_version_are_refused():
    content = json.loads(METADATA.to_json()) | {"version": 3}
    with pytest.raises(ConfigError, match="version 3, which is newer"):
        ModelMetadata.from_json(json.dumps(content), "x")


def test_a_file_that_is_no_archive_has_no_metadata(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert read_metadata(tmp_path / "model.h5") is None


def test_a_run_adds_its_metadata_to_its_model(tmp_path):
    run = Run(tmp_path / "run")
    run.create({"shards": "data"})
    assert (run.read_metadata(), run.read_data_digest()) == (None, None)
    run.write_model(write_archive)
    assert read_metadata(run.model_path) is None
    run.write_metadata(METADATA)
    run.write_model(write_archive)
    assert read_metadata(run.model_path) == run.read_metadata() == METADATA


def test_a_run_refuses_another_shard_set_at_the_place_of_its_own(tmp_path):
    run = Run(tmp_path / "run")
    run.create({"shards": "data"})
    run.check_data("data", "any")  # not recorded
    write_older_record(run, "old")
    assert run.read_data_digest() == "old"
    run.check_data("data", "old")
    with pytest.raises(ConfigError, match=r"shards=data \(another one is there now\)"):
        run.check_data("data", "new")
    run.write_metadata(METADATA)
    run.check_data("data", METADATA.data)


def test_changed_metadata_is_damaged_and_that_of_older_versions_is_read() -> None:
    text = METADATA.to_json()
    content = json.loads(text)
    changed = text.replace(METADATA.classes[0], "other")
    assert changed != text
    with pytest.raises(ConfigError, match="damaged"):
        ModelMetadata.from_json(changed, "data.json")
    del content["sha256"]
    assert ModelMetadata.from_json(json.dumps(content), "data.json") == METADATA
