"""Measures which labels are flagged after some were flipped on purpose, by models of several accuracies.

`python tests/benchmarks/label_issues.py --digits SHARDS --photos SHARDS --out DIR`; takes half an hour on one
core. Finished runs in DIR are used again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pipelines.input.batches import Batches
from pipelines.input.reader import ShardReader
from service.config import load_config
from service.diagnosis.calibration import calibrate
from service.diagnosis.folds import FoldPredictions, predict_with_folds, write_subset
from service.diagnosis.label_issues import find_label_issues
from service.inference.classifier import input_spec, predict
from service.inference.inspection import interpret_model
from service.inference.jobs import open_model
from service.runs import Run
from service.training.launch import train

IMAGES = {"digits": (6000, 2000), "photos": (2000, 1000)}  # of train and validation
NOISE_RATES = (0.05, 0.0)
FOLDS = 5
# Data, preset, settings, and whether to cross-validate as well
CONFIGURATIONS = (
    ("digits", "mnist_mlp", ["epochs=1", "optimizer.learning_rate=0.002"], False),
    ("digits", "mnist_mlp", ["epochs=3"], False),
    ("digits", "mnist_mlp", ["epochs=15"], False),
    ("digits", "mnist_cnn", ["epochs=1"], False),
    ("digits", "mnist_cnn", ["epochs=5"], True),
    ("digits", "mnist_cnn", ["epochs=20"], False),
    ("photos", "cats_dogs_small", ["data.image_size=64", "epochs=12"], False),
    ("photos", "demo", ["epochs=3"], False),
    ("photos", "demo", ["epochs=30", "augment.flip=true", "augment.rotation=15", "augment.zoom=0.15"], True),
)


def flip_labels(shards: Path, out: Path, images: tuple[int, int], share: float) -> np.ndarray:
    """Copies a shard set with a share of the labels of both splits replaced by another class.

    Returns:
        bool `[N]`, the training images with a wrong label.
    """
    random = np.random.default_rng(7)
    labels = {}
    selections = {}
    is_wrong = {}
    for split, count in zip(("train", "validation"), images, strict=True):
        reader = ShardReader(shards, split)
        rows = np.arange(min(count, reader.rows))
        flipped = random.permutation(rows)[: round(share * len(rows))]
        classes = len(reader.manifest.classes)
        labels[split] = reader.labels.copy()
        labels[split][flipped] = (
            labels[split][flipped] + random.integers(1, classes, len(flipped))
        ) % classes
        selections[split] = (split, rows)
        is_wrong[split] = np.isin(rows, flipped)
    if not out.exists():
        write_subset(shards, out, selections, labels)
    return is_wrong["train"]


def predict_split(run: Run, shards: Path, split: str) -> FoldPredictions:
    """Predicts one split with the saved model of a run, in the order of the rows."""
    saved, model = open_model(run.path)
    batches = Batches(shards, split, input_spec(model), 64)
    interpretation = interpret_model(model, known=saved.interpretation)
    predictions = predict(model, batches.epoch(0), interpretation=interpretation)
    order = np.argsort(predictions.rows)
    return FoldPredictions(
        predictions.probabilities[order], predictions.labels[order], predictions.rows[order]
    )


def format_row(
    title: str, predictions: FoldPredictions, validation: FoldPredictions | None, is_wrong: np.ndarray
) -> str:
    """Formats one row of the table; without validation predictions, those themselves are out of sample."""
    unseen = validation or predictions
    classes = [str(label) for label in range(predictions.probabilities.shape[1])]
    calibration = calibrate(unseen.probabilities, unseen.labels)
    issues = find_label_issues(predictions, classes, lambda rows: [""] * len(rows), 10_000, calibration)
    rows = [issue.row for issue in issues.issues]
    precision = f"{is_wrong[rows].mean():.2f}" if rows else ""
    expected = "" if issues.expected_precision is None else f"{issues.expected_precision:.2f}"
    recall = f"{is_wrong[rows].sum() / is_wrong.sum():.2f}" if is_wrong.any() else ""
    accuracies = f"{issues.accuracy:.1%} | {(unseen.probabilities.argmax(1) == unseen.labels).mean():.1%}"
    return f"| {title} | {accuracies} | {len(rows)} | {precision} | {recall} | {expected} | {issues.title} |"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, required=True, metavar="SHARDS", help="shard set of MNIST")
    parser.add_argument("--photos", type=Path, required=True, metavar="SHARDS", help="shard set of photos")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the runs")
    options = parser.parse_args(arguments)
    print("| model | train | unseen | listed | precision | recall | expected precision | called |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for number, (data, preset, settings, has_folds) in enumerate(CONFIGURATIONS):
        for noise_rate in NOISE_RATES:
            shards = options.out / f"{data}-{noise_rate}"
            is_wrong = flip_labels(getattr(options, data), shards, IMAGES[data], noise_rate)
            run = Run(options.out / f"run-{number}-{noise_rate}")
            if not run.model_path.is_file():
                train(load_config(preset, str(shards), settings), run.path, local=True)
            title = f"{data}, `{preset}` {' '.join(settings)}, {noise_rate:.0%} flipped"
            validation = predict_split(run, shards, "validation")
            print(format_row(title, predict_split(run, shards, "train"), validation, is_wrong), flush=True)
            if has_folds:
                folds = predict_with_folds(run, shards, FOLDS)
                print(format_row(f"{title}, {FOLDS} folds", folds, None, is_wrong), flush=True)


if __name__ == "__main__":
    main()
