"""Sources from outside the package: from a file, a module or an entry point, up to a shard set."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from package_samples import write_package

from pipelines.errors import ConfigError, DataError
from pipelines.shards.build import build_shards
from pipelines.sources import open_source
from pipelines.spec import ShardSpec

SOURCE = """
from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image
from pipelines.records import Example


def encode(grey):
    file = io.BytesIO()
    Image.new("L", (8, 8), grey).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Squares:
    argument: str = "6"

    classes = ("dark", "bright")

    @property
    def name(self):
        return f"squares:{self.argument}"

    def counts(self):
        return {"train": int(self.argument)}

    def read(self, split, start, stop):
        for index in range(start, stop):
            label = index % 2
            yield Example(encode(100 * label + index), label, str(index), bbox=(0.0, 0.0, 0.5, 1.0))

    def fingerprint(self):
        return self.name


class Nameless:
    classes = ("dark", "bright")


class Broken:
    def __init__(self):
        raise ZeroDivisionError("no images")


five = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "squares.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.e2e
def test_a_source_in_a_file_becomes_a_shard_set(ray_cluster: None, file: Path, tmp_path: Path) -> None:
    """Ray's workers cannot import the file: its class travels to them with its code."""
    name = f"{file}:Squares"
    out = tmp_path / "set"
    manifest = build_shards(
        open_source(name), out, ShardSpec(shard_rows=2, validation=0), reopen=lambda: open_source(name)
    )
    assert manifest.source == "squares:6"
    assert manifest.classes == ("dark", "bright")
    assert manifest.splits["train"].class_counts == (3, 3)
    assert manifest.splits["train"].shard_count == 3


def test_the_argument_follows_the_class(file: Path) -> None:
    source = open_source(f"{file}:Squares:4")
    assert source.counts() == {"train": 4}
    assert [example.label for example in source.read("train", 0, 4)] == [0, 1, 0, 1]


def test_a_source_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    entry_points = "[glassbox.sources]\nsquares = shapes.images:Squares\nlost = shapes.images:Lost\n"
    write_package(tmp_path, "shapes", {"images": SOURCE}, entry_points)
    for name in ("shapes.images:Squares:2", "squares:2"):
        assert open_source(name).counts() == {"train": 2}
    for name in ("shapes.images:Squares", "squares"):
        assert open_source(name).counts() == {"train": 6}
    assert open_source("squares", labelled=False).counts() == {"train": 6}
    with pytest.raises(ConfigError, match=r"source=squars:2\. Fix: use squares; write folder:DIR"):
        open_source("squars:2")
    with pytest.raises(ConfigError, match=r"source=lost \(entry point shapes\.images:Lost\)\. Fix: use "):
        open_source("lost")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("squares.py:Square", ConfigError, r"source=squares\.py:Square\. Fix: use Squares"),
        ("circles.py:Circles", ConfigError, r"source=circles\.py:Circles \(no such file or directory\)"),
        ("no.such.module:Squares", ConfigError, r"No module named 'no'\. Fix: install the package"),
        ("squares.py:five", ConfigError, r"a class or function that returns a source.*\(int\)"),
        ("squares.py:Nameless", ConfigError, r"\(Nameless without name, counts, read, fingerprint\)"),
        ("squares.py:Broken", DataError, r"source=squares\.py:Broken: ZeroDivisionError: no images"),
        ("squares.py:Nameless:4", DataError, r"TypeError: Nameless\(\) takes no arguments"),
    ],
)
def test_anything_else_is_reported(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(error, match=message):
        open_source(name)
