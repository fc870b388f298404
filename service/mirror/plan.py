"""Decides in which order the files of a run are uploaded, so that it is whole on the store at any time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath

from service.checkpoint import STATE, find_epoch, find_obsolete
from service.checkpoint_record import FILE_NAME as CHECKPOINT_RECORD
from service.checkpoint_record import sort_checkpoints
from service.milestones import find_obsolete_milestones
from service.runs import (
    CHECKPOINTS,
    CODE,
    CONFIG,
    EVENTS,
    LAYERS,
    METADATA,
    METRICS,
    MILESTONES,
    MODEL,
    STATUS,
)


class Action(Enum):
    """Kind of a step: upload a file, remove an object, or upload only the first lines of the metrics."""

    PUT = "put"
    DELETE = "delete"
    SHORTEN = "shorten"


@dataclass(frozen=True)
class Step:
    """One change of one object on the store.

    Attributes:
        action: Kind of the step.
        name: Name of the object below the run, as in the run directory.
        epochs: For `Action.SHORTEN`: number of lines of metrics that remain.
    """

    action: Action
    name: str
    epochs: int = 0


@dataclass(frozen=True)
class Retention:
    """Which checkpoints the run keeps.

    Attributes:
        newest: Name of the newest checkpoint.
        best: Name of the checkpoint of the best epoch.
        keep: Number of newest checkpoints that are kept.
    """

    newest: str
    best: str
    keep: int


@dataclass(frozen=True)
class LocalFiles:
    """A snapshot of the local run directory.

    Attributes:
        versions: Version of every file by its name, such as `checkpoints/epoch-0001/state.npz`.
        retention: Which checkpoints are kept; None if there is no checkpoint.
    """

    versions: Mapping[str, str]
    retention: Retention | None = None


@dataclass(frozen=True)
class RemoteFiles:
    """The objects of the run on the store.

    Attributes:
        versions: The local version that each object was uploaded from or fetched as; None if it is unknown.
        epochs: Lines of metrics on the store.
    """

    versions: Mapping[str, str | None]
    epochs: int = 0


# Files that the checkpoints depend on, in the order of their uploads; files of CODE come before these.
_BEFORE = (f"{CODE}/manifest.json", CONFIG, METADATA, MODEL, LAYERS)
# The status is last, because it tells that the run has ended.
_AFTER = (METRICS, STATUS)


def plan_upload(local: LocalFiles, remote: RemoteFiles) -> list[Step]:
    """Plans the steps that turn the run on the store into the local one.

    After any number of them, the run on the store can be resumed, and every line of its metrics belongs to an
    epoch of a complete checkpoint: whatever an object depends on is there before it, and checkpoints are
    removed last.

    Args:
        local: The run directory.
        remote: The run on the store.
    """
    obsolete = _list_obsolete(local, remote)
    changed = {name for name, version in local.versions.items() if remote.versions.get(name) != version}
    checkpoints = {name for name in changed if is_state(name) or is_record(name)}
    code = {name for name in changed if name.startswith(f"{CODE}/")} - {*_BEFORE}
    milestones = {name for name in changed if is_milestone(name)}
    others = changed - checkpoints - milestones - code - {*_BEFORE, *_AFTER}  # events and logs
    obsolete_milestones = _list_obsolete_milestones(local, remote)

    first = [*sorted(code), *(name for name in _BEFORE if name in changed)]
    metrics = [name for name in (METRICS,) if name in changed]
    last = [*sorted(others), *(name for name in (STATUS,) if name in changed)]
    saved = {name for name in checkpoints if find_folder(name) not in obsolete}
    return [
        *(Step(Action.PUT, name) for name in first),
        # Before the checkpoint of its epoch: a run that is resumed from that does not save it again.
        *(Step(Action.PUT, name) for name in sorted(milestones - obsolete_milestones)),
        *_plan_checkpoints(saved, remote),
        *(Step(Action.PUT, name) for name in [*metrics, *last]),
        *_plan_removals(obsolete, remote),
        *(Step(Action.DELETE, name) for name in sorted(obsolete_milestones & remote.versions.keys())),
    ]


def _plan_checkpoints(changed: Collection[str], remote: RemoteFiles) -> list[Step]:
    """Plans the uploads of checkpoints, oldest first: the state of each before its record.

    A checkpoint that is replaced does not exist for a while, so that metrics must not depend on it, and its
    record must not describe the state of another.
    """
    steps = []
    folders = {find_folder(name) for name in changed}
    replaced = {folder for folder in folders if _name_record(folder) in remote.versions}
    remaining = list_complete(remote.versions) - replaced
    covered = max((find_epoch(folder) for folder in remaining), default=0)
    if replaced and remote.epochs > covered:
        steps.append(Step(Action.SHORTEN, METRICS, covered))
    for folder in sort_checkpoints(folders):
        if folder in replaced:
            steps.append(Step(Action.DELETE, _name_record(folder)))
        if _name_state(folder) in changed:
            steps.append(Step(Action.PUT, _name_state(folder)))
        steps.append(Step(Action.PUT, _name_record(folder)))
    return steps


def _list_obsolete(local: LocalFiles, remote: RemoteFiles) -> list[str]:
    """Lists the checkpoints, on disk or on the store, that the run does not keep."""
    if local.retention is None:
        return []
    retention = local.retention
    names = [*local.versions, *remote.versions]
    folders = {find_folder(name) for name in names if is_state(name) or is_record(name)}
    return find_obsolete(folders, retention.newest, retention.best, retention.keep)


def _list_obsolete_milestones(local: LocalFiles, remote: RemoteFiles) -> set[str]:
    """Lists the milestones, on disk or on the store, that the run does not keep."""
    if local.retention is None:
        return set()
    names = {PurePosixPath(name).name for name in [*local.versions, *remote.versions] if is_milestone(name)}
    obsolete = find_obsolete_milestones(names, find_epoch(local.retention.newest))
    return {f"{MILESTONES}/{name}" for name in obsolete}


def _plan_removals(obsolete: Collection[str], remote: RemoteFiles) -> list[Step]:
    """Plans the removal of checkpoints, the record of each before its state."""
    steps = []
    for folder in obsolete:
        for name in (_name_record(folder), _name_state(folder)):
            if name in remote.versions:
                steps.append(Step(Action.DELETE, name))
    return steps


def _name_record(folder: str) -> str:
    return f"{CHECKPOINTS}/{folder}/{CHECKPOINT_RECORD}"


def _name_state(folder: str) -> str:
    return f"{CHECKPOINTS}/{folder}/{STATE}"


def is_state(name: str) -> bool:
    """Tells whether a file holds the variables of a checkpoint."""
    return _is_part_of_checkpoint(name, STATE)


def is_record(name: str) -> bool:
    """Tells whether a file is the record that completes a checkpoint."""
    return _is_part_of_checkpoint(name, CHECKPOINT_RECORD)


def is_milestone(name: str) -> bool:
    """Tells whether a file holds the weights of an epoch that is kept for the report."""
    return name.startswith(f"{MILESTONES}/")


def _is_part_of_checkpoint(name: str, part: str) -> bool:
    folder, _, file = name.rpartition("/")
    return file == part and folder.startswith(f"{CHECKPOINTS}/") and folder.count("/") == 1


def is_progress(name: str) -> bool:
    """Tells whether a file changes all the time, so that it is uploaded at intervals."""
    return name == STATUS or name.startswith(f"{EVENTS}/") or name.endswith(".log")


def find_folder(name: str) -> str:
    """Returns the name of the checkpoint that a file belongs to."""
    return name.split("/")[1]


def list_complete(names: Iterable[str]) -> set[str]:
    """Lists the checkpoints that have both their state and their record.

    Args:
        names: Names of objects or files of the run.
    """
    every = set(names)
    folders = {find_folder(name) for name in every if is_record(name)}
    return {folder for folder in folders if f"{CHECKPOINTS}/{folder}/{STATE}" in every}
