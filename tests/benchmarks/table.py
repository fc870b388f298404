"""From rounds to a table: medians, ratios within the run, goals, and the machine it was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
from arena import CORES, Contestant, Outcome

LIMIT = "limit"  # stands for the fastest of the contestants that decode and nothing else


@dataclass(frozen=True)
class Goal:
    """What a row is to reach: how many times as fast `fast` is as `slow`, by the medians of the rounds' ratios.

    Attributes:
        row: The contestant beside which it stands.
        fast: Contestant.
        slow: Contestant, or `LIMIT`.
        bound: The ratio to reach; with `overhead` the largest share of the processor time of `slow` that `fast` may take.
        text: The goal in words.
        overhead: Whether it is a share that must be small.
    """

    row: str
    fast: str
    slow: str
    bound: float
    text: str
    overhead: bool = False


class Field(NamedTuple):
    """Who takes part and what they are to reach.

    Attributes:
        contestants: In the order of the table.
        goals: At most one per contestant.
        limits: Names of the contestants of which the fastest is the limit.
        images: How many a round handles; None for the photos.
        note: Where they come from; None for where the photos come from.
    """

    contestants: Sequence[Contestant]
    goals: Sequence[Goal] = ()
    limits: Sequence[str] = ()
    images: int | None = None
    note: str | None = None


def times_as_fast(fast: Sequence[float], slow: Sequence[float]) -> float:
    """The median, over the rounds, of how many times as fast one was as the other in that round; both in seconds."""
    return median(theirs / ours for ours, theirs in zip(fast, slow, strict=True))


def results(field: Field, outcomes: Mapping[str, Outcome], images: int) -> dict[str, Any]:
    """The figures of a run, ready for JSON.

    Args:
        field: Who took part, in the order of the table, and the goals.
        outcomes: What came of them.
        images: How many a round handles.
    """
    ran = [name for name in field.limits if name in outcomes and outcomes[name].seconds]
    limit = min(ran, key=lambda name: median(outcomes[name].seconds), default=None)
    cores = {entry.name: entry.cores or CORES for entry in field.contestants}
    goals = {goal.row: goal for goal in field.goals}
    rows = [_row(entry.name, outcomes, limit, cores[entry.name], images) for entry in field.contestants]
    for row, entry in zip(rows, field.contestants, strict=True):
        row["drawn"] = entry.drawn and "reason" not in row
        goal = goals.get(row["name"])
        row["goal"] = _measured(goal, outcomes, limit, cores) if goal else None
    return {"images": images, "limit": limit, "rows": rows}


def _row(
    name: str, outcomes: Mapping[str, Outcome], limit: str | None, cores: int, images: int
) -> dict[str, Any]:
    outcome = outcomes[name]
    if outcome.reason or not outcome.seconds:
        return {"name": name, "reason": outcome.reason or "no rounds"}
    seconds = median(outcome.seconds)
    return {
        "name": name,
        "images_per_second": images / seconds,
        "lowest": images / max(outcome.seconds),
        "highest": images / min(outcome.seconds),
        "ms_per_image": seconds * cores / images * 1e3,
        "cpu_ms_per_image": median(outcome.cpu) / images * 1e3,
        "of_limit": times_as_fast(outcome.seconds, outcomes[limit].seconds) if limit else None,
        "others": median(outcome.others),
        "seconds": outcome.seconds,
    }


def _measured(
    goal: Goal, outcomes: Mapping[str, Outcome], limit: str | None, cores: Mapping[str, int]
) -> dict[str, Any] | None:
    slow = limit if goal.slow == LIMIT else goal.slow
    if not all(name in outcomes and outcomes[name].seconds for name in (goal.fast, slow)):
        return None
    value = times_as_fast(outcomes[goal.fast].seconds, outcomes[slow].seconds)
    if goal.overhead:
        value = cores[goal.fast] / cores[slow] / value
    return {
        "text": goal.text,
        "value": value,
        "reached": value <= goal.bound if goal.overhead else value >= goal.bound,
    }


def machine(versions: Mapping[str, str]) -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total / 2**30
    return {
        "cpu": model,
        "cores": CORES,
        "memory_gib": round(memory, 1),
        "system": platform.system(),
        "versions": dict(versions),
    }


def load() -> list[float]:
    """The load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


HEADER = (
    "contestant",
    "images/s",
    "min - max",
    "ms/image",
    "CPU ms",
    "of limit",
    "measured",
    "goal",
    "reached",
)
LEFT = (0, 7)  # columns of words


def text(run: Mapping[str, Any]) -> str:
    """The table of a run as plain text."""
    lines = [HEADER, *(_cells(row) for row in run["rows"])]
    widths = [
        max(len(line[column]) for line in lines if len(line) > column and len(line) > 2)
        for column in range(len(HEADER))
    ]
    widths[0] = max(len(line[0]) for line in lines)
    out = [run["title"], ""]
    for line in lines:  # a row without figures is shorter: its reason follows its name
        words = [
            word.ljust(width) if column in LEFT else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=False))
        ]
        out.append("  ".join(words).rstrip())
    host = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    others = max((row["others"] for row in run["rows"] if "others" in row), default=0.0)
    out += [
        "",
        f"{run['images']} images a round, median of {run['rounds']} rounds, interleaved; ms/image is wall clock x cores; {run['note']}",
        f"{host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB, {host['system']}; {versions}",
        f"load before {run['load_before']}, after {run['load_after']}; other processes kept up to {others:.0%} of the machine busy",
    ]
    return "\n".join(out)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "reason" in row:
        return row["name"], row["reason"][:100]
    of_limit = "" if row["of_limit"] is None else f"{row['of_limit']:.2f}"
    cells = (
        row["name"],
        f"{row['images_per_second']:.0f}",
        f"{row['lowest']:.0f} - {row['highest']:.0f}",
        f"{row['ms_per_image']:.3f}",
        f"{row['cpu_ms_per_image']:.3f}",
        of_limit,
    )
    goal = row["goal"]
    if goal is None:
        return *cells, "", "", ""
    return *cells, f"{goal['value']:.3g}", goal["text"], "yes" if goal["reached"] else "no"
