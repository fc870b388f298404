"""Mistakes of users: one sentence, the right exit code, and nothing half-written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipelines import cluster
from pipelines.errors import ConfigError
from service.cli import main

ROOT = Path(__file__).resolve().parents[2]


def write_photo(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    Image.new("RGB", (40, 40), (shade, 90, 60)).save(data, "JPEG")
    path.write_bytes(data.getvalue())


def expect_refusal(capsys: pytest.CaptureFixture[str], code: int, *words: str | Path) -> str:
    """Runs a command, which must fail with this exit code and one sentence; returns the sentence."""
    assert main([str(word) for word in words]) == code
    message = capsys.readouterr().err.strip()
    assert message.startswith("glassbox: Expected")
    assert "Received:" in message
    assert "Fix:" in message
    assert "\n" not in message
    return message


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_refusal(capsys, 2, "shards", "build", f"folder:{tmp_path / 'nowhere'}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "use folder" in expect_refusal(capsys, 2, "shards", "build", "foldr:x", tmp_path / "out")
    expect_refusal(capsys, 2, "shards", "build", "photos", tmp_path / "out")


def test_wrong_option_of_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = expect_refusal(
        capsys, 2, "shards", "build", "synthetic:evidence", tmp_path / "out", "--store-size", "-4"
    )
    assert "store_size=-4" in message


def test_one_class_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photo(tmp_path / "photos" / "cats" / "1.jpg")
    expect_refusal(capsys, 3, "shards", "build", f"folder:{tmp_path / 'photos'}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.e2e
def test_no_usable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_text("not a photo")
    expect_refusal(capsys, 3, "shards", "build", f"folder:{tmp_path / 'photos'}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("dear")
    for name in ("cats", "dogs"):
        write_photo(tmp_path / "photos" / name / "1.jpg")
    expect_refusal(capsys, 2, "shards", "build", f"folder:{tmp_path / 'photos'}", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_training_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert "use demo" in expect_refusal(
        capsys, 2, "train", "--preset", "dem", "--data", tmp_path, "--out", out
    )
    assert "use epochs" in expect_refusal(
        capsys, 2, "train", "--preset", "demo", "--data", tmp_path, "--out", out, "epoch=2"
    )
    assert "epochs='two'" in expect_refusal(
        capsys, 2, "train", "--preset", "demo", "--data", tmp_path, "--out", out, "epochs=two"
    )
    assert "no manifest.json" in expect_refusal(
        capsys, 3, "train", "--preset", "demo", "--data", tmp_path, "--out", out
    )
    expect_refusal(capsys, 2, "train", "--data", tmp_path, "--out", out)
    expect_refusal(capsys, 2, "train", "--resume", "--out", out)
    expect_refusal(capsys, 2, "train", "--resume", "--preset", "demo", "--out", out)
    assert not out.exists()


def test_a_cluster_that_cannot_be_reached() -> None:
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=127\.0\.0\.1:9"):
        cluster._check_reachable("127.0.0.1:9")


@pytest.mark.parametrize("words", [["lr=3", "--loud"], ["--loud"]])
def test_unknown_options_are_usage_errors(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--preset", "demo", "--out", "x", "--data", "y", *words])
    assert stop.value.code == 2


@pytest.mark.heavy
def test_report_and_evaluate_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_refusal(capsys, 2, "report", tmp_path / "nowhere")
    expect_refusal(capsys, 2, "report")
    expect_refusal(capsys, 2, "report", "--model", tmp_path / "none.keras")
    expect_refusal(capsys, 2, "evaluate", "--model", tmp_path / "none.keras", "--data", tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "from service.cli import main; raise SystemExit(main(['presets']))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")
