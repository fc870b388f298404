"""Computes a benchmark's figures from its rounds (medians, ratios, goals) and formats its table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
from harness import CORES, Candidate, Measurement

LIMIT = "limit"  # stands for the fastest of the benchmark's limits


@dataclass(frozen=True)
class Goal:
    """A ratio to reach: how many times as fast `fast` is as `slow`, as the median of the rounds' ratios.

    Attributes:
        row: Name of the candidate in whose row the goal is shown.
        fast: Name of the candidate in the numerator.
        slow: Name of the candidate in the denominator, or `LIMIT`.
        bound: Minimum ratio; for an overhead the maximum share of the CPU time of `slow`.
        text: Description of the goal in the table.
        is_overhead: Whether the goal is a share of CPU time that has to be small.
    """

    row: str
    fast: str
    slow: str
    bound: float
    text: str
    is_overhead: bool = False


class Benchmark(NamedTuple):
    """What a benchmark compares.

    Attributes:
        candidates: Candidates in the order of the table.
        goals: Goals, at most one per candidate.
        limits: Names of the candidates of which the fastest is the limit.
        images: Images per round; None for the number of photos.
        note: Origin of the images; None for the origin of the photos.
    """

    candidates: Sequence[Candidate]
    goals: Sequence[Goal] = ()
    limits: Sequence[str] = ()
    images: int | None = None
    note: str | None = None


def compute_ratio(fast: Sequence[float], slow: Sequence[float]) -> float:
    """Returns how many times as fast `fast` is: the median of the rounds' ratios of seconds."""
    return median(slow_seconds / fast_seconds for fast_seconds, slow_seconds in zip(fast, slow, strict=True))


def compute_figures(
    benchmark: Benchmark, measurements: Mapping[str, Measurement], images: int
) -> dict[str, Any]:
    """Computes the figures of a run, ready for JSON.

    Args:
        benchmark: Candidates in the order of the table, with goals and limits.
        measurements: Measurement of every candidate by name.
        images: Number of images per round.
    """
    names = [name for name in benchmark.limits if name in measurements and measurements[name].seconds]
    limit = min(names, key=lambda name: median(measurements[name].seconds), default=None)
    cores = {candidate.name: candidate.cores or CORES for candidate in benchmark.candidates}
    goals = {goal.row: goal for goal in benchmark.goals}
    rows = []
    for candidate in benchmark.candidates:
        row = _compute_row(candidate.name, measurements, limit, cores[candidate.name], images)
        row["drawn"] = candidate.is_plotted and "reason" not in row
        goal = goals.get(candidate.name)
        row["goal"] = _evaluate_goal(goal, measurements, limit, cores) if goal else None
        rows.append(row)
    return {"images": images, "limit": limit, "rows": rows}


def _compute_row(
    name: str, measurements: Mapping[str, Measurement], limit: str | None, cores: int, images: int
) -> dict[str, Any]:
    measurement = measurements[name]
    if measurement.reason or not measurement.seconds:
        return {"name": name, "reason": measurement.reason or "no rounds"}
    seconds = median(measurement.seconds)
    return {
        "name": name,
        "images_per_second": images / seconds,
        "lowest": images / max(measurement.seconds),
        "highest": images / min(measurement.seconds),
        "ms_per_image": seconds * cores / images * 1e3,
        "cpu_ms_per_image": median(measurement.cpu) / images * 1e3,
        "of_limit": compute_ratio(measurement.seconds, measurements[limit].seconds) if limit else None,
        "others": median(measurement.others),
        "seconds": measurement.seconds,
    }


def _evaluate_goal(
    goal: Goal, measurements: Mapping[str, Measurement], limit: str | None, cores: Mapping[str, int]
) -> dict[str, Any] | None:
    slow = limit if goal.slow == LIMIT else goal.slow
    if not all(name in measurements and measurements[name].seconds for name in (goal.fast, slow)):
        return None
    ratio = compute_ratio(measurements[goal.fast].seconds, measurements[slow].seconds)
    if goal.is_overhead:
        share = cores[goal.fast] / cores[slow] / ratio
        return {"text": goal.text, "value": share, "reached": share <= goal.bound}
    return {"text": goal.text, "value": ratio, "reached": ratio >= goal.bound}


def describe_machine(versions: Mapping[str, str]) -> dict[str, Any]:
    """Returns processor, cores, memory and operating system, with the given versions of libraries."""
    cpuinfo = Path("/proc/cpuinfo")
    cpu = platform.processor()
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": CORES,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "versions": dict(versions),
    }


def read_load() -> list[float]:
    """Returns the load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


HEADER = (
    "candidate",
    "images/s",
    "min - max",
    "ms/image",
    "CPU ms",
    "of limit",
    "ratio",
    "goal",
    "reached",
)
LEFT_ALIGNED = (0, 7)


def format_table(run: Mapping[str, Any]) -> str:
    """Formats the table of a run as plain text."""
    cells = [HEADER, *(_format_cells(row) for row in run["rows"])]
    # A row without figures has two cells: the reason follows the name, outside the columns.
    complete = [row for row in cells if len(row) > 2]
    widths = [max(len(row[column]) for row in complete) for column in range(len(HEADER))]
    widths[0] = max(len(row[0]) for row in cells)
    lines = [run["title"], ""]
    for row in cells:
        words = []
        for column, (word, width) in enumerate(zip(row, widths, strict=False)):
            words.append(word.ljust(width) if column in LEFT_ALIGNED else word.rjust(width))
        lines.append("  ".join(words).rstrip())
    return "\n".join([*lines, "", *_format_footer(run)])


def _format_footer(run: Mapping[str, Any]) -> list[str]:
    host = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    others = max((row["others"] for row in run["rows"] if "others" in row), default=0.0)
    rounds = f"{run['images']} images per round, median of {run['rounds']} interleaved rounds"
    machine = f"{host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB, {host['system']}"
    load = f"load before {run['load_before']}, after {run['load_after']}"
    return [
        f"{rounds}; ms/image is wall clock x cores; {run['note']}",
        f"{machine}; {versions}",
        f"{load}; other processes kept up to {others:.0%} of the machine busy",
    ]


def _format_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "reason" in row:
        return row["name"], row["reason"][:100]
    goal = row["goal"]
    goal_cells = ("", "", "")
    if goal is not None:
        goal_cells = (f"{goal['value']:.3g}", goal["text"], "yes" if goal["reached"] else "no")
    return (
        row["name"],
        f"{row['images_per_second']:.0f}",
        f"{row['lowest']:.0f} - {row['highest']:.0f}",
        f"{row['ms_per_image']:.3f}",
        f"{row['cpu_ms_per_image']:.3f}",
        "" if row["of_limit"] is None else f"{row['of_limit']:.2f}",
        *goal_cells,
    )
