"""`glassbox diagnose`: findings from learning curves, and label issues in training images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import ConfigError, GlassboxError
from pipelines.shards.manifest import Manifest, load_manifest
from service.commands.common import Subparsers, add_command
from service.diagnosis.findings import History, diagnose
from service.diagnosis.histories import read_histories
from service.diagnosis.label_issues import LabelIssues
from service.runs import Run

BATCH = 64


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `diagnose` to the command line."""
    parser = add_command(
        commands, "diagnose", "describe learning curves in words, and find label issues", run
    )
    parser.add_argument(
        "target", metavar="RUN", help="a run directory, a metrics.jsonl, or a JSON file with Keras histories"
    )
    parser.add_argument(
        "--data", metavar="SHARDS", help="the shard set (default: the one the run was trained on)"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="number of validation images behind a file of metrics"
    )
    parser.add_argument(
        "--labels",
        type=int,
        default=10,
        metavar="N",
        help="number of label issues to list; 0 skips the search (default: 10)",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the findings line by line.

    Raises:
        ConfigError: The target is none of the supported kinds, or an option is invalid.
        DataError: The shard set is missing or damaged.
    """
    if options.labels < 0 or (options.images is not None and options.images < 1):
        raise ConfigError(
            "--labels from 0 and --images from 1",
            f"labels={options.labels} images={options.images}",
            "correct it, or leave it out",
        )
    path = Path(options.target)
    if path.is_dir():
        lines = _diagnose_run(Run(path), options.data, options.labels)
    else:
        lines = _diagnose_file(path, options.images)
    for line in lines:
        print(line)


def _diagnose_file(path: Path, images: int | None) -> Iterator[str]:
    for name, epochs in read_histories(path).items():
        yield from _format_findings(name, History(epochs, images))


def _diagnose_run(run: Run, shards: str | None, max_issues: int) -> Iterator[str]:
    manifest = _load_manifest(run, shards)
    yield from _format_findings(run.path.name, build_history(run, manifest))
    if not max_issues:
        return
    if manifest is None:
        yield "  Labels. Not checked: the run's shard set was not found. Name it with --data."
    elif run.model_path.is_file():
        label_issues = _find_label_issues(run, Path(shards or run.config()["shards"]), manifest, max_issues)
        yield f"  Labels. {label_issues.message}"
        yield from (f"    {issue}" for issue in label_issues.issues)
        if label_issues.advice:
            yield f"    Try: {label_issues.advice}."


def build_history(run: Run, manifest: Manifest | None) -> History:
    """Builds the history of a run, with the number of its validation images if the manifest is known."""
    counts: tuple[int, ...] = ()
    if manifest and "validation" in manifest.splits:
        counts = manifest.splits["validation"].class_counts
    total = sum(counts)
    status = run.status()
    failure = str(status.get("reason") or "") if status.get("state") == "failed" else ""
    return History(
        epochs=run.metrics(),
        images=total or None,
        majority_share=max(counts) / total if total else None,
        failure=failure,
    )


def _find_label_issues(run: Run, shards: Path, manifest: Manifest, max_issues: int) -> LabelIssues:
    from pipelines.input.batches import Batches
    from pipelines.input.reader import ShardReader
    from service.diagnosis.label_issues import MAX_IMAGES, find_label_issues, limit_batches
    from service.inference.classifier import (
        check_class_count,
        infer_pixel_scale,
        input_spec,
        load_model,
        predict,
    )

    model = load_model(run.model_path, run.custom_objects())
    check_class_count(model, manifest.classes)
    batches = Batches(shards, "train", input_spec(model), BATCH)
    with batches.data_errors():
        predictions = predict(model, limit_batches(batches.epoch(0), MAX_IMAGES), infer_pixel_scale(model))
    return find_label_issues(
        predictions.probabilities,
        predictions.labels,
        predictions.rows,
        manifest.classes,
        ShardReader(shards, "train").read_ids,
        max_issues,
    )


def _load_manifest(run: Run, shards: str | None) -> Manifest | None:
    """Loads the manifest of the run's shard set; None if it no longer exists and no other was named."""
    try:
        return load_manifest(shards or str(run.config().get("shards", "")))
    except GlassboxError:
        if shards:
            raise
        return None


def _format_findings(name: str, history: History) -> Iterator[str]:
    yield name
    for finding in diagnose(history):
        yield f"  {finding.title}. {finding.message}"
        yield f"    Try: {finding.advice}."
