"""Checks how Jobs and CronJobs behave on failure: schedules, deadlines, history and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kube_pods import get_field, name_of
from kube_render import Document

CRON_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of the month", 1, 31),
    ("month", 1, 12),
    ("day of the week", 0, 6),
)
# The controller synchronizes every 10 seconds; with a shorter starting deadline no job is ever started.
MIN_STARTING_DEADLINE = 10


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for document in documents:
        where = name_of(document)
        spec = document.get("spec") or {}
        if document.get("kind") == "CronJob":
            yield from _check_cron_job(f"{where}: spec", spec)
            yield from _check_job(f"{where}: spec.jobTemplate.spec", get_field(spec, "jobTemplate.spec"))
        if document.get("kind") == "Job":
            yield from _check_job(f"{where}: spec", spec)
            if "ttlSecondsAfterFinished" not in spec:
                field = f"{where}: spec.ttlSecondsAfterFinished"
                yield f"{field}: missing: a finished Job refuses a changed template"


def find_schedule_error(schedule: str) -> str | None:
    """Returns what is wrong with a cron schedule, or None if it is valid."""
    words = schedule.split()
    if len(words) != len(CRON_FIELDS):
        return f"must have {len(CRON_FIELDS)} fields, has {len(words)}"
    for word, (name, low, high) in zip(words, CRON_FIELDS, strict=True):
        for part in word.split(","):
            if error := _find_part_error(part, low, high):
                return f"{name}: {error}"
    return None


def _find_part_error(part: str, low: int, high: int) -> str | None:
    """Checks one entry of a cron field: `*`, a number or a range, optionally with a step."""
    span, slash, step = part.partition("/")
    if slash and (not step.isdigit() or int(step) < 1):
        return f"not a step: {part}"
    if span == "*":
        return None
    bounds = span.split("-")
    is_in_range = len(bounds) <= 2 and all(bound.isdigit() and low <= int(bound) <= high for bound in bounds)
    if not is_in_range or int(bounds[0]) > int(bounds[-1]):
        return f"not within {low} to {high}: {part}"
    return None


def _check_cron_job(where: str, spec: Document) -> Iterator[str]:
    if error := find_schedule_error(str(spec.get("schedule", ""))):
        yield f"{where}.schedule: {error}"
    for field, value in (("timeZone", "Etc/UTC"), ("concurrencyPolicy", "Forbid")):
        if spec.get(field) != value:
            yield f"{where}.{field}: must be {value}, is {spec.get(field)}"
    for field, minimum in (
        ("startingDeadlineSeconds", MIN_STARTING_DEADLINE),
        ("successfulJobsHistoryLimit", 1),
        ("failedJobsHistoryLimit", 1),
    ):
        yield from _check_minimum(f"{where}.{field}", spec.get(field), minimum)


def _check_job(where: str, spec: Document) -> Iterator[str]:
    for field, minimum in (("backoffLimit", 0), ("activeDeadlineSeconds", 60)):
        yield from _check_minimum(f"{where}.{field}", spec.get(field), minimum)
    policy = get_field(spec, "template.spec.restartPolicy")
    if policy not in ("Never", "OnFailure"):
        yield f"{where}.template.spec.restartPolicy: must be Never or OnFailure, is {policy or 'missing'}"


def _check_minimum(where: str, value: Any, minimum: int) -> Iterator[str]:
    if type(value) is not int or value < minimum:
        yield f"{where}: must be {minimum} or more, is {value}"
