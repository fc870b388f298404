"""The copies of the component `s3`, between directories; what it does with a bucket is Arrow's."""

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


def content(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_everything_arrives_once(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert sync(str(source), str(copy)) == (3, 0)
    assert content(copy) == content(source)
    assert sync(str(source), copy.as_uri()) == (0, 3)


def test_what_changed_arrives_again_and_nothing_is_removed(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    sync(str(source), str(copy))
    (source / "top").write_text("22")  # longer, though it claims to be old
    os.utime(source / "top", (0, 0))
    (source / "set/a.arrow").write_text("swor")  # as long, but newer
    later = (copy / "set/a.arrow").stat().st_mtime + 10
    os.utime(source / "set/a.arrow", (later, later))
    (source / "set/manifest.json").unlink()
    assert sync(str(source), str(copy)) == (2, 0)
    assert content(copy) == {"set/manifest.json": "{}", "set/a.arrow": "swor", "top": "22"}


def test_a_manifest_arrives_last(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "set/a.arrow.partial").mkdir(parents=True)  # this file cannot be written
    with pytest.raises(OSError, match=r"a\.arrow"):
        sync(str(source), str(copy))
    assert not (copy / "set/manifest.json").exists()


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Expected files at the source"):
        sync(str(tmp_path / "nothing"), str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
