"""Cross-validated predictions: every training image is predicted by a model that was trained without it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.input.reader import ShardReader
from pipelines.records import Record
from pipelines.remote.uri import Location
from pipelines.shards.formats import write_shard
from pipelines.shards.manifest import VERSION, Manifest, SplitManifest, load_manifest
from pipelines.shards.split_index import index_shard, write_split
from service.runs import Run

SHARD_ROWS = 1024
MIN_FOLDS = 2
BATCH = 64


def assign_folds(labels: NDArray[np.int32], folds: int, seed: int) -> NDArray[np.int64]:
    """Assigns images to folds at random, so that every fold has the same share of each class.

    Args:
        labels: int32 `[N]`, class indices of the images.
        folds: Number of folds.
        seed: Seed of the assignment.

    Returns:
        int64 `[N]`, numbers of folds from 0.
    """
    assignment = np.empty(len(labels), np.int64)
    random = np.random.default_rng(seed)
    start = 0
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        assignment[rows] = (np.arange(len(rows)) + start) % folds
        start += len(rows)  # so that small classes do not all fill the first folds
    return assignment


def write_subset(
    shards: Location,
    out: Path,
    selections: Mapping[str, tuple[str, NDArray[np.int64]]],
    labels: Mapping[str, NDArray[np.int32]] | None = None,
) -> Path:
    """Writes some images of a shard set as a new one.

    Args:
        shards: Path or URI of the shard set to read.
        out: Directory to create.
        selections: For every split of the new set, the split to read and the rows to take from it.
        labels: Labels of the splits to read, if they differ from those that are stored.

    Returns:
        `out`.
    """
    manifest = load_manifest(shards)
    out.mkdir(parents=True)
    splits = {}
    for name, (source, rows) in selections.items():
        reader = ShardReader(shards, source)
        source_labels = labels[source] if labels and source in labels else reader.labels
        original = manifest.get_split(source)
        shards_with_parts = []
        for start in range(0, len(rows), SHARD_ROWS):
            part = rows[start : start + SHARD_ROWS]
            records = _read_records(reader, part, source_labels)
            shard = write_shard(out, f"{name}-{start // SHARD_ROWS:05d}.{manifest.format}", records)
            shards_with_parts.append((shard, index_shard(out, shard)))
        counts = np.bincount(source_labels[rows], minlength=len(manifest.classes))
        sidecars = write_split(out, name, manifest.format, shards_with_parts)
        splits[name] = SplitManifest(
            **dict(sidecars),
            class_counts=tuple(counts.tolist()),
            mean=original.mean,
            std=original.std,
        )
    Manifest.model_validate(dict(manifest) | {"version": VERSION, "splits": splits}).save(out)
    return out


class FoldPredictions(NamedTuple):
    """Predictions for all training images, in the order of the rows.

    Attributes:
        probabilities: float32 `[N, K]`, by the model that was trained without the image.
        labels: int32 `[N]`, class indices.
        rows: int64 `[N]`, row numbers in the training split.
    """

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int32]
    rows: NDArray[np.int64]


def predict_with_folds(
    run: Run, shards: Location, folds: int, report: Callable[[str], None] = print
) -> FoldPredictions:
    """Trains one model per fold with the settings of a run, each without the fold that it then predicts.

    The models are trained in this process, one after the other, and removed afterwards. The training images
    are copied to the temporary directory of the system, once per fold.

    Args:
        run: Run whose configuration is used.
        shards: Path or URI of its shard set.
        folds: Number of models to train.
        report: Called with a line before each training.

    Raises:
        ConfigError: There are fewer than two folds, or fewer images of a class than folds.
    """
    from service.config import load_run_config
    from service.training.launch import train

    reader = ShardReader(shards, "train")
    counts = np.bincount(reader.labels)
    smallest = int(counts[counts > 0].min()) if len(counts) else 0
    if not MIN_FOLDS <= folds <= smallest:
        raise ConfigError(
            f"from {MIN_FOLDS} folds to the number of images of the smallest class, {smallest}",
            f"folds={folds}",
            "choose another number; 5 is usual",
        )
    config = load_run_config(run)
    assignment = assign_folds(reader.labels, folds, config.seed)
    probabilities = np.empty((reader.rows, len(reader.manifest.classes)), np.float32)
    with tempfile.TemporaryDirectory(prefix="glassbox-folds-") as folder:
        for fold in range(folds):
            held_out = np.flatnonzero(assignment == fold)
            remaining = np.flatnonzero(assignment != fold)
            report(f"fold {fold + 1} of {folds}: training on {len(remaining):,} images")
            selections = {"train": ("train", remaining), "validation": ("train", held_out)}
            subset = write_subset(shards, Path(folder) / f"shards-{fold}", selections)
            data = config.data.model_copy(update={"mix": None, "epoch_images": None})
            fold_config = config.model_copy(update={"shards": str(subset), "data": data})
            fold_run = train(fold_config, Path(folder) / f"run-{fold}", local=True)
            predicted, rows = _predict_split(fold_run, subset)
            probabilities[held_out[rows]] = predicted
    return FoldPredictions(probabilities, reader.labels, np.arange(reader.rows))


def _read_records(reader: ShardReader, rows: NDArray[np.int64], labels: NDArray[np.int32]) -> list[Record]:
    return [
        Record(bytes(image), int(labels[row]), image_id, tuple(shape), bbox)
        for row, image, image_id, shape, bbox in zip(
            rows.tolist(),
            reader.read_images(rows),
            reader.read_ids(rows),
            reader.read_shapes(rows).tolist(),
            reader.read_bboxes(rows),
            strict=True,
        )
    ]


def _predict_split(run: Run, shards: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Predicts the validation split; returns the probabilities and the row numbers."""
    from pipelines.input.batches import Batches
    from service.inference.classifier import input_spec, predict
    from service.inference.inspection import interpret_model
    from service.inference.jobs import open_model

    saved, model = open_model(run.path)
    interpretation = interpret_model(model, known=saved.interpretation)
    batches = Batches(shards, "validation", input_spec(model, interpretation.image_fit), BATCH)
    with batches.data_errors():
        predictions = predict(model, batches.epoch(0), interpretation=interpretation)
    return predictions.probabilities, predictions.rows
