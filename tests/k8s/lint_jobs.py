"""What makes a job and a cron job behave when something goes wrong."""

from __future__ import annotations

from collections.abc import Iterator

from kube_pods import at, name_of
from kube_render import Document

FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of the month", 1, 31),
    ("month", 1, 12),
    ("day of the week", 0, 6),
)
SHORTEST_DEADLINE = 10  # seconds between two looks of the controller: with less no job ever starts


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for document in documents:
        where, spec = name_of(document), document.get("spec") or {}
        if document.get("kind") == "CronJob":
            yield from _cron(f"{where}: spec", spec)
            yield from _job(f"{where}: spec.jobTemplate.spec", at(spec, "jobTemplate.spec"))
        if document.get("kind") == "Job":
            yield from _job(f"{where}: spec", spec)


def wrong(schedule: str) -> str | None:
    """What is wrong with a cron line; None for nothing."""
    words = schedule.split()
    if len(words) != len(FIELDS):
        return f"must have {len(FIELDS)} fields, has {len(words)}"
    for word, (name, low, high) in zip(words, FIELDS, strict=True):
        for part in word.split(","):
            span, slash, step = part.partition("/")
            if slash and (not step.isdigit() or int(step) < 1):
                return f"{name}: not a step: {part}"
            ends = [str(low), str(high)] if span == "*" else span.split("-")
            if (
                len(ends) > 2
                or not all(end.isdigit() and low <= int(end) <= high for end in ends)
                or int(ends[0]) > int(ends[-1])
            ):
                return f"{name}: not within {low} to {high}: {part}"
    return None


def _cron(where: str, spec: Document) -> Iterator[str]:
    if problem := wrong(str(spec.get("schedule", ""))):
        yield f"{where}.schedule: {problem}"
    for field, value in (("timeZone", "Etc/UTC"), ("concurrencyPolicy", "Forbid")):
        if spec.get(field) != value:
            yield f"{where}.{field}: must be {value}, is {spec.get(field)}"
    for field, least in (
        ("startingDeadlineSeconds", SHORTEST_DEADLINE),
        ("successfulJobsHistoryLimit", 1),
        ("failedJobsHistoryLimit", 1),
    ):
        if type(spec.get(field)) is not int or spec[field] < least:
            yield f"{where}.{field}: must be {least} or more, is {spec.get(field)}"


def _job(where: str, spec: Document) -> Iterator[str]:
    for field, least in (("backoffLimit", 0), ("activeDeadlineSeconds", 60)):
        if type(spec.get(field)) is not int or spec[field] < least:
            yield f"{where}.{field}: must be {least} or more, is {spec.get(field)}"
    policy = at(spec, "template.spec.restartPolicy")
    if policy not in ("Never", "OnFailure"):
        yield f"{where}.template.spec.restartPolicy: must be Never or OnFailure, is {policy or 'missing'}"
