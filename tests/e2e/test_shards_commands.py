"""`glassbox shards build`, `verify` and `info` as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shard_samples import make_record, write_shards

from pipelines.shards.manifest import load_manifest
from service.cli import main
from service.commands.shards import BuildClock

SOURCE = "synthetic:evidence,train=70,validation=30,size=32"


def glassbox(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Runs a command; returns its exit code, output and error output."""
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


@pytest.mark.e2e
def test_build_verify_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None) -> None:
    options = [
        "--format",
        "tfrecord",
        "--encoding",
        "png",
        "--store-size",
        "40",
        "--shard-rows",
        "32",
        "--workers",
        "2",
    ]
    code, output, _ = glassbox(capsys, "shards", "build", SOURCE, tmp_path / "set", *options)
    assert code == 0
    taken, speed = output.splitlines()
    assert taken == "100 images stored, 0 rejected"
    assert re.fullmatch(
        r"0\.\d MB in \d+\.\d s: \d+ images/s, \d+\.\d MB/s \(plus \d+\.\d s to start Ray\)", speed
    )
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert (manifest["format"], manifest["encoding"], manifest["store_size"]) == ("tfrecord", "png", 40)
    train = manifest["splits"]["train"]
    assert (train["rows"], train["shard_count"]) == (70, 3)

    code, output, _ = glassbox(capsys, "shards", "verify", tmp_path / "set")
    assert (code, output) == (0, "verified: 100 images in 4 shards, every checksum, count and image\n")
    code, output, _ = glassbox(capsys, "shards", "info", tmp_path / "set")
    assert code == 0
    assert "images       png, scaled down to a shorter side of 40 pixels, in tfrecord files" in output

    bad = tmp_path / "set" / train["file_pattern"].format(number=1)
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    code, output, error = glassbox(capsys, "shards", "verify", tmp_path / "set")
    assert code == 3
    assert len(output.splitlines()) == 1
    assert bad.name in output
    assert "row" in output
    assert "Expected an undamaged shard set. Received: data=" in error
    assert "damaged files=1" in error


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--shard-mb", "1", "--shard-rows", "256"), "shard_mb=1.0 shard_rows=256"),
        (("--check", "header", "--encoding", "png"), "check=header encoding=png"),
        (("--check", "header", "--store-size", "64"), "store_size=64"),
        (("--workers", "0"), "workers=0"),
        (("--format", "parquet"), "format='parquet'"),
        (("--encoding", "jpeg:101"), "encoding='jpeg:101'"),
        (("--shard-mb", "0"), "shard_mb=0.0"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], word: str
) -> None:
    code, _, error = glassbox(capsys, "shards", "build", SOURCE, tmp_path / "set", *options)
    assert code == 2
    assert word in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_verifying_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert glassbox(capsys, "shards", "verify", tmp_path)[0] == 3


def test_speed_counts_neither_the_start_nor_what_was_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pixels = np.zeros((2, 2), np.uint8)
    records = [make_record(pixels, row % 2, str(row)) for row in range(8)]
    manifest = load_manifest(write_shards(tmp_path / "set", "ab", {"train": records}))
    times = iter([0.0, 7.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = BuildClock(lambda done, total: None)
    clock(6, 12)
    clock(12, 12)
    output = clock.summarize(manifest, "set")
    assert "in 2.0 s: 2 images/s" in output
    assert "(plus 7.0 s to start Ray, after 6 candidates of an interrupted build)" in output


@pytest.mark.slow
@pytest.mark.e2e
def test_workers_import_what_the_command_did_wherever_it_is_run(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__init__.py").write_text("raise SystemError('the code of a stranger')")
    glassbox = str(Path(sys.executable).with_name("glassbox"))
    source = "synthetic:evidence,train=8,validation=4,size=32"
    command = [glassbox, "shards", "build", source, "set"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "set/manifest.json").is_file()
