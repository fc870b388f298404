"""The output of a build in an object store, leased by one builder at a time."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pipelines.errors import ConfigError
from pipelines.remote.lease import Lease, hold_lease
from pipelines.remote.ranges import map_ahead
from pipelines.remote.store import (
    ConflictError,
    ObjectMissingError,
    delete,
    list_objects,
    read_bytes,
    stat,
    upload,
    write_bytes,
)
from pipelines.remote.uri import Uri
from pipelines.shards.manifest import FILE_NAME, Manifest, load_manifest
from pipelines.shards.markers import Marker, ShardResult, get_marker_name, read_marker
from pipelines.shards.output import (
    DESCRIPTION_FILE,
    WORK_FOLDER,
    BuildDescription,
    StoreOutput,
    build_differing_error,
    build_occupied_error,
    build_refusal,
    parse_description,
    report_write_errors,
)
from pipelines.shards.plan import PlannedShard, ShardPlan
from pipelines.storage import MAX_TEXT_BYTES

LEASE_FILE = "lease"
REQUESTS = 16  # in flight at the same time

T = TypeVar("T")
U = TypeVar("U")


class StoreBuild:
    """The leased output of a build in an object store.

    Workers upload each complete shard, then its marker. The manifest is uploaded last.

    Args:
        out: URI of the shard set.
        digest: Identifies the build: equal digests give equal bytes.
        lease: Lease of this builder.

    Attributes:
        out: URI of the shard set.
        work: URI for the markers of this build.
        output: What workers need to know of the store.
        is_over: Whether nothing is left to resume.
    """

    def __init__(self, out: Uri, digest: str, lease: Lease) -> None:
        self.out = out
        self.work = out / WORK_FOLDER / digest[:16]
        self.output = StoreOutput(out, self.work)
        self.is_over = False
        self._lease = lease

    def check_lease(self) -> None:
        """Makes sure that no other builder has taken the output over.

        Raises:
            ConfigError: Another builder has, because this one could not renew its lease in time.
        """
        if self._lease.is_lost:
            raise build_refusal(self.out)

    def load_committed(self) -> Manifest | None:
        """Returns the manifest if an earlier start committed the shard set."""
        try:
            content = read_bytes(self.out / FILE_NAME)
        except ObjectMissingError:
            return None
        self.is_over = True
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FILE_NAME).write_bytes(content)
            return load_manifest(folder)

    def load_results(self, plan: ShardPlan) -> Iterator[tuple[PlannedShard, ShardResult]]:
        """Yields the shards that earlier starts completed, if their objects are still there."""
        names = {info.uri.name for info in list_objects(self.work)}
        if not names:
            return
        sizes = self._list_sizes()
        shards = (shard for shard in plan if get_marker_name(shard.file) in names)
        for planned_shard, marker in self._read_markers(shards):
            if marker is not None and _has_objects(marker.result, sizes):
                yield planned_shard, marker.result

    def read_markers(self, plan: ShardPlan) -> Iterator[tuple[PlannedShard, Marker]]:
        """Yields the marker of every shard, in the order of the plan.

        Raises:
            ConfigError: A shard or its marker is not in the store, although a worker wrote it.
        """
        sizes = self._list_sizes()
        for planned_shard, marker in self._read_markers(plan):
            if marker is None or not _has_objects(marker.result, sizes):
                received = f"{self.out / planned_shard.file} (missing or truncated)"
                raise ConfigError("every uploaded shard in the store", received, "start the build again")
            yield planned_shard, marker

    @contextmanager
    def open_commit_folder(self) -> Iterator[Path]:
        """Yields an empty local directory for the files that are uploaded last."""
        with report_write_errors(self.out), tempfile.TemporaryDirectory(prefix="glassbox-commit-") as folder:
            yield Path(folder)

    def commit(self, folder: Path) -> None:
        """Uploads the files of a folder, the manifest last, which commits the shard set.

        Raises:
            ConfigError: Another builder has taken the output over.
        """
        for path in sorted(folder.iterdir()):
            if path.name != FILE_NAME:
                upload(path, self.out / path.name)
        self.check_lease()
        upload(folder / FILE_NAME, self.out / FILE_NAME)
        self.is_over = True

    def discard(self, plan: ShardPlan) -> None:
        """Removes the shards of the build; the markers are removed when the lease is released."""
        _delete_all(uri for uri in _list_files(self.out) if plan.owns_file(uri.name))
        self.is_over = True

    def _list_sizes(self) -> dict[str, int]:
        objects = list_objects(self.out)
        return {info.uri.name: info.size for info in objects if info.uri.parent == self.out}

    def _read_markers(self, shards: Iterable[PlannedShard]) -> Iterator[tuple[PlannedShard, Marker | None]]:
        """Reads the markers of shards, several at the same time; None for one that is missing or damaged."""

        def read(planned_shard: PlannedShard) -> tuple[PlannedShard, Marker | None]:
            try:
                content = read_bytes(self.work / get_marker_name(planned_shard.file))
            except ObjectMissingError:
                return planned_shard, None
            return planned_shard, read_marker(io.BytesIO(content))

        return map_ahead(read, shards, REQUESTS)


@contextmanager
def lease_build(out: Uri, digest: str, about: Mapping[str, str]) -> Iterator[StoreBuild]:
    """Leases an output in a store for the length of a block, and cleans up after a build that is over.

    Args:
        out: URI of the shard set.
        digest: Identifies the build: equal digests give equal bytes.
        about: Parts of the build by name, so that messages can say how two builds differ.

    Raises:
        ConfigError: `out` holds something else or an unfinished different build, or another builder is at
            work there.
        GlassboxError: The store cannot be reached, or denies access.
    """
    check_prefix(out)
    build = None
    with hold_lease(out / WORK_FOLDER / LEASE_FILE, build_refusal(out)) as lease:
        _check_or_write_description(out, BuildDescription(digest=digest, about=dict(about)))
        build = StoreBuild(out, digest, lease)
        try:
            yield build
        finally:
            if build.is_over and not lease.is_lost:
                # The description goes last, so that an interrupted removal is continued by the next start.
                description = out / WORK_FOLDER / DESCRIPTION_FILE
                _delete_all(
                    info.uri
                    for info in list_objects(out / WORK_FOLDER)
                    if info.uri not in (description, lease.uri)
                )
                delete(description)


def check_prefix(out: Uri) -> None:
    """Makes sure that a build may start or resume below a URI.

    Raises:
        ConfigError: Something else is there, or nothing can be written there.
        GlassboxError: The store cannot be reached, or denies access.
    """
    if out.is_read_only:
        raise ConfigError(
            "a directory or an object store that can be written", f"out={out}", "write s3://, gs:// or az://"
        )
    if not out.key:
        received = f"out={out} (a whole bucket)"
        raise ConfigError("a shard set with a name inside the bucket", received, f"write {out}/NAME")
    if stat(out / WORK_FOLDER / DESCRIPTION_FILE) is None:
        _check_empty(out)


def _check_empty(out: Uri) -> None:
    if next(_list_files(out), None) is not None:
        raise build_occupied_error(out)


def _list_files(out: Uri) -> Iterator[Uri]:
    """Yields the objects of a shard set, without those in the work folder."""
    work_folder = f"{(out / WORK_FOLDER).key}/"
    for info in list_objects(out):
        if not info.uri.key.startswith(work_folder):
            yield info.uri


def _check_or_write_description(out: Uri, description: BuildDescription) -> None:
    """Writes the description of a build, or compares it with that of the earlier start that is resumed."""
    uri = out / WORK_FOLDER / DESCRIPTION_FILE
    try:
        earlier = parse_description(read_bytes(uri, MAX_TEXT_BYTES), uri)
    except ObjectMissingError:
        _check_empty(out)
        try:
            write_bytes(uri, description.model_dump_json().encode(), if_absent=True)
        except ConflictError:
            raise build_refusal(out) from None
        return
    if earlier.digest == description.digest:
        return
    if stat(out / FILE_NAME) is not None:
        raise build_occupied_error(out)
    raise build_differing_error(out, earlier, description)


def _has_objects(result: ShardResult, sizes: Mapping[str, int]) -> bool:
    return all(sizes.get(file.file) == file.bytes for file in result.shard.files)


def _delete_all(uris: Iterable[Uri]) -> None:
    for _ in map_ahead(delete, uris, REQUESTS):
        pass
