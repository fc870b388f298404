"""User code that a run would need and could not copy is refused before anything is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stores import Bucket

from pipelines.errors import ConfigError
from pipelines.plugins import load_reference
from service.config import load_config
from service.user_code import CodeCopy, check_code, find_names


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("statement", ["import helper", "from helper.parts import f", "import os, helper"])
@pytest.mark.parametrize("where", ["model", "augment", "custom_objects"])
def test_a_file_that_imports_a_file_next_to_it_is_refused(statement: str, where: str, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", f"def build(task):\n    {statement}\n")
    write(tmp_path / "helper" / "__init__.py", "raise SystemExit('imported')")
    values = {"model": f"{file}:build", "augment": {f"{file}:build": True}, "custom_objects": [str(file)]}
    with pytest.raises(ConfigError, match=r"imports helper from .*helper.*FOLDER/package\.module:NAME"):
        check_code({"model": "linear", where: values[where]})


def test_it_is_refused_again_after_the_other_file_has_been_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a" / "mine.py", "import elsewhere_helper")
    write(tmp_path / "b" / "elsewhere_helper.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "b"))
    __import__("elsewhere_helper")
    monkeypatch.delitem(sys.modules, "elsewhere_helper")
    for _ in range(2):
        with pytest.raises(ConfigError, match="imports elsewhere_helper from"):
            check_code({"model": f"{file}:build"})
        __import__("elsewhere_helper")
    monkeypatch.delitem(sys.modules, "elsewhere_helper")


def test_installed_packages_copied_packages_and_missing_ones_may_be_imported(tmp_path: Path) -> None:
    text = (
        "import json, numpy, yaml.nodes, pipelines.errors, package.net\ntry:\n    import no_such\nexcept: 0\n"
    )
    file = write(tmp_path / "mine.py", text)
    write(tmp_path / "package" / "__init__.py", "")
    check_code({"model": f"{file}:build", "custom_objects": [f"{tmp_path}/package.net"]})


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a package no_such that can be imported"):
        check_code({"model": "linear", "custom_objects": ["no_such.module"]})
    with pytest.raises(ConfigError, match=r"a file that exists. Received: file=.*mine\.py"):
        check_code({"model": "linear", "custom_objects": [f"{tmp_path}/mine.py"]})


def test_the_fix_of_an_import_next_to_the_file_is_a_package(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "import sibling_of_mine")
    write(tmp_path / "sibling_of_mine.py", "")
    with pytest.raises(ConfigError, match=r"put both files into a package and write FOLDER/package"):
        load_reference(f"{file}:build", "model")


@pytest.mark.e2e
def test_a_model_on_a_store_is_copied_like_a_local_one(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    bucket.put("models/m.keras", b"model")
    bucket.put("weights.h5", b"weights")
    bucket.put("own.yaml", f"model: {bucket.url}/models/m.keras\nweights: {bucket.url}/weights.h5\n".encode())
    config = load_config(f"{bucket.url}/own.yaml", f"{bucket.url}/shards")
    settings = config.model_dump(mode="json")
    assert settings["shards"] == f"{bucket.url}/shards"
    check_code(settings)
    copy = CodeCopy(tmp_path / "code")
    stored = [copy.add(name) for name in find_names(settings)]
    assert stored == ["m.keras", "weights.h5"]
    assert (tmp_path / "code/m.keras").read_bytes() == b"model"
    assert copy.originals["m.keras"] == f"{bucket.url}/models/m.keras"
    with pytest.raises(ConfigError, match="missing"):
        check_code({"model": f"{bucket.url}/missing.keras"})


def test_code_on_a_store_is_refused() -> None:
    for setting in ("model=s3://bucket/own.py:build", "custom_objects=[s3://bucket/own.py]"):
        with pytest.raises(ConfigError, match="user code on a disk"):
            load_config("demo", "data", [setting])
