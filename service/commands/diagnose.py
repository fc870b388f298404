"""`glassbox diagnose`: what the curves of a run show, and which labels its model doubts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, GlassboxError
from pipelines.shards.manifest import Manifest, load_manifest
from service.diagnosis.findings import History, diagnose
from service.diagnosis.label_issues import LabelIssues
from service.runs import Run

NAMES = {"acc": "accuracy", "val_acc": "val_accuracy"}  # of older Keras
KNOWN = ("loss", "accuracy", "val_loss", "val_accuracy")


def report_on(
    target: str, shards: str | None = None, images: int | None = None, shown: int = 10
) -> Iterator[str]:
    """What there is to say, line by line.

    Args:
        target: A run directory, a `metrics.jsonl`, or a JSON file with a Keras history or several of them by name.
        shards: The shard set, where it no longer lies where the run was trained.
        images: Validation images of a file that does not tell.
        shown: Doubtful labels that are named; 0 looks for none.

    Raises:
        ConfigError: It is none of these, or an option makes no sense.
        DataError: There is no shard set at `shards`, or it is damaged.
    """
    if shown < 0 or (images is not None and images < 1):
        raise ConfigError(
            "--labels from 0 and --images from 1",
            f"labels={shown} images={images}",
            "correct it, or leave it out",
        )
    path = Path(target)
    if not path.is_dir():
        for name, epochs in read_histories(path).items():
            yield from _lines(name, History(epochs, images))
        return
    run = Run(path)
    manifest = _manifest(run, shards)
    yield from _lines(path.name, history_of(run, manifest))
    if shown and manifest is None:
        yield "  Labels. Not looked at: the shard set is not where the run was trained on it. Name it with --data."
    if shown and manifest is not None and run.model_path.is_file():
        doubts = doubts_of(run, Path(shards or run.config()["shards"]), manifest, shown)
        yield f"  Labels. {doubts.words}"
        yield from (f"    {suspect}" for suspect in doubts.suspects)
        if doubts.advice:
            yield f"    Try: {doubts.advice}."


def history_of(run: Run, manifest: Manifest | None) -> History:
    """The curves of a run, and the validation images they were measured on."""
    counts = (
        manifest.splits["validation"].class_counts if manifest and "validation" in manifest.splits else ()
    )
    status, total = run.status(), sum(counts)
    failure = str(status.get("reason") or "") if status.get("state") == "failed" else ""
    return History(run.metrics(), total or None, max(counts) / total if total else None, failure)


def doubts_of(run: Run, shards: Path, manifest: Manifest, shown: int) -> LabelIssues:
    """The labels of its training images that the model of a run doubts; needs TensorFlow."""
    from pipelines.input.batches import Batches
    from pipelines.input.reader import ShardReader
    from service.diagnosis.label_issues import LOOKED_AT, find_label_issues, some
    from service.inference.classifier import check_classes, data_spec_of, load_model, predict, scale_of

    model = load_model(run.model_path)
    check_classes(model, manifest.classes)
    batches = Batches(shards, "train", data_spec_of(model), 64)
    with batches.data_errors():
        told = predict(model, some(batches.epoch(0), LOOKED_AT), scale_of(model))
    return find_label_issues(
        told.probabilities, told.labels, told.rows, manifest.classes, ShardReader(shards, "train").ids, shown
    )


def read_histories(path: Path) -> dict[str, list[dict[str, float]]]:
    """The histories in a file, by name.

    Raises:
        ConfigError: There are none.
    """
    if not path.is_file():
        fix = "name the --out of a 'glassbox train', its metrics.jsonl, or a JSON file with a Keras history"
        raise ConfigError("a run directory or a file of metrics", f"run={path} (not there)", fix)
    try:
        text = path.read_text(encoding="utf-8")
        found = (
            [json.loads(line) for line in text.splitlines() if line]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
        named = (
            {path.stem: found}
            if isinstance(found, list) or any(isinstance(v, list) for v in found.values())
            else found
        )
        histories = {str(name): _epochs_of(history) for name, history in named.items()}
    except (ValueError, TypeError, AttributeError):
        histories = {}
    if not histories:
        shape = '{"loss": [...], "accuracy": [...], "val_loss": [...], "val_accuracy": [...]}'
        raise ConfigError(
            f"metrics as lines of JSON, or a history like {shape}", f"file={path}", "export it so"
        )
    return histories


def _epochs_of(history: Any) -> list[dict[str, float]]:
    """One entry an epoch, from such a list or from lists by metric.

    Raises:
        ValueError: It is neither, or holds none of the metrics.
    """
    if isinstance(history, list):
        rows = [dict(row) for row in history]
    else:
        columns = {NAMES.get(key, key): values for key, values in history.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = [{key: float(row[key]) for key in KNOWN if row.get(key) is not None} for row in rows]
    if not any(rows):
        raise ValueError("no metrics")
    return rows


def _manifest(run: Run, shards: str | None) -> Manifest | None:
    """Of the shard set of a run; None where it is gone and nobody said where it is."""
    where = shards or str(run.config().get("shards", ""))
    try:
        return load_manifest(where)
    except GlassboxError:
        if shards:
            raise
        return None


def _lines(name: str, history: History) -> Iterator[str]:
    yield name
    for finding in diagnose(history):
        yield f"  {finding.title}. {finding.words}"
        yield f"    Try: {finding.advice}."
