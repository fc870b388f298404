"""The page of a comparison: several runs, or the checkpoints of one, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import ConfigError
from pipelines.storage import write_atomically
from service.diagnosis.curves import column
from service.report.analysis.run_facts import About, about_run
from service.report.drawing.album import Album
from service.report.drawing.plots import Line, Plot
from service.report.fingerprint import shards_of
from service.report.job import Form, manifest_of, subject_of
from service.report.options import ReportOptions
from service.report.pages import page
from service.report.pages.scripts import scripts, with_pictures_inside
from service.report.pages.summary import Summary, summarize
from service.report.publish import MANIFEST, PAGE, VERSION, publishing
from service.report.sections.compare import ROLES, side_by_side
from service.runs import Run

KIND = "glassbox comparison"


def render_comparison(
    runs: Sequence[Run],
    out: Path,
    shards: Path | None = None,
    options: ReportOptions | None = None,
    form: Form | None = None,
) -> Path:
    """Renders a page that shows runs side by side over their epochs, whole or not at all.

    Args:
        runs: With saved models and checkpoints, on one shard set.
        out: Directory for the page; a comparison that stands there is replaced.
        shards: The shard set, where it no longer lies where the runs were trained.
        options: What to show.
        form: How to write the page.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: A run cannot be shown, they do not fit together, or `out` holds something else or cannot be written.
        DataError: The shard set is damaged.
    """
    form = form or Form()
    if len({run.path for run in runs}) < len(runs):
        raise ConfigError(
            "different runs", f"runs={' '.join(run.path.name for run in runs)}", "name each once"
        )
    subjects, told = [], []
    for run in runs:
        where = shards_of(run, shards)
        manifest = manifest_of(where)
        subject = subject_of(run, where, manifest, options or ReportOptions())
        subjects.append((run, subject))
        told.append((about_run(run, subject.config, where, manifest), summarize(subject)))
    with publishing(out, KIND) as directory:
        album = Album(directory)
        section = side_by_side(subjects, album)
        plots = curves_of([(run.path.name, subject.epochs) for run, subject in subjects])
        html = page.render(
            "comparison.html",
            scripts(),
            told=told,
            values=section.values,
            plots=plots,
            single_file=form.single_file,
        )
        entries = [album.entries[file] for file in sorted(album.entries)]
        if form.single_file:
            html = with_pictures_inside(html, directory)
        write_atomically(directory / PAGE, html)
        page.write_json(directory / MANIFEST, _manifest(told, section.figures, entries))
    return out / PAGE


def curves_of(runs: Sequence[tuple[str, Sequence[dict[str, float]]]]) -> list[Plot]:
    """Accuracy and loss of every run over the epochs, in one plot each: on validation images where all have some.

    Args:
        runs: Names and metrics per epoch.
    """
    longest = max(len(epochs) for _, epochs in runs)
    prefix = "val_" if all(column(epochs, "val_accuracy") for _, epochs in runs) else ""
    kind = "validation" if prefix else "training"
    plots = []
    for key, title in (("accuracy", "accuracy"), ("loss", "loss")):
        lines = []
        for (name, epochs), role in zip(runs, ROLES * len(runs), strict=False):
            values = column(epochs, prefix + key)
            lines.append(Line(name, [*values, *[np.nan] * (longest - len(values))], role))
        plots.append(
            Plot(
                f"{kind} {title}".capitalize(),
                "epoch",
                list(range(1, longest + 1)),
                tuple(lines),
                key == "accuracy",
            )
        )
    return [plot for plot in plots if not plot.is_empty]


def _manifest(
    told: Sequence[tuple[About, Summary]], figures: dict[str, object], entries: list[dict[str, object]]
) -> dict[str, object]:
    return {
        "kind": KIND,
        "version": VERSION,
        "runs": {about.name: summary.figures() for about, summary in told},
        "figures": figures,
        "pictures": entries,
    }
