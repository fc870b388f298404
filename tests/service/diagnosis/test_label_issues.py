"""Wrong labels are found: by numbers, and by a network that was trained with some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shard_samples import make_record, write_shards
from tiny_models import register_tiny_models
from training_samples import config_for, fit_run

from pipelines.errors import ConfigError, DataError
from service.cli import main
from service.diagnosis.histories import read_histories
from service.diagnosis.label_issues import find_label_issues

FLIPPED = (3, 17, 40)


def names(rows) -> list[str]:
    return [f"image-{row}" for row in rows]


def test_label_issues_in_closed_form() -> None:
    """The mean confidence is 0.7 in class 0, and 0.36 in class 1, which is raised to 0.6."""
    of_zero = np.array([0.9, 0.8, 0.4, 0.9, 0.72, 0.3], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1], np.int32)
    probabilities = np.stack([of_zero, 1 - of_zero], axis=1)
    found = find_label_issues(probabilities, labels, np.arange(6) + 100, ["zero", "one"], names)
    assert [issue.row for issue in found.issues] == [103, 104, 102]
    assert (found.count, found.images, found.accuracy) == (3, 6, 0.5)
    worst = found.issues[0]
    assert (worst.id, worst.label, worst.predicted) == ("image-103", "one", "zero")
    assert (worst.probability, worst.loss) == (pytest.approx(0.1), pytest.approx(-np.log(0.1), rel=1e-5))
    assert (
        len(
            find_label_issues(
                probabilities, labels, np.arange(6), ["zero", "one"], names, max_issues=1
            ).issues
        )
        == 1
    )


def test_an_uncertain_prediction_is_not_an_issue() -> None:
    probabilities = np.array([[0.45, 0.55], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    assert (
        find_label_issues(
            probabilities, np.array([0, 0, 1, 1], np.int32), np.arange(4), ["a", "b"], names
        ).count
        == 0
    )


@pytest.mark.parametrize(
    ("confidence", "odd", "issues"),
    [(0.55, 0.55, 0), (0.55, 0.65, 1), (0.999, 0.92, 1), (0.999, 0.88, 0), (0.7, 0.72, 1), (0.7, 0.68, 0)],
)
def test_confidence_bounds(confidence: float, odd: float, issues: int) -> None:
    """The threshold is the mean confidence within 0.6 and 0.9; one image of class 0 looks like class 1."""
    of_one = np.array([1 - confidence] * 30 + [odd] + [confidence] * 30, np.float32)
    labels = np.array([0] * 31 + [1] * 30, np.int32)
    assert (
        find_label_issues(
            np.stack([1 - of_one, of_one], axis=1), labels, np.arange(61), ["zero", "one"], names
        ).count
        == issues
    )


def test_classes_without_images_and_no_images_at_all() -> None:
    probabilities = np.array([[0.2, 0.1, 0.7], [0.9, 0.1, 0.0]], np.float32)
    assert (
        find_label_issues(
            probabilities, np.array([0, 0], np.int32), np.arange(2), ["a", "b", "c"], names
        ).count
        == 0
    )
    none = find_label_issues(
        probabilities[:0], np.zeros(0, np.int32), np.zeros(0, np.int64), ["a", "b", "c"], names
    )
    assert (none.count, none.issues) == (0, ())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained on dark and bright noise, three of whose sixty labels are wrong."""
    folder = tmp_path_factory.mktemp("label_issues")
    draw = np.random.default_rng(0)

    def noise(split: str, row: int) -> object:
        low = 60 + 100 * (row % 2)
        label = row % 2
        wrong = split == "train" and row in FLIPPED
        return make_record(
            draw.integers(low, low + 12, (12, 12, 3)).astype(np.uint8),
            1 - label if wrong else label,
            f"{split}/{row}.png",
        )

    splits = {
        split: [noise(split, row) for row in range(rows)]
        for split, rows in (("train", 60), ("validation", 10))
    }
    shards = write_shards(folder / "shards", ("dark", "bright"), splits)
    config = config_for(
        shards, model="tiny_normalized", epochs=60, evaluate_every=60, global_batch=12, augment=None
    )
    with register_tiny_models():
        return fit_run(folder / "run", config).path


def test_a_trained_network_reveals_the_wrong_labels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run)]) == 0
    output = capsys.readouterr().out
    found = [line.split()[1] for line in output.splitlines() if line.strip().startswith("row ")]
    assert sorted(found, key=int) == [str(row) for row in FLIPPED]
    assert "train/17.png" in output
    assert "3 label issues" in output
    assert "60 training images" in output


def test_the_command_without_labels_or_shard_set(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(run), "--labels", "0"]) == 0
    assert "label issue" not in capsys.readouterr().out
    assert main(["diagnose", str(run / "metrics.jsonl"), "--images", "10"]) == 0
    assert capsys.readouterr().out.startswith("metrics\n")
    bare = tmp_path / "moved"
    bare.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "model.keras"):
        (bare / name).write_bytes((run / name).read_bytes())
    (bare / "config.yaml").write_text((run / "config.yaml").read_text().replace("/shards", "/gone"))
    assert main(["diagnose", str(bare)]) == 0
    output = capsys.readouterr().out
    assert "Labels. Not checked" in output
    assert "label issue" not in output
    assert main(["diagnose", str(bare), "--data", str(tmp_path)]) == DataError.exit_code


@pytest.mark.parametrize("words", [["--labels", "-1"], ["--images", "0"]])
def test_invalid_options(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(tmp_path), *words]) == 2
    assert "--labels from 0 and --images from 1" in capsys.readouterr().err


def test_keras_histories(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"acc": [0.5, 0.6], "loss": [0.7, None], "val_acc": [0.4, 0.5], "lr": [1, 2]}))
    assert read_histories(path) == {
        "history": [
            {"accuracy": 0.5, "loss": 0.7, "val_accuracy": 0.4},
            {"accuracy": 0.6, "val_accuracy": 0.5},
        ]
    }


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{}", '{"loss": 3}', '{"loss": [1], "acc": []}', '{"a": {"b": [1]}}', '"x"']
)
def test_files_without_a_history(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="history like"):
        read_histories(path)
