"""The comparison page: several runs, or the checkpoints of one, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.errors import ConfigError
from pipelines.remote.uri import Location
from pipelines.storage import write_atomically
from service.devices import configure_devices
from service.diagnosis.curves import column
from service.inference.classes import list_names
from service.report.analysis.run_facts import RunFacts
from service.report.drawing.album import Album
from service.report.drawing.plots import Line, Plot
from service.report.options import PageOptions, ReportOptions
from service.report.pages import page
from service.report.pages.scripts import embed_pictures, load_scripts
from service.report.pages.summary import Summary, summarize
from service.report.publish import MANIFEST, PAGE, VERSION, publish
from service.report.reported import find_shards
from service.report.sections.compare import ROLES, ComparedRun, build_comparison
from service.report.subject import Subject, open_run, read_manifest
from service.runs import Run

KIND = "glassbox comparison"


def render_comparison(
    runs: Sequence[Run],
    out: Location,
    shards: Location | None = None,
    options: ReportOptions | None = None,
    page_options: PageOptions | None = None,
) -> Location:
    """Renders a page that shows runs side by side over their epochs, completely or not at all.

    Args:
        runs: Runs with saved models and checkpoints, on one shard set.
        out: Directory for the page, or its URI; a comparison in it is replaced.
        shards: Path or URI of the shard set, if it is no longer where the runs were trained.
        options: Content of the page.
        page_options: Format of the page.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: A run cannot be shown, the runs do not fit together, or `out` holds something else or
            cannot be written.
        DataError: The shard set is damaged.
    """
    page_options = page_options or PageOptions()
    if len({run.path for run in runs}) < len(runs):
        names = " ".join(run.path.name for run in runs)
        raise ConfigError("different runs", f"runs={names}", "name each of them once")
    configure_devices()
    subjects = []
    for run in runs:
        shards_of_run = find_shards(run, shards)
        manifest = read_manifest(shards_of_run, run)
        if shards is None:
            run.check_data(str(shards_of_run), manifest.digest())
        subjects.append(open_run(run, shards_of_run, manifest, options or ReportOptions()))
    check_same_classes(subjects)
    results = [(subject.facts, summarize(subject)) for subject in subjects]
    compared = [
        ComparedRun(run, subject.name, subject.model, subject.provenance)
        for run, subject in zip(runs, subjects, strict=True)
    ]
    with publish(out, KIND) as directory:
        album = Album(directory)
        section = build_comparison(album, compared, subjects[0].evaluation, subjects[0].classes)
        html = page.render(
            "comparison.html",
            load_scripts(),
            results=results,
            title=section.title,
            values=section.values,
            plots=plot_metrics([(subject.name, subject.epochs) for subject in subjects]),
            single_file=page_options.single_file,
        )
        entries = [album.entries[file] for file in sorted(album.entries)]
        if page_options.single_file:
            html = embed_pictures(html, directory)
        write_atomically(directory / PAGE, html)
        page.write_json(directory / MANIFEST, _manifest(results, section.figures, entries))
    return out / PAGE


def plot_metrics(runs: Sequence[tuple[str, Sequence[dict[str, float]]]]) -> list[Plot]:
    """Plots accuracy and loss of every run over the epochs; of training unless all runs have validation.

    Args:
        runs: Name and metrics per epoch of each run.
    """
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
    figures: dict[str, object],
    entries: list[dict[str, object]],
) -> dict[str, object]:
    return {
        "kind": KIND,
        "version": VERSION,
        "runs": {facts.name: summary.figures() for facts, summary in results},
        "figures": figures,
        "pictures": entries,
    }


def check_same_classes(subjects: Sequence[Subject]) -> None:
    """Checks that the models of several runs have the same classes in the same order.

    Raises:
        ConfigError: Two of them differ.
    """
    first = subjects[0]
    for other in subjects[1:]:
        if other.classes != first.classes:
            classes = f"{list_names(first.classes)}; {list_names(other.classes)}"
            raise ConfigError(
                "runs with the same classes in the same order",
                f"runs={first.name} and {other.name} (classes {classes})",
                "compare runs that were trained on one shard set",
            )
