"""The index page of all runs: settings, accuracy and a link to the report of each run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.errors import ConfigError
from pipelines.remote.store import ConflictError, ObjectMissingError, read_version, write_bytes
from pipelines.remote.uri import Location, Uri
from pipelines.storage import read_bounded, write_atomically
from service.report.lease import LEASE_SECONDS, hold_lease
from service.report.pages.page import render
from service.report.pages.scripts import load_scripts
from service.report.publish import PAGE
from service.report.reported import ReportedRun

GENERATOR = '<meta name="generator" content="glassbox runs">'  # identifies an index page
READ_AT_A_TIME = 16  # reports in a store
CURVE_POINTS = 100  # largest number of epochs of a run whose accuracies are on the page
SPARKLINE = (120, 28)  # width and height of the small curve, in pixels


@dataclass(frozen=True)
class Row:
    """A run on the index page.

    Attributes:
        name: Path of the run relative to the directory of all runs.
        link: Relative link to its report; empty without a report.
        manifest: Manifest of its report; empty without a report.
        accuracy: Best validation accuracy, or that of the saved model if there is no validation.
        curve: Points of its accuracy over the epochs, for an SVG of size `SPARKLINE`.
        training: Training accuracy over the epochs in thousandths, at most `CURVE_POINTS` of them.
        validation: Validation accuracy over the same epochs; empty without validation.
        pictures: Thumbnails of its report, with file names relative to the index page.
        note: Reason why the run has no new report; empty if it has one.
        state: State of the run, see `service.runs.Run.status`.
    """

    name: str
    link: str
    manifest: Mapping[str, Any]
    accuracy: float | None
    curve: str
    training: Sequence[int]
    validation: Sequence[int]
    pictures: Sequence[Mapping[str, Any]]
    note: str
    state: str


def write_index(
    root: Location,
    runs: Mapping[str, ReportedRun],
    failures: Mapping[str, str],
    finished: Collection[str] = (),
    published: Mapping[str, Mapping[str, Any]] | None = None,
) -> Location:
    """Writes the index page of all runs, completely or not at all.

    Args:
        root: Directory of the page, or its URI.
        runs: Runs by their names.
        failures: Error messages of reports that could not be rendered, by the names of their runs.
        finished: Names of runs that are known to be finished, so that their state is not read.
        published: Summaries of reports that have been read already, by the names of their runs, see
            `service.report.publish.summarize_manifest`.

    Returns:
        Path or URI of the page.

    Raises:
        ConfigError: Another page is in its place, or it cannot be written.
        StoreError: The store denies access or does not respond.
    """
    render_page = partial(_render_index, root, runs, failures, finished, published or {})
    if isinstance(root, Uri):
        return _write_remote_index(root, render_page)
    path = root / PAGE
    try:
        root.mkdir(parents=True, exist_ok=True)
        with hold_lease(root / ".reports.lock", wait=2 * LEASE_SECONDS):
            old = _read_page(path) if path.exists() else None
            _check_generator(path, old)
            html = render_page()
            if old != html:
                write_atomically(path, html)
    except OSError as error:
        raise ConfigError(
            "a directory that can be written", f"{path}: {error.strerror}", "check its permissions"
        ) from None
    return path


def _read_page(path: Path) -> str:
    """Reads the page that is replaced; an empty text for a file that is too large to be one."""
    try:
        return read_bounded(path).decode(errors="replace")
    except ValueError:
        return ""


def _write_remote_index(root: Uri, render_page: Callable[[], str]) -> Uri:
    """Replaces the page in a store; starts again if another job has replaced it in the meantime."""
    uri = root / PAGE
    while True:
        try:
            old, tag = read_version(uri)
        except ObjectMissingError:
            old, tag = b"", ""
        _check_generator(uri, old.decode(errors="replace") if tag else None)
        html = render_page().encode()
        if html == old:
            return uri
        with suppress(ConflictError):
            write_bytes(uri, html, if_absent=not tag, if_match=tag or None)
            return uri


def _check_generator(path: Location, old: str | None) -> None:
    if old is not None and GENERATOR not in old:
        raise ConfigError(
            "no other page in place of the index of all runs",
            f"{path} (holds something else)",
            "move it elsewhere",
        )


def _render_index(
    root: Location,
    runs: Mapping[str, ReportedRun],
    failures: Mapping[str, str],
    finished: Collection[str],
    published: Mapping[str, Mapping[str, Any]],
) -> str:
    def build_row(name: str) -> Row:
        state = "finished" if name in finished else runs[name].read_state()
        manifest = published.get(name) or runs[name].read_published()
        return _build_row(root, runs[name], manifest, state, failures.get(name, ""))

    with ThreadPoolExecutor(READ_AT_A_TIME) as threads:
        rows = list(threads.map(build_row, sorted(runs)))
    rows.sort(key=lambda row: str(row.manifest.get("about", {}).get("finished", "")), reverse=True)
    presets = sorted({str(row.manifest.get("about", {}).get("preset") or "") for row in rows} - {""})
    return render(
        "index.html",
        load_scripts(plots=False),
        rows=rows,
        presets=presets,
        generator=GENERATOR,
        sparkline=SPARKLINE,
    )


def compute_sparkline(values: Sequence[float]) -> str:
    """Computes the points of a line through values, from left to right, for an SVG of size `SPARKLINE`.

    Args:
        values: Values in [0, 1], oldest first.

    Returns:
        The points; empty for fewer than two values.
    """
    if len(values) < 2:
        return ""
    width, height = SPARKLINE
    lowest = min(values)
    span = (max(values) - lowest) or 1.0
    step = (width - 4) / (len(values) - 1)
    points = []
    for index, value in enumerate(values):
        x = 2 + index * step
        y = height - 3 - (value - lowest) / span * (height - 6)
        points.append(f"{x:.1f},{y:.1f}")
    return " ".join(points)


def _build_row(
    root: Location, run: ReportedRun, manifest: Mapping[str, Any], state: str, failure: str
) -> Row:
    figures = manifest.get("figures", {})
    summary = figures.get("summary", {})
    epochs = figures.get("curves", {}).get("epochs", [])
    accuracy = summary.get("best_accuracy")
    if accuracy is None:
        accuracy = summary.get("accuracy")
    note = failure.partition("\n")[0]
    if not note and state != "finished":
        note = f"not finished: {state}"
    folder = quote(_find_relative_path(run.report, root))
    pictures = [
        {**picture, "file": f"{folder}/{quote(picture['file'])}"}
        for picture in manifest.get("thumbnails", ())
    ]
    return Row(
        run.name,
        f"{folder}/{PAGE}" if manifest else "",
        manifest,
        accuracy,
        compute_sparkline(_list_values(epochs, "val_accuracy") or _list_values(epochs, "accuracy")),
        thin_curve(_list_values(epochs, "accuracy")),
        thin_curve(_list_values(epochs, "val_accuracy")),
        pictures,
        note,
        state,
    )


def thin_curve(values: Sequence[float]) -> list[int]:
    """Reduces a curve to at most `CURVE_POINTS` evenly spaced values, the first and the last among them.

    Args:
        values: Values in [0, 1], oldest first.

    Returns:
        The values in thousandths.
    """
    count = min(len(values), CURVE_POINTS)
    last = len(values) - 1
    indices = [round(point * last / max(1, count - 1)) for point in range(count)]
    return [round(1000 * values[index]) for index in indices]


def _list_values(epochs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(epoch[key]) for epoch in epochs if isinstance(epoch.get(key), int | float)]


def _find_relative_path(report: Location, root: Location) -> str:
    if isinstance(report, Uri) and isinstance(root, Uri):
        return report.relative_to(root)
    return Path(str(report)).relative_to(str(root)).as_posix()
