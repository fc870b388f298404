"""What the GPU check found: rows, their table, and whether anything failed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ABSENT = "not measured"
HEADER = ("part", "what", "unit", "CPU", "GPU", "goal", "result", "note")
NUMBERS = (3, 4)  # columns of figures


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: Its letter.
        name: What is measured.
        unit: Of the figures.
        cpu: On the CPU; None where it was not measured.
        gpu: On the GPU; likewise.
        goal: In words.
        passed: Whether the goal was reached; None where there is none or nothing to judge.
        note: What else there is to say, such as why something was not measured.
    """

    part: str
    name: str
    unit: str = ""
    cpu: float | None = None
    gpu: float | None = None
    goal: str = ""
    passed: bool | None = None
    note: str = ""

    def line(self) -> str:
        """As JSON, for the process that puts the rows together."""
        return json.dumps(asdict(self))


def failures(rows: Sequence[Row]) -> list[Row]:
    """The rows that failed."""
    return [row for row in rows if row.passed is False]


def shown(value: float | None) -> str:
    """A figure with three digits, or more where there are thousands."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """A row's words, in the order of the header."""
    result = {True: "pass", False: "FAIL", None: ""}[row.passed]
    return (row.part, row.name, row.unit, shown(row.cpu), shown(row.gpu), row.goal, result, row.note)


def text(rows: Sequence[Row]) -> str:
    """The table in columns."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER) - 1)]
    out = []
    for line in lines:
        words = [
            word.rjust(width) if column in NUMBERS else word.ljust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=False))
        ]
        out.append("  ".join([*words, line[-1]]).rstrip())
    return "\n".join(out)


def markdown(rows: Sequence[Row]) -> str:
    """The table for a page."""
    rule = ["---:" if column in NUMBERS else "---" for column in range(len(HEADER))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (HEADER, rule, *map(cells, rows)))


def report(environment: Mapping[str, Any], rows: Sequence[Row], seconds: float) -> str:
    """What is printed at the end."""
    lines = [f"{name}: {value}" for name, value in environment.items()]
    bad = failures(rows)
    judged = sum(row.passed is not None for row in rows)
    missing = sum(row.gpu is None for row in rows)
    verdict = f"{judged - len(bad)} of {judged} goals reached, {missing} of {len(rows)} figures {ABSENT} on a GPU, {seconds:.0f} s"
    failed = [f"FAILED: {row.part} {row.name}: {row.note or row.goal}" for row in bad]
    return "\n".join([*lines, "", text(rows), "", *failed, verdict])
