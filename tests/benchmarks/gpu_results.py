"""Rows of the GPU check, their table as text and Markdown, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "not measured"
HEADER = ("part", "what", "unit", "CPU", "GPU", "goal", "result", "note")
NUMERIC_COLUMNS = (3, 4)
VERDICTS = {True: "pass", False: "FAIL", None: ""}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: Letter of the part.
        name: Description of what is measured.
        unit: Unit of the values.
        cpu: Value on the CPU; None if it was not measured.
        gpu: Value on the GPU; None if it was not measured.
        goal: Description of the goal; empty without one.
        passed: Whether the goal was reached; None without a goal or a value to judge.
        note: Additional information, such as why a value is missing.
    """

    part: str
    name: str
    unit: str = ""
    cpu: float | None = None
    gpu: float | None = None
    goal: str = ""
    passed: bool | None = None
    note: str = ""


def build_late_row(part: str, name: str, reason: str) -> Row:
    """Builds the row of a check that ran out of time, which says nothing about what it checks."""
    return Row(part, name, note=f"{ABSENT}: {reason}")


def find_failures(rows: Sequence[Row]) -> list[Row]:
    """Returns the failed rows."""
    return [row for row in rows if row.passed is False]


def format_value(value: float | None) -> str:
    """Formats a value with three significant digits, or as a whole number from 100."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_cells(row: Row) -> tuple[str, ...]:
    """Returns the cells of a row in the order of the header."""
    return (
        row.part,
        row.name,
        row.unit,
        format_value(row.cpu),
        format_value(row.gpu),
        row.goal,
        VERDICTS[row.passed],
        row.note,
    )


def format_text(rows: Sequence[Row]) -> str:
    """Formats the table in aligned columns."""
    lines = [HEADER, *map(format_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER) - 1)]
    formatted = []
    for line in lines:
        words = []
        for column, (word, width) in enumerate(zip(line, widths, strict=False)):
            words.append(word.rjust(width) if column in NUMERIC_COLUMNS else word.ljust(width))
        formatted.append("  ".join([*words, line[-1]]).rstrip())
    return "\n".join(formatted)


def format_markdown(rows: Sequence[Row]) -> str:
    """Formats the table as Markdown."""
    rule = ["---:" if column in NUMERIC_COLUMNS else "---" for column in range(len(HEADER))]
    lines = (HEADER, rule, *map(format_cells, rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_meanings(meanings: Mapping[str, str]) -> str:
    """Formats what the results of each part mean, as a list in Markdown."""
    return "\n".join(f"- {part}: {meaning}" for part, meaning in meanings.items())


def format_report(
    environment: Mapping[str, Any], rows: Sequence[Row], seconds: float, meanings: Mapping[str, str]
) -> str:
    """Formats environment, table, what it means, failures and verdict."""
    failures = find_failures(rows)
    judged = sum(row.passed is not None for row in rows)
    missing = sum(row.gpu is None for row in rows)
    goals = f"{judged - len(failures)} of {judged} goals reached"
    verdict = f"{goals}, {missing} of {len(rows)} figures {ABSENT} on a GPU, {seconds:.0f} s"
    return "\n".join(
        [
            *(f"{name}: {value}" for name, value in environment.items()),
            "",
            format_text(rows),
            "",
            format_meanings(meanings),
            "",
            *(f"FAILED: {row.part} {row.name}: {row.note or row.goal}" for row in failures),
            verdict,
        ]
    )
