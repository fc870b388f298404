"""The output directory of a build, locked by one builder at a time."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.shards.manifest import FILE_NAME, Manifest, load_manifest
from pipelines.shards.markers import Marker, ShardResult, get_marker_name, read_marker, read_result
from pipelines.shards.output import (
    DESCRIPTION_FILE,
    WORK_FOLDER,
    BuildDescription,
    FolderOutput,
    build_damaged_error,
    build_differing_error,
    build_occupied_error,
    build_refusal,
    parse_description,
    report_write_errors,
)
from pipelines.shards.plan import PlannedShard, ShardPlan
from pipelines.storage import lock_file, read_bounded, remove_folder, sync, write_atomically

COMMIT_FOLDER = "commit"  # in the work directory: the files that are written last


class BuildDirectory:
    """The locked output directory of a build.

    Shards are written to a work directory of this build and moved to `out` when they are complete. A worker
    that outlives its driver therefore either writes the same bytes, or fails because that directory is gone.

    Args:
        out: Directory of the shard set.
        description: Content of `build.json`.

    Attributes:
        out: Directory of the shard set.
        work: Directory for shards in progress, and for the marker of each shard until the build is complete.
        output: What workers need to know of the directory.
        made_directory: Whether the build created `out`.
        is_over: Whether nothing is left to resume.
    """

    def __init__(self, out: Path, description: BuildDescription) -> None:
        self.out = out
        self.work = out / WORK_FOLDER / description.digest[:16]
        self.output = FolderOutput(out, self.work)
        self.made_directory = description.made_directory
        self.is_over = False

    def check_lease(self) -> None:
        """Does nothing: the lock of a directory cannot be lost."""

    def load_committed(self) -> Manifest | None:
        """Returns the manifest if an earlier start committed the shard set."""
        if not (self.out / FILE_NAME).is_file():
            return None
        self.is_over = True
        return load_manifest(self.out)

    def load_results(self, plan: ShardPlan) -> Iterator[tuple[PlannedShard, ShardResult]]:
        """Yields the shards that earlier starts completed, if their files are still there."""
        for planned_shard in plan:
            marker = self._open_marker(planned_shard)
            result = None if marker is None else read_result(marker)
            if result is not None and self._has_files(result):
                yield planned_shard, result

    def read_markers(self, plan: ShardPlan) -> Iterator[tuple[PlannedShard, Marker]]:
        """Yields the marker of every shard, in the order of the plan.

        Raises:
            ConfigError: A shard or its marker is not in the directory, although a worker wrote it.
        """
        for planned_shard in plan:
            file = self._open_marker(planned_shard)
            marker = None if file is None else read_marker(file)
            if marker is None or not self._has_files(marker.result):
                raise ConfigError(
                    "an output directory that every worker sees",
                    f"{self.out / planned_shard.file} (missing or truncated)",
                    "choose a shared directory",
                )
            yield planned_shard, marker

    @contextmanager
    def open_commit_folder(self) -> Iterator[Path]:
        """Yields an empty directory for the files that are written last."""
        folder = self.work / COMMIT_FOLDER
        with report_write_errors(self.out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder

    def commit(self, folder: Path) -> None:
        """Moves the files of a folder into the shard set, the manifest last, which commits it."""
        names = sorted(path.name for path in folder.iterdir() if path.name != FILE_NAME)
        for name in names:
            sync(folder / name)
            os.replace(folder / name, self.out / name)
        sync(self.out)
        os.replace(folder / FILE_NAME, self.out / FILE_NAME)
        sync(self.out)
        self.is_over = True

    def discard(self, plan: ShardPlan) -> None:
        """Removes the shards of the build; the work folder is removed when the lock is released."""
        with report_write_errors(self.out), os.scandir(self.out) as entries:
            for entry in entries:
                if plan.owns_file(entry.name):
                    os.unlink(entry.path)
        self.is_over = True

    def _open_marker(self, planned_shard: PlannedShard) -> io.BytesIO | None:
        """Reads the marker of a shard; None if it is missing, cannot be read, or is unreasonably large."""
        try:
            return io.BytesIO(read_bounded(self.work / get_marker_name(planned_shard.file)))
        except (OSError, ValueError):
            return None

    def _has_files(self, result: ShardResult) -> bool:
        try:
            return all((self.out / file.file).stat().st_size == file.bytes for file in result.shard.files)
        except OSError:
            return False


@contextmanager
def lock_build_directory(out: Path, digest: str, about: Mapping[str, str]) -> Iterator[BuildDirectory]:
    """Locks an output directory for the length of a block, and cleans up after a build that is over.

    Args:
        out: Absolute path of the directory; created if it is missing.
        digest: Identifies the build: equal digests give equal bytes.
        about: Parts of the build by name, so that messages can say how two builds differ.

    Raises:
        ConfigError: `out` holds something else or an unfinished different build, another builder is at work
            there, or it cannot be written.
    """
    work_folder = out / WORK_FOLDER
    directory = None
    try:
        with ExitStack() as stack:
            with report_write_errors(out):
                is_new = not out.exists()
                if not work_folder.is_dir():
                    check_directory(out)
                    work_folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_file(work_folder / "lock", build_refusal(out)))
                description = BuildDescription(digest=digest, about=dict(about), made_directory=is_new)
                directory = BuildDirectory(out, _load_or_write_description(out, description))
                directory.work.mkdir(exist_ok=True)
                for path in directory.work.glob(".tmp-*"):  # left by writers that were killed
                    path.unlink(missing_ok=True)
            yield directory
    finally:
        # After the lock is released: some file systems remove no directory with an open file in it.
        if directory is not None and directory.is_over:
            remove_folder(work_folder)  # a worker may have outlived its driver
            if directory.made_directory and not any(out.iterdir()):
                out.rmdir()


def check_directory(out: Path) -> None:
    """Makes sure, without locking it, that a build may start or resume in a directory.

    Raises:
        ConfigError: Something else is there.
    """
    if not (out / WORK_FOLDER).is_dir():
        _check_empty(out)


def _check_empty(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or any(path.name != WORK_FOLDER for path in out.iterdir()):
        raise build_occupied_error(out)


def _load_or_write_description(out: Path, description: BuildDescription) -> BuildDescription:
    """Returns the description of the earlier start that is resumed, else writes and returns the given one.

    Raises:
        ConfigError: The earlier start is another build, or its description is damaged.
    """
    path = out / WORK_FOLDER / DESCRIPTION_FILE
    if not os.path.lexists(path):
        try:
            _check_empty(out)
        except ConfigError:
            remove_folder(out / WORK_FOLDER)
            raise
        write_atomically(path, description.model_dump_json())
        return description

    earlier = _read_description(path)
    if earlier.digest == description.digest:
        return earlier
    if (out / FILE_NAME).is_file():
        raise build_occupied_error(out)
    raise build_differing_error(out, earlier, description)


def _read_description(path: Path) -> BuildDescription:
    try:
        content = read_bounded(path)
    except (OSError, ValueError):
        raise build_damaged_error(path) from None
    return parse_description(content, path)
