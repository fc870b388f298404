"""Runs and their reports, each in a directory or in a store: what a report job needs to know of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pipelines.errors import ConfigError
from pipelines.input.mixed_manifest import select_mix
from pipelines.remote.lease import Lease, hold_lease
from pipelines.remote.store import ObjectMissingError, list_folder, read_bytes, stat
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.storage import hash_json
from service.mirror.fetch import fetch_run, find_remote_runs
from service.report import lease as local_lease
from service.report.publish import PAGE, PICTURES, SUMMARY, VIEWS, read_page_manifest, read_remote_manifest
from service.report.record import is_report_record
from service.run_files import parse_status
from service.runs import CHECKPOINTS, CONFIG, LAYERS, METADATA, METRICS, MODEL, REPORT, STATUS, Run, find_runs

LEASE = ".report.lock"
# Parts of a run in a store that a report shows; checkpoints for the views of a training over time.
PARTS = ("config", "metrics", "status", "model", "checkpoints")


class ReportLease(Protocol):
    """Lease of a report that is rendered."""

    def renew(self, progress: str | None = None) -> None:
        """Publishes the progress; raises LeaseHeldError if another process has taken the lease over."""


@dataclass(frozen=True)
class ReportedRun:
    """A run, and where its report is published.

    Attributes:
        name: Name of the run, its path relative to the directory of all runs.
        location: Run directory, or URI of the run.
        report: Directory of the report, or its URI.
    """

    name: str
    location: Location
    report: Location

    @classmethod
    def from_run(cls, run: Run) -> ReportedRun:
        """Returns a run directory whose report is published in it."""
        return cls(run.path.name, run.path, run.report)

    @property
    def title(self) -> str:
        """Name of the run on its page."""
        return self.location.name

    @property
    def lease_path(self) -> Path | None:
        """File of the lease, in which others can read the progress; None if it is in a store."""
        return self.report.parent / LEASE if isinstance(self.report, Path) else None

    def fetch(self) -> Run:
        """Returns the run directory, or a local copy of what a report shows of a run in a store.

        Raises:
            ConfigError: There is no run.
            StoreError: The store denies access or does not respond.
        """
        if isinstance(self.location, Path):
            return Run(self.location)
        return fetch_run(self.location, PARTS)

    def read_state(self) -> str:
        """Returns the recorded state of the run; "not started" if there is none."""
        if isinstance(self.location, Path):
            status = Run(self.location).status()
        else:
            status = _read_remote_status(self.location / STATUS)
        return str(status.get("state", "not started"))

    def hash_inputs(self) -> dict[str, Any]:
        """Returns what identifies the run's content: digests, or the versions of the objects in a store.

        Raises:
            OSError: The model or the configuration does not exist.
        """
        if isinstance(self.location, Path):
            return Run(self.location).hash_contents()
        return hash_remote_contents(self.location)

    def read_published(self) -> dict[str, Any]:
        """Returns the manifest of the published report, or its summary in a store.

        Returns:
            The content, see `service.report.record`; empty without a report, or if the content is damaged.
        """
        if isinstance(self.report, Uri):
            content = read_remote_manifest(self.report / SUMMARY)
        else:
            content = read_page_manifest(self.report) if (self.report / PAGE).is_file() else {}
        return content if is_report_record(content) else {}

    def has_page(self, published: dict[str, Any]) -> bool:
        """Tells whether the page of a published report is complete; in a store, whether it exists.

        Args:
            published: Content of `read_published`.
        """
        if isinstance(self.report, Uri):
            return stat(self.report / PAGE) is not None
        if published["single_file"]:
            return (self.report / PAGE).is_file()
        files = {PAGE, *(entry["file"] for entry in [*published["views"], *published["pictures"]])}
        return files <= _list_files(self.report)

    @contextmanager
    def hold_lease(self) -> Iterator[ReportLease]:
        """Holds the lease of the report for the length of a block.

        Raises:
            LeaseHeldError: Another process renders this report.
            ConfigError: The lease cannot be written.
        """
        if isinstance(self.report, Path):
            _create_directory(self.report.parent)
            with local_lease.hold_lease(self.report.parent / LEASE) as held:
                yield held
            return
        refusal = local_lease.LeaseHeldError(
            "a report that no other process is rendering",
            f"{self.report} (rendered by another process)",
            "wait until it is finished; the lease of a dead job is taken over within a minute",
        )
        with hold_lease(self.report.parent / LEASE, refusal) as remote:
            yield _StoreLease(remote, refusal)


@dataclass(frozen=True)
class _StoreLease:
    """Lease of a report in a store; it publishes no progress."""

    lease: Lease
    refusal: local_lease.LeaseHeldError

    def renew(self, progress: str | None = None) -> None:
        """Raises the refusal if another process has taken the lease over."""
        if self.lease.is_lost:
            raise self.refusal


def find_reported_runs(root: Location, out: Location | None = None) -> list[ReportedRun]:
    """Finds the runs below a directory or prefix, sorted by name.

    Args:
        root: Directory or URI that holds runs, at any depth.
        out: Directory or URI for the reports, each in a folder with the name of its run; None to publish
            each in its run.

    Raises:
        StoreError: The bucket is missing, or the store denies access or does not respond.
    """
    locations: dict[str, Location] = {}
    if isinstance(root, Uri):
        for uri in find_remote_runs(root):
            locations[uri.relative_to(root) if uri != root else "."] = uri
    else:
        for run in find_runs(root):
            locations[str(run.path.relative_to(root))] = run.path
    return [
        ReportedRun(name, location, (location if out is None else _join(out, name)) / REPORT)
        for name, location in sorted(locations.items())
    ]


def find_shards(run: Run, override: Location | None = None) -> Location:
    """Finds the shard set of a run.

    Args:
        run: Run whose configuration names the shard set.
        override: Path or URI of the shard set, if it is no longer where the run was trained.
    """
    return parse_location(str(override or run.config().get("shards") or ""))


def find_shards_and_mix(run: Run, override: Location | None = None) -> tuple[Location, list[str]]:
    """Finds the shard set of a run, and the sets that it was trained on if they are a mix of several.

    Args:
        run: Run whose configuration names the sets; it is read once.
        override: Path or URI of the shard set, if it is no longer where the run was trained. A mix belongs to
            the one that the configuration names.

    Returns:
        Path or URI of the shard set, and the paths or URIs of the mixed sets: none without a mix.
    """
    config = run.config()
    shards = parse_location(str(override or config.get("shards") or ""))
    return shards, list(select_mix(config, shards).mix or ())


def find_home_link(name: str) -> str:
    """Returns the relative link from the report of a run to the index page of all runs."""
    depth = len(PurePosixPath(name).parts) + 1
    return "../" * depth + PAGE


def hash_remote_contents(uri: Uri) -> dict[str, Any]:
    """Returns the versions of everything in a run in a store that a report depends on; downloads nothing.

    Raises:
        FileNotFoundError: The model or the configuration does not exist.
        StoreError: The store denies access or does not respond.
    """
    folders, objects = list_folder(uri)
    tags = {info.uri.name: info.etag for info in objects}
    for name in (MODEL, CONFIG):
        if name not in tags:
            raise FileNotFoundError(f"{uri / name} does not exist")
    checkpoints = list_folder(uri / CHECKPOINTS)[0] if CHECKPOINTS in folders else []
    return {
        "model": tags[MODEL],
        "checkpoints": hash_json(checkpoints),
        "config": tags[CONFIG],
        "metadata": tags.get(METADATA),
        "metrics": tags.get(METRICS),
        "layers": tags.get(LAYERS),
        "status": tags.get(STATUS),
    }


def _list_files(report: Path) -> set[str]:
    """Lists the files of a report, such as `pictures/map-1.png`: one listing instead of a look at each."""
    files = set()
    for folder in ("", PICTURES, VIEWS):
        if not (report / folder).is_dir():
            continue
        prefix = f"{folder}/" if folder else ""
        with os.scandir(report / folder) as entries:
            files |= {prefix + entry.name for entry in entries if entry.is_file()}
    return files


def _create_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "a directory that can be written", f"{path}: {error.strerror}", "choose another --out"
        ) from None


def _join(location: Location, name: str) -> Location:
    return location if name == "." else location / name


def _read_remote_status(uri: Uri) -> dict[str, Any]:
    try:
        return parse_status(read_bytes(uri))
    except ObjectMissingError:
        return {}
