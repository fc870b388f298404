"""Scoring a saved model on a split: `glassbox evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ConfigError, DataError
from pipelines.shards.manifest import load_manifest
from pipelines.storage import write_atomically
from service.inference.classifier import DEFAULT_OPTIONS, Classifier, PredictOptions, check_classes
from service.inference.datasets import InferenceBatch, ShardDataset
from service.inference.jobs import InferenceJob, Throughput, answers, blocks_of, open_model
from service.inference.tables import check_output
from service.scores import TOP, auc, confusion_matrix, losses, true_ranks

TABLE_CLASSES = 20  # beyond them a confusion matrix is no longer readable
NAME_WIDTH = 12


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split.

    Attributes:
        classes: Class names.
        images: How many images were asked about: all of the split.
        accuracy: Share of images whose most probable class is the true one.
        loss: Mean negative log likelihood of the true classes, in nats.
        top5: Share of images whose true class is among the five most probable; None below six classes.
        auc: Area under the ROC curve; None but for two classes that both occur.
        confusion: int64 `[K, K]`: how often an image of a class (row) was taken for a class (column).
        pace: How fast it went.
    """

    classes: tuple[str, ...]
    images: int
    accuracy: float
    loss: float
    top5: float | None
    auc: float | None
    confusion: np.ndarray
    pace: Throughput

    def figures(self) -> dict[str, float]:
        """The scores that are one number each."""
        named = {"accuracy": self.accuracy, f"top-{TOP}": self.top5, "loss": self.loss, "AUC": self.auc}
        return {name: value for name, value in named.items() if value is not None}

    def table(self) -> str:
        """The confusion matrix as text; empty where there are too many classes to read it."""
        if len(self.classes) > TABLE_CLASSES:
            return ""
        names = [name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…" for name in self.classes]
        lines = [
            ["true \\ taken for", *names],
            *([name, *map(str, row)] for name, row in zip(names, self.confusion, strict=True)),
        ]
        first, *others = zip(*lines, strict=True)
        columns = [_aligned(first, str.ljust), *(_aligned(column, str.rjust) for column in others)]
        return "\n".join("  ".join(cells) for cells in zip(*columns, strict=True))

    def save(self, path: Path, asked: dict[str, str]) -> None:
        """Writes the scores, and what was asked of whom, as JSON.

        Raises:
            ConfigError: The file cannot be written.
        """
        scores = {"accuracy": self.accuracy, "top5": self.top5, "loss": self.loss, "auc": self.auc}
        content = asked | {
            "images": self.images,
            **scores,
            "classes": self.classes,
            "confusion": self.confusion.tolist(),
        }
        try:
            write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise ConfigError(
                "an output that can be written", f"out={path}: {error.strerror}", "choose another --out"
            ) from None


def evaluate(
    model: str | Path,
    shards: str | Path,
    split: str,
    *,
    asking: PredictOptions = DEFAULT_OPTIONS,
    workers: int | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Asks a model about every image of a split.

    Args:
        model: A file made anywhere, or a run directory.
        shards: The shard set.
        split: Which split.
        asking: How the model is asked.
        workers: See `service.inference.jobs.answers`.
        out: JSON file to write the scores to; an older one is replaced.

    Raises:
        ConfigError: The file is no usable model, or does not fit the shard set.
        DataError: The shard set cannot be used, or an image cannot be decoded.
    """
    path = check_output(out, ".json") if out else None
    saved, net = open_model(model)
    manifest = load_manifest(shards)
    rows = manifest.split(split).rows
    check_classes(net, manifest.classes)
    _check_names(manifest.classes, saved.classes)
    question, pace = (
        InferenceJob(saved, asking, ShardDataset(str(Path(shards).absolute())), _taken),
        Throughput(),
    )
    blocks = blocks_of({split: rows})
    parts: dict[int, list[Any]] = {}
    with closing(answers(question, Classifier(net, asking), blocks, workers, pace)) as results:
        parts.update(results)
    columns = [
        np.concatenate(column)
        for column in zip(*(part for place in sorted(parts) for part in parts[place]), strict=True)
    ]
    result = _scored(columns, manifest.classes, pace)
    if path:
        asked = {
            "model": str(model),
            "model_sha256": sha256(saved.content).hexdigest(),
            "split": split,
            "tta": asking.tta,
        }
        result.save(path, asked | {"data": str(shards), "data_digest": manifest.digest()})
    return result


def _aligned(cells: tuple[str, ...], align: Callable[[str, int], str]) -> list[str]:
    return [align(cell, max(map(len, cells))) for cell in cells]


def _check_names(classes: tuple[str, ...], known: tuple[str, ...] | None) -> None:
    for label, (name, own) in enumerate(zip(classes, known or classes, strict=True)):
        if name != own:
            fix = "pass --data with a shard set of the classes it was trained on"
            raise ConfigError(
                f"class {label} to be {own!r}, as where the run was trained", f"class={name!r}", fix
            )


def _taken(fed: InferenceBatch, probabilities: np.ndarray) -> tuple[np.ndarray, ...]:
    """What a worker sends back of a batch: label, most probable class, rank of the true one, loss and probability of the last class."""
    if fed.rejected:
        fix = "repair or remove this image and build the shard set again"
        raise DataError("images that can be decoded", f"id={fed.rejected[0].id}", fix)
    classes = probabilities.shape[1]
    if not 0 <= fed.labels.min() <= fed.labels.max() < classes:
        raise DataError(
            f"labels from 0 to {classes - 1}", f"label={fed.labels.max()}", "build the shard set again"
        )
    predicted = probabilities.argmax(axis=1).astype(np.int32)
    return (
        fed.labels,
        predicted,
        true_ranks(probabilities, fed.labels),
        losses(probabilities, fed.labels),
        probabilities[:, -1],
    )


def _scored(columns: Sequence[np.ndarray], classes: tuple[str, ...], pace: Throughput) -> Evaluation:
    """Scores of all images together, from what `_taken` kept of each, in the order of the split."""
    labels, predicted, ranks, loss, last = columns
    return Evaluation(
        classes=classes,
        images=len(labels),
        accuracy=float((ranks == 0).mean()),
        loss=float(loss.mean()),
        top5=float((ranks < TOP).mean()) if len(classes) > TOP else None,
        auc=auc(labels, last) if len(classes) == 2 and len(np.unique(labels)) == 2 else None,
        confusion=confusion_matrix(labels, predicted, len(classes)),
        pace=pace,
    )
