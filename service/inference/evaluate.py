"""Evaluates a saved model on a split. TensorFlow is imported after the inputs have been checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipelines.errors import ConfigError, DataError
from pipelines.sources import SourceOptions
from pipelines.storage import write_atomically
from service.inference.classes import ClassMatch, match_classes
from service.inference.datasets import (
    InferenceBatch,
    ShardDataset,
    SourceDataset,
    find_split,
    open_labelled_dataset,
    use_levels,
)
from service.inference.jobs import (
    InferenceJob,
    Throughput,
    fetch_model,
    open_model,
    run_inference,
    split_into_blocks,
)
from service.inference.options import DEFAULT_OPTIONS, PredictOptions
from service.inference.outputs import open_output
from service.scores import TOP, auc, confusion_matrix, losses, true_ranks

MAX_TABLE_CLASSES = 20  # a larger confusion matrix is unreadable as text
NAME_WIDTH = 12


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split.

    Attributes:
        classes: Class names in the order of the model's outputs; labels are indices into them.
        images: Number of images evaluated: the whole split.
        accuracy: Share of images whose most probable class is the true one.
        loss: Mean negative log likelihood of the true classes, in nats.
        top5: Share of images whose true class is among the five most probable; None below six classes.
        auc: Area under the ROC curve; None unless there are two classes and both occur.
        confusion: int64 `[K, K]`: how often an image of a class (row) was predicted as a class (column).
        throughput: Images per second, and the time until the first result.
        notes: How pixels, outputs and classes were interpreted, a line each.
    """

    classes: tuple[str, ...]
    images: int
    accuracy: float
    loss: float
    top5: float | None
    auc: float | None
    confusion: np.ndarray
    throughput: Throughput
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, float]:
        """Returns the scores that are a single number, by the name they are printed with."""
        scores = {"accuracy": self.accuracy, f"top-{TOP}": self.top5, "loss": self.loss, "AUC": self.auc}
        return {name: value for name, value in scores.items() if value is not None}

    def confusion_table(self) -> Table | None:
        """Builds the confusion matrix for the terminal; None if there are too many classes."""
        if len(self.classes) > MAX_TABLE_CLASSES:
            return None
        names = [_shorten(name) for name in self.classes]
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="")
        table.add_column("true \\ predicted", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for name, counts in zip(names, self.confusion, strict=True):
            table.add_row(name, *map(str, counts))
        return table

    def save(self, path: Path, provenance: dict[str, Any]) -> None:
        """Writes the scores and their provenance as JSON.

        Args:
            path: The file to write.
            provenance: Model, data, split and digests, as entries of the file.

        Raises:
            ConfigError: The file cannot be written.
        """
        content = provenance | {
            "images": self.images,
            "accuracy": self.accuracy,
            "top5": self.top5,
            "loss": self.loss,
            "auc": self.auc,
            "classes": self.classes,
            "confusion": self.confusion.tolist(),
        }
        try:
            write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise ConfigError(
                "an output that can be written", f"out={path}: {error.strerror}", "choose another --out"
            ) from None


def evaluate(  # noqa: PLR0913 (keyword options of a public function)
    model: str | Path,
    data: str | Path,
    split: str = "validation",
    *,
    options: PredictOptions = DEFAULT_OPTIONS,
    workers: int | None = None,
    custom_objects: Sequence[str] = (),
    out: str | Path | None = None,
    source_options: SourceOptions | None = None,
) -> Evaluation:
    """Evaluates a model on every image of a split.

    Images of a source that cannot be used are left out and counted in the notes.

    Args:
        model: Any Keras model file, or a run directory; path or URI.
        data: Shard set, path or URI, or a source with labels, such as `folder:DIR`.
        split: Name of the split, or a usual one for it, such as `val`.
        options: Pixel scale, head and test-time augmentation.
        workers: Maximum number of Ray tasks, see `service.inference.jobs.run_inference`.
        custom_objects: Modules that define the custom layers of the model, see `load_model`.
        out: JSON file to write the scores to, path or URI; an existing file is replaced.
        source_options: Splits, columns and class names that the user specified for a source.

    Raises:
        ConfigError: The file is not a usable model, or does not fit the shard set.
        DataError: The shard set cannot be used, or an image cannot be decoded.
    """
    request = partial(
        _evaluate,
        model,
        data,
        split,
        options=options,
        workers=workers,
        custom_objects=custom_objects,
        source_options=source_options,
    )
    if not out:
        return request(path=None)
    with open_output(out, ".json") as output:
        return request(path=output.path)


def _evaluate(  # noqa: PLR0913 (the options of `evaluate`)
    model: str | Path,
    data: str | Path,
    split: str,
    *,
    options: PredictOptions,
    workers: int | None,
    custom_objects: Sequence[str],
    source_options: SourceOptions | None,
    path: Path | None,
) -> Evaluation:
    """Evaluates a model, see `evaluate`, and writes the scores to a local file."""
    file = fetch_model(model)
    dataset = open_labelled_dataset(data, source_options)
    split = find_split(dataset.rows(), split)
    rows = _find_rows(dataset, split)

    from service.inference.classifier import Classifier, check_class_count, input_spec
    from service.inference.inspection import decide_image_fit, interpret_model

    saved, net = open_model(file, custom_objects)
    dataset = use_levels(dataset, saved.metadata)
    check_class_count(net, dataset.classes)
    match = match_classes(saved.classes, dataset.classes, saved.class_source)
    throughput = Throughput()
    image_fit, _ = decide_image_fit(options, saved.interpretation)
    sample = dataset.open_labelled(split, input_spec(net, image_fit), match)
    interpretation = interpret_model(net, options, saved.interpretation, sample)
    classifier = Classifier(net, options, interpretation)
    score = partial(_score_batch, match=match, skips_rejected=dataset.skips_rejected)
    job = InferenceJob(saved, options, interpretation, dataset, score)
    blocks = split_into_blocks({split: rows})
    scores: dict[int, list[BatchScores]] = {}
    with closing(run_inference(job, classifier, blocks, workers, throughput)) as results:
        scores.update(results)
    in_order = [batch for index in sorted(scores) for batch in scores[index]]
    notes = [*interpretation.notes, match.note]
    rejected = sum(batch.rejected for batch in in_order)
    if rejected:
        notes.append(f"images left out, because they cannot be used: {rejected}")
    if rejected == rows:
        raise DataError("images that can be used", f"data={data}: all {rows} rejected", "check the source")
    evaluation = replace(_summarize(in_order, match.names, throughput), notes=tuple(notes))
    if path:
        provenance = {
            "model": str(model),
            "model_sha256": saved.digest,
            "split": split,
            "tta": options.tta,
            "data": str(data),
            "data_digest": dataset.compute_digest(),
            "matching": match.note,
            **interpretation.describe(),
        }
        evaluation.save(path, provenance)
    return evaluation


def _find_rows(dataset: ShardDataset | SourceDataset, split: str) -> int:
    """Returns the number of images of a split.

    Raises:
        DataError: There is no such split, or it is empty.
    """
    rows = dataset.rows()
    if not rows.get(split):
        fix = f"choose one with --split, such as --split {next(iter(rows), split)}"
        raise DataError(f"a split named one of {', '.join(rows)}", f"data without split={split}", fix)
    return rows[split]


def _shorten(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"


@dataclass(frozen=True)
class BatchScores:
    """Result of a worker for a batch of n images.

    Attributes:
        labels: int32 `[n]`, the true classes.
        predicted: int32 `[n]`, the most probable classes.
        ranks: int64 `[n]`, number of classes ranked above the true one.
        losses: float64 `[n]`, negative log likelihoods, in nats.
        last_class: float32 `[n]`, probability of the last class, for the ROC curve.
        rejected: Number of images that were left out.
    """

    labels: np.ndarray
    predicted: np.ndarray
    ranks: np.ndarray
    losses: np.ndarray
    last_class: np.ndarray
    rejected: int = 0


def _score_batch(
    batch: InferenceBatch, probabilities: np.ndarray, match: ClassMatch, skips_rejected: bool
) -> BatchScores:
    if batch.rejected and not skips_rejected:
        raise DataError(
            "images that can be decoded",
            f"id={batch.rejected[0].id}",
            "repair or remove this image and build the shard set again",
        )
    labels = batch.labels
    classes = probabilities.shape[1]
    if not 0 <= labels.min(initial=0) <= labels.max(initial=0) < classes:
        raise DataError(
            f"labels from 0 to {classes - 1}", f"label={labels.max()}", "build the shard set again"
        )
    labels = match.map_labels(labels)
    return BatchScores(
        labels=labels,
        predicted=probabilities.argmax(axis=1).astype(np.int32),
        ranks=true_ranks(probabilities, labels),
        losses=losses(probabilities, labels),
        last_class=probabilities[:, -1],
        rejected=len(batch.rejected),
    )


def _summarize(batches: list[BatchScores], classes: tuple[str, ...], throughput: Throughput) -> Evaluation:
    """Computes the scores over all images; the batches are in the order of the split."""

    def concatenate(name: str) -> Any:
        return np.concatenate([getattr(batch, name) for batch in batches])

    labels = concatenate("labels")
    ranks = concatenate("ranks")
    has_auc = len(classes) == 2 and len(np.unique(labels)) == 2
    return Evaluation(
        classes=classes,
        images=len(labels),
        accuracy=float((ranks == 0).mean()),
        loss=float(concatenate("losses").mean()),
        top5=float((ranks < TOP).mean()) if len(classes) > TOP else None,
        auc=auc(labels, concatenate("last_class")) if has_auc else None,
        confusion=confusion_matrix(labels, concatenate("predicted"), len(classes)),
        throughput=throughput,
    )
