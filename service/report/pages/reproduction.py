"""The page of the published experiments: what was published, what came out here, and whether that is the same."""

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
from service.report.pages.scripts import scripts
from service.report.publish import PAGE
from service.runs import Run
from service.scores import standard_error

ROLES = "abcdef"
LAST, LONG = (
    5,
    10,
)  # the end of a run of that many epochs is the median of its last five, of a shorter one its last
TWO = 2.0  # standard errors
PUBLISHED = re.compile(r"Published: ([\d.]+) % of (?:the )?(?:([\d,]+) )?[^.]*? after (\d+) epochs?")
History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
        accuracy: In the end.
        epochs: After how many.
        images: Judged by how many; None where that is not told.
    """

    accuracy: float
    epochs: int
    images: int | None


def published_in(comment: str) -> Published | None:
    """What the comment of a preset says was published; None where it says nothing."""
    found = PUBLISHED.search(" ".join(comment.split()))
    if not found:
        return None
    images = int(found[2].replace(",", "")) if found[2] else None
    return Published(float(found[1]) / 100, int(found[3]), images)


@dataclass(frozen=True)
class Experiment:
    """One published experiment and our runs of it.

    Attributes:
        preset: Its preset.
        published: Its result.
        runs: With other seeds each; not all need be finished.
        why_not: Why there are none.
        history: The published curves, where they are at hand.
        departures: See `departures`.
    """

    preset: str
    published: Published
    runs: tuple[Run, ...] = ()
    why_not: str = ""
    history: History = ()
    departures: tuple[str, ...] = ()

    @property
    def finished(self) -> list[Run]:
        """The runs that got as far as the published one; what they did after that does not count."""
        return [run for run in self.runs if len(run.metrics()) >= self.published.epochs]

    @property
    def state(self) -> str:
        """What there is in words; empty where all runs are finished."""
        if not self.runs:
            return f"not run: {self.why_not}"
        left = [run for run in self.runs if run not in self.finished]
        return ", ".join(
            f"not finished: epoch {len(run.metrics())} of {self.published.epochs}" for run in left
        )


@dataclass(frozen=True)
class Outcome:
    """How our finished runs of an experiment compare with what was published.

    Attributes:
        ours: Accuracy in the end, the mean over the runs.
        best: The highest accuracy of any epoch.
        spread: Standard deviation of `ours` over the runs; None for one.
        difference: Ours less the published.
        error: Standard error of that, for judging by so many images there and here.
        seconds: Training time of one run, the median.
        images: Validation images; None where that is not known.
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
        """In few words; a result that is worse by more than two standard errors is a bug to be found."""
        if not self.error:
            return "not known"
        if abs(self.difference) <= TWO * self.error:
            return "within two standard errors"
        return "better" if self.difference > 0 else "below"


def departures(run: Run, config: RunConfig) -> tuple[str, ...]:
    """Settings of a run in which it departs from its preset, as on the command line; seed, data and weights do not count."""
    preset = dict(flatten_settings(config.model_dump(mode="json")))
    own = flatten_settings(
        {
            key: value
            for key, value in run.config().items()
            if key not in ("preset", "shards", "seed", "weights")
        }
    )
    return tuple(f"{key}={value}" for key, value in own if preset.get(key) != value)


def end_of(history: History) -> float:
    """The validation accuracy a run ends with."""
    values = Curve.from_epochs(history, "val_accuracy").values
    return float(statistics.median(values[-LAST:]) if len(history) >= LONG else values[-1])


def outcome(experiment: Experiment) -> Outcome | None:
    """Compares; None where no run is finished."""
    histories = [run.metrics()[: experiment.published.epochs] for run in experiment.finished]
    if not histories:
        return None
    ends = [end_of(history) for history in histories]
    ours, published = statistics.fmean(ends), experiment.published
    images = _images(experiment.finished[0])
    errors = [standard_error(ours, images) if images else 0.0]
    errors += [
        standard_error(published.accuracy, published.images or images or 0)
        if published.images or images
        else 0.0
    ]
    return Outcome(
        ours=ours,
        best=max(
            max(value for value in column(history, "val_accuracy") if math.isfinite(value))
            for history in histories
        ),
        spread=statistics.stdev(ends) if len(ends) > 1 else None,
        difference=ours - published.accuracy,
        error=math.hypot(*errors),
        seconds=statistics.median(sum(column(history, "seconds")) for history in histories),
        images=images,
    )


def plots(experiment: Experiment) -> list[Plot]:
    """Our curves over the published ones: accuracy and loss on validation images, and accuracy on training images."""
    found = [("published", experiment.history, "f")] if experiment.history else []
    found += [
        (f"ours, seed {run.config().get('seed', 0)}", run.metrics(), ROLES[n % 5])
        for n, run in enumerate(experiment.runs)
    ]
    found = [(name, history, role) for name, history, role in found if history]
    longest = max((len(history) for _, history, _ in found), default=0)
    drawn = []
    for key, title in (
        ("val_accuracy", "Validation accuracy"),
        ("accuracy", "Training accuracy"),
        ("val_loss", "Validation loss"),
    ):
        lines = []
        for name, history, role in found:
            values = column(history, key)
            lines.append(Line(name, [*values, *[math.nan] * (longest - len(values))], role))
        percent = key.endswith("accuracy")
        levels = ((experiment.published.accuracy, "published result"),) if key == "val_accuracy" else ()
        drawn.append(Plot(title, "epoch", list(range(1, longest + 1)), tuple(lines), percent, levels=levels))
    return [plot for plot in drawn if not plot.is_empty]


def write_reproduction(out: Path, experiments: Sequence[Experiment], machine: str) -> Path:
    """Writes the page, whole or not at all.

    Args:
        out: Its directory, which is made.
        experiments: In the order of the page.
        machine: What the runs were made on, in words.

    Returns:
        Its path.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [(experiment, outcome(experiment), plots(experiment)) for experiment in experiments]
    below = [experiment.preset for experiment, found, _ in rows if found and found.verdict == "below"]
    write_atomically(
        out / PAGE,
        render("reproduction.html", scripts(), rows=rows, below=below, machine=machine, last=LAST, long=LONG),
    )
    return out / PAGE


def table(experiments: Sequence[Experiment]) -> str:
    """The same figures as Markdown."""
    lines = [
        "| preset | published | ours | runs | difference, points | its standard error | verdict | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for experiment in experiments:
        found, of = outcome(experiment), f"| {experiment.preset} | {experiment.published.accuracy:.2%} |"
        if found is None:
            lines.append(f"{of} | {len(experiment.runs)} | | | {experiment.state} | |")
            continue
        spread = "" if found.spread is None else f" ± {found.spread * 100:.2f}"
        figures = f" {found.ours:.2%}{spread} | {len(experiment.finished)} | {found.difference * 100:+.2f} | {found.error * 100:.2f} |"
        lines.append(f"{of}{figures} {found.verdict} | {found.seconds:.0f} s |")
    return "\n".join(lines)


def _images(run: Run) -> int | None:
    try:
        return load_manifest(str(run.config()["shards"])).get_split("validation").rows
    except (GlassboxError, KeyError):
        return None
