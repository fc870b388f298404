"""Fetches runs from a store: all that training resumes from, or the parts that a reader needs."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ConfigError
from pipelines.remote.errors import CorruptObjectError, ObjectMissingError
from pipelines.remote.files import is_file, read_file
from pipelines.remote.lease import MAX_BYTES
from pipelines.remote.store import ObjectInfo, download, list_folder, list_objects, read_bytes, stat
from pipelines.remote.uri import Location, Uri
from pipelines.storage import MAX_TEXT_BYTES, lock_file, replace_directory
from service.checkpoint import STATE
from service.checkpoint_record import FILE_NAME as CHECKPOINT_RECORD
from service.checkpoint_record import CheckpointRecord, sort_checkpoints
from service.mirror.folder import (
    COPIES,
    Record,
    UploadedFile,
    find_local_folder,
    is_mirrored,
    list_files,
    read_version,
)
from service.mirror.lease import LEASE, parse_lease
from service.mirror.plan import find_folder, is_milestone, is_record, is_state, list_complete
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
    REPORT,
    STATUS,
    Run,
)
from service.yaml_text import parse_yaml

PARTS = ("config", "metrics", "status", "model", "records", "newest", "checkpoints", "report", "events")
ATTEMPTS = 5  # at a listing of which an object was removed before it was fetched
MAX_RECORD_BYTES = 64 << 20

Objects = Mapping[str, ObjectInfo]


def fetch_run(uri: Uri, parts: Collection[str] = ("config",)) -> Run:
    """Makes or refreshes a local copy of a run on a store, for those who read it.

    Only objects that have changed are fetched. What is fetched is consistent, also while the run is trained:
    every line of metrics belongs to an epoch of a checkpoint that is fetched or newer.

    Args:
        uri: Address of the run.
        parts: Names from `PARTS`: `config` (always: configuration, classes and the user's code), `metrics`,
            `status`, `model`, `records` (descriptions of all checkpoints), `newest` (the newest checkpoint),
            `checkpoints` (all of them, and the milestones), `report`, `events`.

    Returns:
        The copy; it must not be trained.

    Raises:
        ConfigError: There is no run at this address.
        StoreError: The store denies access or does not respond.
    """
    folder = find_local_folder(uri, COPIES)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder.with_name(f"{folder.name}.lock")):
        run = Run(folder)
        record = Record.load(folder)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _fetch_parts(uri, run, record, {"config", *parts})
                break
            except ObjectMissingError:
                if attempt == ATTEMPTS:
                    raise
            finally:
                record.save(folder)
    return run


def _fetch_parts(uri: Uri, run: Run, record: Record, parts: Collection[str]) -> None:
    # In the opposite order of the uploads: status, metrics, checkpoints.
    first = [name for part, name in (("status", STATUS), ("metrics", METRICS)) if part in parts]
    for name in first:
        info = stat(uri / name)
        if info is not None:
            _fetch_object(info, name, run, record)
    objects = _list_run(uri)
    check_exists(uri, objects)
    newest = sort_checkpoints(list_complete(objects))[-1:]
    wanted = {name for name in objects if _find_part(name, newest) & set(parts)}
    for name in sorted(wanted - {STATUS, METRICS}):
        _fetch_object(objects[name], name, run, record)
    _remove_vanished(run, record, objects)
    if "status" in parts:
        run.record_holder(_read_holder(uri))


def _find_part(name: str, newest: Collection[str]) -> set[str]:
    """Returns the parts that an object belongs to."""
    if name in (CONFIG, METADATA) or name.startswith(f"{CODE}/"):
        return {"config"}
    if is_record(name) or is_state(name):
        parts = {"checkpoints"}
        if find_folder(name) in newest:
            parts.add("newest")
        if is_record(name):
            parts.add("records")
        return parts
    folders = {REPORT: "report", EVENTS: "events", MILESTONES: "checkpoints"}
    files = {METRICS: "metrics", LAYERS: "metrics", STATUS: "status", MODEL: "model"}
    part = files.get(name) or folders.get(name.split("/")[0])
    return {part} if part else set()


def _remove_vanished(run: Run, record: Record, objects: Objects) -> None:
    """Removes files whose objects have been removed from the store."""
    for name in [name for name in record.files if name not in objects]:
        (run.path / name).unlink(missing_ok=True)
        del record.files[name]
        if is_record(name):
            shutil.rmtree(run.path / CHECKPOINTS / find_folder(name), ignore_errors=True)


def _read_holder(uri: Uri) -> str:
    """Returns the host that trains a run according to its lease; empty if nobody does."""
    try:
        lease = parse_lease(read_bytes(uri / LEASE, MAX_BYTES), uri / LEASE)
    except ObjectMissingError:
        return ""
    return "" if lease.is_released else lease.host


def find_remote_runs(root: Uri) -> Iterator[Uri]:
    """Finds the runs below a prefix, by their configurations; skips hidden folders and the inside of runs.

    Args:
        root: Prefix to search.
    """
    folders, objects = list_folder(root)
    if any(info.uri.name == CONFIG for info in objects):
        yield root
        return
    for name in folders:
        if not name.startswith("."):
            yield from find_remote_runs(root / name)


def pull_run(uri: Uri, run: Run, record: Record) -> list[str]:
    """Turns a local folder into the run on the store, as far as training needs it.

    Nobody may write the run at the same time. Of the checkpoints, the newest one that is whole is fetched;
    milestones, reports and TensorBoard events stay on the store.

    Args:
        uri: Address of the run.
        run: The local run directory, created if it is missing.
        record: What the folder knows about the run on the store; replaced, but not saved.

    Returns:
        Names of newer checkpoints that were skipped because they are damaged.

    Raises:
        ConfigError: There is no run at this address.
        StoreError: The store denies access or does not respond.
        OSError: The folder cannot be written.
    """
    objects = {name: info for name, info in _list_run(uri).items() if is_mirrored(name)}
    check_exists(uri, objects)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    damaged, newest = _pull_checkpoint(uri, objects, run, record)
    is_part = {name: is_record(name) or is_state(name) for name in objects}
    others = [name for name in objects if not is_part[name] and not _stays_on_store(name)]
    for name in others:
        _fetch_object(objects[name], name, run, record)
    for name in list_files(run.path):
        is_event = name.startswith(f"{EVENTS}/")
        if not (name in others or is_event or name.startswith(f"{CHECKPOINTS}/{newest}/")):
            (run.path / name).unlink()
    for path in run.checkpoints.iterdir():
        if path.name != newest:
            shutil.rmtree(path)
    record.files = {name: _describe(name, info, record) for name, info in objects.items()}
    record.epochs = len(run.metrics())
    return damaged


def _stays_on_store(name: str) -> bool:
    """Tells whether training does not need an object of a run to be resumed."""
    return name.startswith(f"{EVENTS}/") or is_milestone(name)


def _pull_checkpoint(uri: Uri, objects: Objects, run: Run, record: Record) -> tuple[list[str], str | None]:
    """Fetches the newest whole checkpoint; returns the names of the damaged ones before it, and its name."""
    damaged: list[str] = []
    for folder in reversed(sort_checkpoints(list_complete(objects))):
        names = [f"{CHECKPOINTS}/{folder}/{part}" for part in (STATE, CHECKPOINT_RECORD)]
        if all(_is_current(name, objects[name], run, record) for name in names):
            return damaged, folder
        try:
            description = read_bytes(uri / names[1], MAX_RECORD_BYTES)
            digest = CheckpointRecord.from_json(description).sha256
            with replace_directory(run.checkpoints / folder) as temporary:
                download(uri / names[0], temporary / STATE, objects[names[0]].size, digest)
                (temporary / CHECKPOINT_RECORD).write_bytes(description)
        except (CorruptObjectError, ValueError):
            damaged.append(folder)
            continue
        for name in names:
            record.files[name] = UploadedFile(objects[name].etag, read_version(run.path / name))
        return damaged, folder
    return damaged, None


def refresh_record(uri: Uri, run: Run, record: Record) -> None:
    """Brings a record up to date with the store, where this folder has the newest state of the run.

    A configuration that was edited on the store is fetched.

    Args:
        uri: Address of the run.
        run: The local run directory.
        record: What the folder knows about the run on the store; changed, but not saved.
    """
    objects = {name: info for name, info in _list_run(uri).items() if is_mirrored(name)}
    config = objects.get(CONFIG)
    known = record.files.get(CONFIG)
    if config and known and config.etag != known.etag and known.version == read_version(run.config_path):
        _fetch_object(config, CONFIG, run, record)
    record.files = {name: _describe(name, info, record) for name, info in objects.items()}
    record.epochs = read_bytes(uri / METRICS).count(b"\n") if METRICS in objects else 0


def list_remote_files(uri: Uri) -> list[str]:
    """Lists the names of the objects of a run, without hidden ones."""
    return [name for name in _list_run(uri) if not any(part.startswith(".") for part in name.split("/"))]


def _list_run(uri: Uri) -> dict[str, ObjectInfo]:
    return {info.uri.relative_to(uri): info for info in list_objects(uri)}


def read_config(location: Location) -> dict[str, Any] | None:
    """Reads the recorded configuration of a run, without fetching the run.

    Args:
        location: Local path or address of the run.

    Returns:
        The configuration as plain values; None if there is no run.

    Raises:
        ConfigError: The configuration is damaged.
        StoreError: The store denies access or does not respond.
    """
    place = location / CONFIG
    if not is_file(place):
        return None
    try:
        return dict(parse_yaml(read_file(place, MAX_TEXT_BYTES).decode()))
    except (yaml.YAMLError, TypeError, ValueError):
        raise ConfigError(
            "a configuration in YAML", f"run={location} ({CONFIG} is damaged)", "start a new run"
        ) from None


def check_exists(uri: Uri, names: Collection[str]) -> None:
    """Checks that there is a run among the objects below an address.

    Args:
        uri: Address of the run.
        names: Names of the objects below it.

    Raises:
        ConfigError: There is no run.
    """
    if CONFIG not in names:
        raise ConfigError(
            "a run directory", f"run={uri} (no {CONFIG})", "name the --out of a 'glassbox train'"
        )


def _describe(name: str, info: ObjectInfo, record: Record) -> UploadedFile:
    """Returns what is known about an object: its local version, if it is the one in the record."""
    known = record.files.get(name)
    is_same = known is not None and known.etag == info.etag and info.etag is not None
    return UploadedFile(info.etag, known.version if known and is_same else None)


def _is_current(name: str, info: ObjectInfo, run: Run, record: Record) -> bool:
    """Tells whether the local file equals an object."""
    version = read_version(run.path / name)
    return version is not None and _describe(name, info, record).version == version


def _fetch_object(info: ObjectInfo, name: str, run: Run, record: Record) -> None:
    """Downloads an object unless the local file equals it."""
    if _is_current(name, info, run, record):
        return
    path = run.path / Path(name)
    download(info.uri, path)
    record.files[name] = UploadedFile(info.etag, read_version(path))
