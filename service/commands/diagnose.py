"""`glassbox diagnose`: findings from learning curves, and label issues in training images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipelines.errors import ConfigError, GlassboxError
from pipelines.input.mixed_manifest import MixedManifest, load_training_manifest, select_mix
from pipelines.remote.files import fetch_file, resolve_location
from pipelines.remote.uri import Location, parse_location
from pipelines.shards.manifest import Manifest, load_manifest
from pipelines.text import print_lines
from service.commands.common import Subparsers, add_command
from service.diagnosis.findings import History, diagnose
from service.diagnosis.histories import read_histories
from service.diagnosis.label_issues import LabelIssues
from service.mirror.fetch import fetch_run
from service.runs import Run

BATCH = 64
METRICS_SUFFIXES = (".json", ".jsonl")  # of objects in a store; without one, it is a run


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `diagnose` to the command line."""
    parser = add_command(
        commands, "diagnose", "describe learning curves in words, and find label issues", run
    )
    parser.add_argument(
        "target",
        metavar="RUN",
        help="a run directory, a metrics.jsonl, or a JSON file with Keras histories; path or URI",
    )
    parser.add_argument(
        "--data",
        metavar="SHARDS",
        help="the shard set, path or URI (default: the one the run was trained on)",
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
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="find label issues with K models, each trained without the images it then predicts: more "
        "reliable than the saved model, and K times the training time",
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
    path = _fetch_target(options.target, is_model_needed=options.labels > 0)
    if path.is_dir():
        lines = _diagnose_run(Run(path), options.data, options.labels, options.folds)
    else:
        lines = _diagnose_file(path, options.images)
    for line in lines:
        print_lines(line)


def _fetch_target(target: str, is_model_needed: bool) -> Path:
    """Returns a local run directory or file of metrics; of a run in a store, a copy of what is needed."""
    location = parse_location(target)
    if isinstance(location, Path):
        return location
    if location.suffix in METRICS_SUFFIXES or location.is_read_only:
        return fetch_file(location)
    parts = ["metrics", "status"]
    if is_model_needed:
        parts.append("model")
    return fetch_run(location, parts).path


def _diagnose_file(path: Path, images: int | None) -> Iterator[str]:
    for name, epochs in read_histories(path).items():
        yield from _format_findings(name, History(epochs, images))


def _diagnose_run(run: Run, shards: str | None, max_issues: int, folds: int | None) -> Iterator[str]:
    manifest, problem = _load_manifest(run, shards)
    yield from _format_findings(run.path.name, build_history(run, manifest))
    if not max_issues:
        return
    if manifest is None:
        yield f"  Labels. Not checked. {problem} Or name the shard set with --data."
    elif not run.has_model():
        yield "  Labels. Not checked: no epoch has finished, so there is no model yet."
    else:
        run.check_has_model()
        location = resolve_location(shards or run.config()["shards"])
        if folds is not None and isinstance(manifest, MixedManifest):
            raise ConfigError(
                "a run on one shard set for --folds",
                f"run={run.path} (trained on a mix of {len(manifest.mix)})",
                "name one of its sets with --data, or leave out --folds",
            )
        if folds is None:
            label_issues = _find_label_issues(run, location, manifest, max_issues)
        else:
            label_issues = _cross_validate(run, location, manifest, max_issues, folds)
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


def _find_label_issues(run: Run, shards: Location, manifest: Manifest, max_issues: int) -> LabelIssues:
    from pipelines.input.batches import Batches
    from pipelines.input.mix import open_reader
    from service.diagnosis.calibration import calibrate
    from service.diagnosis.label_issues import MAX_IMAGES, find_label_issues, limit_batches
    from service.inference.classes import match_classes
    from service.inference.classifier import Predictions, check_class_count, input_spec, predict
    from service.inference.datasets import LabelledRows
    from service.inference.inspection import decide_image_fit, interpret_model
    from service.inference.jobs import open_model
    from service.inference.options import DEFAULT_OPTIONS

    saved, model = open_model(run.path)
    check_class_count(model, manifest.classes)
    match = match_classes(saved.classes, manifest.classes, saved.class_source)
    mix = select_mix(run.config(), shards)
    image_fit, _ = decide_image_fit(DEFAULT_OPTIONS, saved.interpretation)
    data = input_spec(model, image_fit).model_copy(update={"mix": mix.mix})
    sample = LabelledRows(str(shards), "train", data, match)
    interpretation = interpret_model(model, known=saved.interpretation, images=sample)
    for note in (*interpretation.notes, match.note):
        print_lines(f"  {note}")

    def predict_split(split: str) -> Predictions:
        batches = Batches(shards, split, data, BATCH)
        with batches.data_errors():
            predictions = predict(
                model, limit_batches(batches.epoch(0), MAX_IMAGES), interpretation=interpretation
            )
        return replace(predictions, labels=match.map_labels(predictions.labels))

    calibration = None
    if "validation" in manifest.splits:
        validation = predict_split("validation")
        calibration = calibrate(validation.probabilities, validation.labels)
    read_ids = open_reader(shards, "train", data).read_ids
    return find_label_issues(predict_split("train"), match.names, read_ids, max_issues, calibration)


def _cross_validate(
    run: Run, shards: Location, manifest: Manifest, max_issues: int, folds: int
) -> LabelIssues:
    """Finds label issues with models that were trained without the images they predict."""
    from pipelines.input.reader import ShardReader
    from service.diagnosis.calibration import calibrate
    from service.diagnosis.folds import predict_with_folds
    from service.diagnosis.label_issues import find_label_issues

    predictions = predict_with_folds(run, shards, folds)
    calibration = calibrate(predictions.probabilities, predictions.labels)
    read_ids = ShardReader(shards, "train").read_ids
    return find_label_issues(
        predictions, manifest.classes, read_ids, max_issues, calibration, is_cross_validated=True
    )


def _load_manifest(run: Run, shards: str | None) -> tuple[Manifest | None, GlassboxError | None]:
    """Loads the manifest of the run's shard set.

    Returns:
        The manifest; None with the reason if no other set was named, and that of the run no longer exists, is
        damaged, or was replaced by another.
    """
    if shards:
        return load_manifest(shards), None
    path = str(run.config().get("shards", ""))
    try:
        manifest = load_training_manifest(path, select_mix(run.config(), path))
        run.check_data(path, manifest.digest())
    except GlassboxError as error:
        return None, error
    return manifest, None


def _format_findings(name: str, history: History) -> Iterator[str]:
    yield name
    for finding in diagnose(history):
        yield f"  {finding.title}. {finding.message}"
        yield f"    Try: {finding.advice}."
