"""The reproduction page: published results of the presets next to those obtained here."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import GlassboxError
from pipelines.shards.manifest import load_manifest
from pipelines.storage import write_atomically
from service.config import RunConfig
from service.diagnosis.curves import Curve, column
from service.report.analysis.run_facts import flatten_settings
from service.report.drawing.plots import Line, Plot
from service.report.pages.page import render
from service.report.pages.scripts import load_scripts
from service.report.publish import PAGE
from service.runs import Run
from service.scores import standard_error

ROLES = "abcdef"
# The final accuracy of a run of LONG_RUN epochs or more is the median over its last FINAL_EPOCHS epochs.
FINAL_EPOCHS = 5
LONG_RUN = 10
SIGNIFICANT = 2.0  # standard errors
PUBLISHED = re.compile(r"Published accuracy: ([\d.]+) % on (?:the )?(?:([\d,]+) )?[^.]*? after (\d+) epochs?")
METRICS = (
    ("val_accuracy", "Validation accuracy"),
    ("accuracy", "Training accuracy"),
    ("val_loss", "Validation loss"),
)
History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class PublishedResult:
    """A published result.

    Attributes:
        accuracy: Validation accuracy at the end of training.
        epochs: Number of epochs trained.
        images: Number of validation images; None if it was not published.
    """

    accuracy: float
    epochs: int
    images: int | None


def parse_published(comment: str) -> PublishedResult | None:
    """Parses the published result in the comment of a preset; None if it states none.

    Args:
        comment: Comment at the top of the preset's file.
    """
    match = PUBLISHED.search(" ".join(comment.split()))
    if not match:
        return None
    images = int(match[2].replace(",", "")) if match[2] else None
    return PublishedResult(float(match[1]) / 100, int(match[3]), images)


@dataclass(frozen=True)
class Experiment:
    """A published experiment and its runs here.

    Attributes:
        preset: Name of the preset.
        published: The published result.
        runs: Runs of the preset, one per seed.
        missing_reason: Reason why there are no runs.
        history: Published curves, as metrics per epoch; empty if they are not available.
        overrides: Settings in which the runs differ from the preset, see `list_overrides`.
    """

    preset: str
    published: PublishedResult
    runs: tuple[Run, ...] = ()
    missing_reason: str = ""
    history: History = ()
    overrides: tuple[str, ...] = ()

    @property
    def complete_runs(self) -> list[Run]:
        """The runs that were trained for as many epochs as the published one; later epochs do not count."""
        return [run for run in self.runs if len(run.metrics()) >= self.published.epochs]

    @property
    def status(self) -> str:
        """Missing or unfinished runs, as text; empty if all runs are finished."""
        if not self.runs:
            return f"not run: {self.missing_reason}"
        counts = [len(run.metrics()) for run in self.runs]
        return ", ".join(
            f"not finished: epoch {count} of {self.published.epochs}"
            for count in counts
            if count < self.published.epochs
        )


@dataclass(frozen=True)
class Comparison:
    """The results of an experiment's finished runs, next to the published result.

    Attributes:
        ours: Final validation accuracy, the mean over the runs.
        best: Highest validation accuracy of any epoch.
        spread: Standard deviation of the final accuracy over the runs; None for a single run.
        difference: Our final accuracy minus the published one.
        error: Standard error of the difference, from the numbers of images; 0 if they are unknown.
        seconds: Training time of one run, the median.
        images: Number of validation images; None if unknown.
    """

    ours: float
    best: float
    spread: float | None
    difference: float
    error: float
    seconds: float
    images: int | None

    @property
    def verdict(self) -> str:
        """The comparison in few words; `below` means more than two standard errors below."""
        if not self.error:
            return "unknown"
        if abs(self.difference) <= SIGNIFICANT * self.error:
            return "within two standard errors"
        return "better" if self.difference > 0 else "below"


def list_overrides(run: Run, config: RunConfig) -> tuple[str, ...]:
    """Lists the settings of a run that differ from its preset, as on the command line.

    The seed and the paths of data and weights do not count.

    Args:
        run: Run to compare.
        config: Configuration of the unchanged preset.
    """
    ignored = ("preset", "shards", "seed", "weights")
    preset = dict(flatten_settings(config.model_dump(mode="json")))
    settings = flatten_settings({key: value for key, value in run.config().items() if key not in ignored})
    return tuple(f"{key}={value}" for key, value in settings if preset.get(key) != value)


def compute_final_accuracy(history: History) -> float:
    """Computes the validation accuracy at the end of a run, smoothed for long runs.

    Args:
        history: Metrics per epoch.
    """
    values = Curve.from_epochs(history, "val_accuracy").values
    if len(history) >= LONG_RUN:
        return float(statistics.median(values[-FINAL_EPOCHS:]))
    return float(values[-1])


def compare_with_published(experiment: Experiment) -> Comparison | None:
    """Compares the finished runs of an experiment with its published result; None if no run is finished.

    Args:
        experiment: Published experiment with its runs.
    """
    published = experiment.published
    histories = [run.metrics()[: published.epochs] for run in experiment.complete_runs]
    if not histories:
        return None
    final_accuracies = [compute_final_accuracy(history) for history in histories]
    ours = statistics.fmean(final_accuracies)
    images = _count_images(experiment.complete_runs[0])
    published_images = published.images or images
    our_error = standard_error(ours, images) if images else 0.0
    published_error = standard_error(published.accuracy, published_images) if published_images else 0.0
    accuracies = [value for history in histories for value in column(history, "val_accuracy")]
    return Comparison(
        ours=ours,
        best=max(value for value in accuracies if math.isfinite(value)),
        spread=statistics.stdev(final_accuracies) if len(final_accuracies) > 1 else None,
        difference=ours - published.accuracy,
        error=math.hypot(our_error, published_error),
        seconds=statistics.median(sum(column(history, "seconds")) for history in histories),
        images=images,
    )


def plot_curves(experiment: Experiment) -> list[Plot]:
    """Plots our curves over the published ones: validation and training accuracy, and validation loss.

    Args:
        experiment: Published experiment with its runs.
    """
    histories = [("published", experiment.history, "f")]
    for index, run in enumerate(experiment.runs):
        name = f"ours, seed {run.config().get('seed', 0)}"
        histories.append((name, run.metrics(), ROLES[index % 5]))
    histories = [entry for entry in histories if entry[1]]
    longest = max((len(history) for _, history, _ in histories), default=0)
    plots = []
    for key, title in METRICS:
        lines = []
        for name, history, role in histories:
            values = column(history, key)
            missing = [math.nan] * (longest - len(values))
            lines.append(Line(name, [*values, *missing], role))
        levels: tuple[tuple[float, str], ...] = ()
        if key == "val_accuracy":
            levels = ((experiment.published.accuracy, "published result"),)
        numbers = list(range(1, longest + 1))
        is_accuracy = key.endswith("accuracy")
        plots.append(Plot(title, "epoch", numbers, tuple(lines), percent=is_accuracy, levels=levels))
    return [plot for plot in plots if not plot.is_empty]


def write_reproduction(out: Path, experiments: Sequence[Experiment], machine: str) -> Path:
    """Writes the page, completely or not at all.

    Args:
        out: Directory of the page, created if it does not exist.
        experiments: Experiments in the order of the page.
        machine: Description of the machine the runs were trained on.

    Returns:
        The path of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        (experiment, compare_with_published(experiment), plot_curves(experiment))
        for experiment in experiments
    ]
    below = [
        experiment.preset
        for experiment, comparison, _ in rows
        if comparison is not None and comparison.verdict == "below"
    ]
    html = render(
        "reproduction.html",
        load_scripts(),
        rows=rows,
        below=below,
        machine=machine,
        final_epochs=FINAL_EPOCHS,
        long_run=LONG_RUN,
    )
    write_atomically(out / PAGE, html)
    return out / PAGE


def format_table(experiments: Sequence[Experiment]) -> str:
    """Formats the same figures as a Markdown table.

    Args:
        experiments: Experiments in the order of the table.
    """
    lines = [
        "| preset | published | ours | runs | difference, points | standard error | verdict | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for experiment in experiments:
        first_cells = f"| {experiment.preset} | {experiment.published.accuracy:.2%} |"
        comparison = compare_with_published(experiment)
        if comparison is None:
            lines.append(f"{first_cells} | {len(experiment.runs)} | | | {experiment.status} | |")
            continue
        spread = "" if comparison.spread is None else f" ± {comparison.spread * 100:.2f}"
        lines.append(
            f"{first_cells} {comparison.ours:.2%}{spread} | {len(experiment.complete_runs)} "
            f"| {comparison.difference * 100:+.2f} | {comparison.error * 100:.2f} "
            f"| {comparison.verdict} | {comparison.seconds:.0f} s |"
        )
    return "\n".join(lines)


def _count_images(run: Run) -> int | None:
    try:
        return load_manifest(str(run.config()["shards"])).get_split("validation").rows
    except (GlassboxError, KeyError):
        return None
