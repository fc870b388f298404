"""Wrong labels are found: by numbers, and by a network that was trained with some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from shard_samples import make_record, write_shards
from tiny_models import register_tiny_models
from training_samples import config_for, fit_run

from pipelines.errors import ConfigError, DataError
from service.cli import main
from service.diagnosis.calibration import calibrate
from service.diagnosis.histories import read_histories
from service.diagnosis.label_issues import find_label_issues

FLIPPED = (3, 17, 40)


def names(rows) -> list[str]:
    return [f"image-{row}" for row in rows]


class Scores(NamedTuple):
    """Predictions of row numbers from `first` on."""

    probabilities: np.ndarray
    labels: np.ndarray
    rows: np.ndarray


def make_scores(probabilities: np.ndarray, labels: Sequence[int], first: int = 0) -> Scores:
    return Scores(probabilities, np.array(labels, np.int32), np.arange(len(labels)) + first)


def test_label_issues_in_closed_form() -> None:
    """The mean confidence is 0.7 in class 0, and 0.36 in class 1, which is raised to 0.6.

    Five more confident images of each class make the model good enough: 14 of 16 are predicted as labelled.
    """
    of_zero = np.array([0.9, 0.8, 0.4, 0.9, 0.72, 0.3] + [0.7] * 5 + [0.4] * 5, np.float32)
    scores = make_scores(
        np.stack([of_zero, 1 - of_zero], axis=1), [0, 0, 0, 1, 1, 1] + [0] * 5 + [1] * 5, 100
    )
    result = find_label_issues(scores, ["zero", "one"], names)
    assert [issue.row for issue in result.issues] == [103, 104, 102]
    assert (result.count, result.images, result.accuracy, result.skill) == (3, 16, 13 / 16, 5 / 8)
    worst = result.issues[0]
    assert (worst.id, worst.label, worst.predicted) == ("image-103", "one", "zero")
    assert (worst.probability, worst.loss) == (pytest.approx(0.1), pytest.approx(-np.log(0.1), rel=1e-5))
    assert len(find_label_issues(scores, ["zero", "one"], names, max_issues=1).issues) == 1


def test_an_uncertain_prediction_is_not_an_issue() -> None:
    probabilities = np.array([[0.45, 0.55], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    assert find_label_issues(make_scores(probabilities, [0, 0, 1, 1]), ["a", "b"], names).count == 0


@pytest.mark.parametrize(
    ("confidence", "odd", "issues"),
    [(0.55, 0.55, 0), (0.55, 0.65, 1), (0.999, 0.92, 1), (0.999, 0.88, 0), (0.7, 0.72, 1), (0.7, 0.68, 0)],
)
def test_confidence_bounds(confidence: float, odd: float, issues: int) -> None:
    """The threshold is the mean confidence within 0.6 and 0.9; one image of class 0 looks like class 1."""
    of_one = np.array([1 - confidence] * 30 + [odd] + [confidence] * 30, np.float32)
    scores = make_scores(np.stack([1 - of_one, of_one], axis=1), [0] * 31 + [1] * 30)
    assert find_label_issues(scores, ["zero", "one"], names).count == issues


def test_classes_without_images_and_no_images_at_all() -> None:
    probabilities = np.array([[0.7, 0.1, 0.2], [0.1, 0.9, 0.0], [0.9, 0.1, 0.0]], np.float32)
    classes = ["a", "b", "c"]
    assert find_label_issues(make_scores(probabilities, [0, 1, 0]), classes, names).count == 0
    empty = find_label_issues(make_scores(probabilities[:0], []), classes, names)
    assert (empty.count, empty.issues, empty.advice) == (0, (), "")
    assert calibrate(probabilities, np.array([0, 1, 0], np.int32)) is None


def simulate(
    sharpness: float, noise_rate: float, temperature: float = 1.0, classes: int = 4, images: int = 6000
) -> tuple[Scores, np.ndarray]:
    """Simulates a model with known calibration, and labels of which a known share is wrong.

    The true class follows the softmax of random logits of standard deviation `sharpness`; the model predicts
    the softmax of these logits times `temperature`. Returns the predictions, and which labels are wrong.
    """
    random = np.random.default_rng(3)
    logits = random.normal(0, sharpness, (images, classes))
    truth = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)  # a sample of the softmax
    is_wrong = random.random(images) < noise_rate
    labels = np.where(is_wrong, (truth + random.integers(1, classes, images)) % classes, truth)
    exponentials = np.exp(logits * temperature - (logits * temperature).max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return make_scores(probabilities, labels.tolist()), is_wrong


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("noise_rate", [0.0, 0.05, 0.2])
def test_temperature_and_noise_are_told_apart(temperature: float, noise_rate: float) -> None:
    scores, _ = simulate(8.0, noise_rate, temperature)
    calibration = calibrate(scores.probabilities, scores.labels)
    assert calibration is not None
    assert calibration.temperature == pytest.approx(temperature, rel=0.25)
    assert calibration.noise_rate == pytest.approx(noise_rate, abs=0.015)


@pytest.mark.parametrize("noise_rate", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("sharpness", [1.5, 3.0, 8.0, 20.0])
def test_the_expected_precision_is_that_of_the_list(sharpness: float, noise_rate: float) -> None:
    """From models that are right in half of all cases to nearly perfect ones."""
    scores, is_wrong = simulate(sharpness, noise_rate)
    calibration = calibrate(scores.probabilities, scores.labels)
    result = find_label_issues(scores, ["a", "b", "c", "d"], names, 10_000, calibration)
    if not result.count:
        return
    rows = [issue.row for issue in result.issues]
    assert result.expected_precision == pytest.approx(is_wrong[rows].mean(), abs=0.15)
    assert result.unseen_skill is not None
    assert result.are_likely_wrong == (result.expected_precision >= 0.5 and result.unseen_skill >= 0.6)
    assert bool(result.advice) == result.are_likely_wrong


def test_most_contradictions_of_a_weak_model_are_hard_examples() -> None:
    scores, is_wrong = simulate(3.0, 0.01)
    calibration = calibrate(scores.probabilities, scores.labels)
    result = find_label_issues(scores, ["a", "b", "c", "d"], names, 10_000, calibration)
    assert is_wrong[[issue.row for issue in result.issues]].mean() < 0.3
    assert (result.title, result.advice) == ("Hard examples", "")
    assert "Most of their labels are probably right" in result.message


def test_a_model_that_is_confidently_wrong_on_unseen_images_gives_no_advice() -> None:
    """Its mistakes look like wrong labels: a quarter of all images, and as confident as the rest."""
    random = np.random.default_rng(5)
    labels = np.arange(2000) % 2
    predicted = np.where(random.random(2000) < 0.74, labels, 1 - labels)
    confidence = random.uniform(0.7, 0.98, 2000)
    of_one = np.where(predicted == 1, confidence, 1 - confidence).astype(np.float32)
    scores = make_scores(np.stack([1 - of_one, of_one], axis=1), labels.tolist())
    calibration = calibrate(scores.probabilities, scores.labels)
    assert calibration is not None
    assert calibration.skill == pytest.approx(0.48, abs=0.04)
    result = find_label_issues(scores, ["a", "b"], names, 10_000, calibration)
    assert result.expected_precision is not None
    assert result.expected_precision > 0.5  # none of the labels is wrong
    assert (result.title, result.advice) == ("Hard examples", "")
    assert "cannot be told" in result.message


def test_without_calibration_nothing_is_advised() -> None:
    scores, _ = simulate(8.0, 0.05)
    result = find_label_issues(scores, ["a", "b", "c", "d"], names)
    assert result.count > 0
    assert (result.expected_precision, result.title, result.advice) == (None, "Hard examples", "")
    assert "at least 100 validation images, or --folds" in result.message


@pytest.mark.parametrize(("accuracy", "count"), [(0.599, 0), (0.62, 0), (0.7, 300)])
def test_a_model_near_chance_lists_nothing(accuracy: float, count: int) -> None:
    """1,000 images in two classes: the model is certain, and right as often as stated."""
    right = round(1000 * accuracy)
    labels = np.arange(1000) % 2
    predicted = np.where(np.arange(1000) < right, labels, 1 - labels)
    result = find_label_issues(make_scores(np.eye(2, dtype=np.float32)[predicted], labels), ["a", "b"], names)
    assert result.count == count
    assert ("not clearly better" in result.message) == (count == 0)


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
        for split, rows in (("train", 60), ("validation", 100))
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


def test_cross_validated_models_reveal_the_wrong_labels(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with register_tiny_models():
        assert main(["diagnose", str(run), "--folds", "2"]) == 0
    output = capsys.readouterr().out
    listed = {line.split()[1] for line in output.splitlines() if line.strip().startswith("row ")}
    # Each model has learned from 30 images: how many it finds depends on the processor.
    found = listed & {str(row) for row in FLIPPED}
    assert found
    assert 2 * len(found) >= len(listed)
    assert "Models that were trained without these images predict" in output
    assert main(["diagnose", str(run), "--folds", "1"]) == ConfigError.exit_code


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
