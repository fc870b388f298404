"""The comparison page: several runs or models on the same images, or the checkpoints of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.errors import ConfigError
from pipelines.remote.uri import Location
from pipelines.storage import write_atomically
from service.devices import configure_devices
from service.diagnosis.curves import column
from service.inference.classes import list_names
from service.inference.classifier import Predictions
from service.report.analysis.agreement import align_classes
from service.report.analysis.paired_maps import compute_model_maps
from service.report.analysis.run_facts import RunFacts
from service.report.drawing.album import Album
from service.report.drawing.plots import Line, Plot
from service.report.options import PageOptions, ReportOptions
from service.report.pages import page
from service.report.pages.scripts import embed_pictures, load_scripts
from service.report.pages.summary import Summary, summarize
from service.report.publish import PAGE, VERSION, publish, write_page_manifest
from service.report.reported import find_shards
from service.report.sections.agreement import ComparedModel
from service.report.sections.agreement import build_section as build_agreement
from service.report.sections.compare import ROLES, ComparedRun, build_comparison
from service.report.sections.section import Section
from service.report.subject import Subject, open_model, open_run, read_manifest
from service.runs import MODEL, Run

KIND = "glassbox comparison"


def render_comparison(
    runs: Sequence[Run],
    out: Location,
    shards: Location | None = None,
    options: ReportOptions | None = None,
    page_options: PageOptions | None = None,
    models: Sequence[Path] = (),
    custom_objects: Sequence[str] = (),
) -> Location:
    """Renders a page that shows runs and models side by side, completely or not at all.

    Every other one is compared with the first: which images they disagree on, whether the difference may be
    chance, their confidence and their heatmaps. If all are runs, their checkpoints are shown too.

    Args:
        runs: Runs with saved models and checkpoints, on one shard set.
        out: Directory for the page, or its URI; a comparison in it is replaced.
        shards: Path or URI of the shard set, if it is no longer where the runs were trained; required with
            models.
        options: Content of the page.
        page_options: Format of the page.
        models: Model files made anywhere.
        custom_objects: Modules that define the custom layers of the models.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: A run or model cannot be shown, they do not fit together, or `out` holds something else
            or cannot be written.
        DataError: The shard set is damaged.
    """
    options = options or ReportOptions()
    page_options = page_options or PageOptions()
    _check_different([*(run.path for run in runs), *models])
    configure_devices()
    subjects = _open_subjects(runs, models, shards, options, custom_objects)
    check_same_classes(subjects)
    _check_same_images(subjects)
    names = distinguish_names([*(run.path.name for run in runs), *map(_name_model, models)])
    results = [
        (replace(subject.facts, name=name), summarize(subject))
        for subject, name in zip(subjects, names, strict=True)
    ]
    with publish(out, KIND) as directory:
        album = Album(directory)
        agreements = [
            _compare_pair(album, subjects[0], other, (names[0], name), options.seed)
            for other, name in zip(subjects[1:], names[1:], strict=True)
        ]
        timeline = (
            None if models else _build_timeline(album, runs, subjects, names, count=options.checkpoints)
        )
        html = page.render(
            "comparison.html",
            load_scripts(),
            results=results,
            agreements=agreements,
            timeline=timeline,
            plots=plot_metrics([(name, one.epochs) for name, one in zip(names, subjects, strict=True)]),
            single_file=page_options.single_file,
        )
        entries = [album.entries[file] for file in sorted(album.entries)]
        if page_options.single_file:
            html = embed_pictures(html, directory)
        write_atomically(directory / PAGE, html)
        write_page_manifest(directory, _manifest(results, agreements, timeline, entries))
    return out / PAGE


def _name_model(path: Path) -> str:
    """Returns the name of a model on the page: that of its file, or of its run, where all have one name."""
    return path.parent.name if path.name == MODEL else path.stem


def distinguish_names(names: Sequence[str]) -> list[str]:
    """Returns names that differ: of equal ones, the second gets a 2, the third a 3."""
    counts: dict[str, int] = {}
    distinguished = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        distinguished.append(name if counts[name] == 1 else f"{name} {counts[name]}")
    return distinguished


def _check_different(paths: Sequence[Path]) -> None:
    if len({path.resolve() for path in paths}) < len(paths):
        names = " ".join(path.name for path in paths)
        raise ConfigError("different runs or models", f"compared={names}", "name each of them once")


def _open_subjects(
    runs: Sequence[Run],
    models: Sequence[Path],
    shards: Location | None,
    options: ReportOptions,
    custom_objects: Sequence[str],
) -> list[Subject]:
    """Opens the runs, then the models."""
    subjects = []
    for run in runs:
        shards_of_run = find_shards(run, shards)
        manifest = read_manifest(shards_of_run, run)
        if shards is None:
            run.check_data(str(shards_of_run), manifest.digest())
        subjects.append(open_run(run, shards_of_run, manifest, options))
    if not models:
        return subjects
    if shards is None:
        raise ConfigError("a shard set to compare models on", "data=None", "name it with --data")
    manifest = read_manifest(shards)
    return [*subjects, *(open_model(path, shards, manifest, options, custom_objects) for path in models)]


def _build_timeline(
    album: Album, runs: Sequence[Run], subjects: Sequence[Subject], names: Sequence[str], count: int
) -> Section:
    """Builds the checkpoints of all runs; the weights of their models are replaced."""
    compared = [
        ComparedRun(run, name, subject.model, subject.provenance)
        for run, name, subject in zip(runs, names, subjects, strict=True)
    ]
    return build_comparison(album, compared, subjects[0].evaluation, subjects[0].classes, count)


def _compare_pair(
    album: Album, first: Subject, second: Subject, names: tuple[str, str], seed: int
) -> Section:
    """Builds the section of two models; the classes of the second are put in the order of the first."""
    return build_agreement(
        album,
        _describe_model(first, names[0], first.classes),
        _describe_model(second, names[1], first.classes),
        first.classes,
        first.read_picture,
        first.evaluation.split,
        seed,
    )


def _describe_model(subject: Subject, name: str, classes: tuple[str, ...]) -> ComparedModel:
    """Returns a model whose predictions and labels are in a common order of the classes."""
    order = np.asarray([classes.index(own) for own in subject.classes], np.int32)
    predictions = Predictions(
        align_classes(subject.predictions.probabilities, subject.classes, classes),
        order[subject.predictions.labels],
        subject.predictions.rows,
    )
    compute_maps = partial(compute_model_maps, subject.network, subject.evaluation)
    return ComparedModel(name, predictions, compute_maps, subject.provenance)


def plot_metrics(runs: Sequence[tuple[str, Sequence[dict[str, float]]]]) -> list[Plot]:
    """Plots accuracy and loss of every run over the epochs; of training unless all runs have validation.

    Args:
        runs: Name and metrics per epoch of each run; empty for models without a run, which have no line.
    """
    runs = [(name, epochs) for name, epochs in runs if epochs]
    if not runs:
        return []
    longest = max(len(epochs) for _, epochs in runs)
    has_validation = all(column(epochs, "val_accuracy") for _, epochs in runs)
    prefix = "val_" if has_validation else ""
    kind = "Validation" if has_validation else "Training"
    plots = []
    for metric in ("accuracy", "loss"):
        lines = []
        for (name, epochs), role in zip(runs, ROLES * len(runs), strict=False):
            values = column(epochs, prefix + metric)
            missing = [np.nan] * (longest - len(values))
            lines.append(Line(name, [*values, *missing], role))
        numbers = list(range(1, longest + 1))
        plots.append(Plot(f"{kind} {metric}", "epoch", numbers, tuple(lines), percent=metric == "accuracy"))
    return [plot for plot in plots if not plot.is_empty]


def _manifest(
    results: Sequence[tuple[RunFacts, Summary]],
    agreements: Sequence[Section],
    timeline: Section | None,
    entries: list[dict[str, object]],
) -> dict[str, object]:
    figures: dict[str, object] = {section.title: section.figures for section in agreements}
    if timeline is not None:
        figures["compare"] = timeline.figures
    return {
        "kind": KIND,
        "version": VERSION,
        "runs": {facts.name: summary.figures() for facts, summary in results},
        "figures": figures,
        "pictures": entries,
    }


def check_same_classes(subjects: Sequence[Subject]) -> None:
    """Checks that several models have the same classes, in any order.

    Raises:
        ConfigError: Two of them differ.
    """
    first = subjects[0]
    for other in subjects[1:]:
        if set(other.classes) != set(first.classes):
            classes = f"{list_names(first.classes)}; {list_names(other.classes)}"
            raise ConfigError(
                "runs or models with the same classes",
                f"compared={first.name} and {other.name} (classes {classes})",
                "compare those that tell the same classes apart",
            )


def _check_same_images(subjects: Sequence[Subject]) -> None:
    first = subjects[0]
    for other in subjects[1:]:
        if other.shards_digest != first.shards_digest:
            raise ConfigError(
                "runs on the same shard set",
                f"runs={first.name} and {other.name} (on different ones)",
                "compare runs on one shard set, or name one for all of them with --data",
            )
