"""Copying between directories with the component `s3`; access to buckets is PyArrow's."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
from kube_render import K8S

sync = runpy.run_path(str(K8S / "components/s3/sync.py"))["sync"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with three files."""
    root = tmp_path / "source"
    (root / "set").mkdir(parents=True)
    for name, text in (("set/manifest.json", "{}"), ("set/a.arrow", "rows"), ("top", "1")):
        (root / name).write_text(text)
    return root


def read_tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_every_file_is_copied_once(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert sync(str(source), str(copy)) == (3, 0)
    assert read_tree(copy) == read_tree(source)
    assert sync(str(source), copy.as_uri()) == (0, 3)


def test_changed_files_are_copied_again_and_none_is_deleted(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    sync(str(source), str(copy))
    (source / "top").write_text("22")  # another size, with an older time
    os.utime(source / "top", (0, 0))
    (source / "set/a.arrow").write_text("swor")  # the same size, with a newer time
    later = (copy / "set/a.arrow").stat().st_mtime + 10
    os.utime(source / "set/a.arrow", (later, later))
    (source / "set/manifest.json").unlink()
    assert sync(str(source), str(copy)) == (2, 0)
    assert read_tree(copy) == {"set/manifest.json": "{}", "set/a.arrow": "swor", "top": "22"}


def test_manifest_is_copied_last(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "set/a.arrow.partial").mkdir(parents=True)  # makes writing this file fail
    with pytest.raises(OSError, match=r"a\.arrow"):
        sync(str(source), str(copy))
    assert not (copy / "set/manifest.json").exists()


def test_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Expected files at the source"):
        sync(str(tmp_path / "nothing"), str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
