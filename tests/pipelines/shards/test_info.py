"""`glassbox shards info`: notes, notices, rejected images by reason, and names that no terminal can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shard_samples

from pipelines.shards.info import describe_shards
from pipelines.shards.manifest import load_manifest
from pipelines.shards.rejections import count_reasons, read_rejected_images

ROOT = Path(__file__).resolve().parents[3]
REJECTED = [("1.jpg", "unknown label: 'x'"), ("2.jpg", "empty file"), ("3.jpg", "unknown label: 'y'")]


@pytest.fixture
def directory(tmp_path):
    records = [
        shard_samples.make_record(np.zeros((2, 2), np.uint8), index % 2, str(index)) for index in range(4)
    ]
    splits = {"train": records, "validation": records[:1], "test": records[:3]}
    directory = shard_samples.write_shards(tmp_path / "set", ("日本語", "cat\ndog"), splits)
    lines = [json.dumps({"id": name, "reason": reason}) + "\n" for name, reason in REJECTED]
    (directory / "rejected.jsonl").write_text("".join(lines))
    manifest = load_manifest(directory)
    manifest.model_copy(
        update={
            "rejected": 3,
            "levels": "0:4095",
            "notes": ("splits: train=a",),
            "notices": {"suffix .jpe": 2},
        }
    ).save(directory)
    return directory


def test_everything_is_listed_and_counted(directory):
    lines = [line.split() for line in describe_shards(directory).splitlines()]
    assert ["class", "train", "validation", "test"] in lines
    assert [r"cat\ndog", "2", "0", "1"] in lines
    assert ["all", "4", "1", "3"] in lines
    assert ["note", "splits:", "train=a"] in lines
    assert ["notice", "2", "suffix", ".jpe"] in lines
    assert ["levels", "0:4095", "become", "0", "to", "255"] in lines
    assert ["2", "unknown", "label"] in lines
    assert ["1", "empty", "file"] in lines


def test_rejected_images_are_counted_by_reason(directory, tmp_path):
    assert list(count_reasons(directory).items()) == [("unknown label", 2), ("empty file", 1)]
    assert read_rejected_images(directory, limit=2) == tuple(REJECTED[:2])
    assert count_reasons(tmp_path) == {}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal_without_the_characters_of_a_class_shows_escapes(directory, encoding):
    code = "import sys; from service.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "shards", "info", str(directory)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert result.returncode == 0, result.stderr
    expected = r"\u65e5\u672c\u8a9e" if encoding == "ascii" else "日本語"
    (line,) = (line for line in result.stdout.decode(encoding).splitlines() if expected in line)
    assert line.split() == [expected, "2", "1", "2"]


@pytest.mark.parametrize(("classes", "more"), [(10, []), (11, ["...", "and", "1", "more", "1"])])
def test_ten_classes_are_listed_and_the_others_counted(tmp_path, classes, more):
    records = [
        shard_samples.make_record(np.zeros((2, 2), np.uint8), index, str(index)) for index in range(classes)
    ]
    names = [f"kind{index}" for index in range(classes)]
    directory = shard_samples.write_shards(tmp_path / "set", names, {"train": records})
    lines = [line.split() for line in describe_shards(directory).splitlines()]
    assert [line for line in lines if line and line[0] in (*names, "...")] == [
        *([name, "1"] for name in names[:10]),
        *([more] if more else []),
    ]
    assert ["all", str(classes)] in lines


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_described_alike(tmp_path, version):
    records = [shard_samples.make_record(np.zeros((2, 2), np.uint8), 0, str(index)) for index in range(4)]
    directory = shard_samples.write_shards(tmp_path / "set", ("a",), {"train": records}, 2, version=version)
    assert "train: 2 files, 0.0 MB" in describe_shards(directory)
