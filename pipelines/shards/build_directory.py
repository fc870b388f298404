"""The output directory of a build, locked by one builder at a time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, DataError
from pipelines.shards.manifest import FILE_NAME, Manifest, load_manifest
from pipelines.shards.plan import PlannedShard
from pipelines.shards.rejections import REJECTED_FILE
from pipelines.shards.task import ShardResult, load_result, read_rejections, report_write_errors
from pipelines.storage import lock_file, replace_file, sync, write_atomically

WORK_FOLDER = ".building"  # inside the shard set, until it is complete
REMOVE_ATTEMPTS = 50
REMOVE_SECONDS = 0.1  # wait between two attempts


class BuildDirectory:
    """The locked output directory of a build.

    Shards are written to a work directory of this build and moved to `out` when they are complete. A worker
    that outlives its driver therefore either writes the same bytes, or fails because that directory is gone.

    Args:
        out: Directory of the shard set.
        description: Content of `build.json`: `digest` of the build, `made_directory`, and `about`.

    Attributes:
        out: Directory of the shard set.
        work: Directory for shards in progress, and for the marker of each shard until the build is complete.
        made_directory: Whether the build created `out`.
        is_over: Whether nothing is left to resume.
    """

    def __init__(self, out: Path, description: Mapping[str, Any]) -> None:
        self.out = out
        self.work = out / WORK_FOLDER / description["digest"][:16]
        self.made_directory = bool(description["made_directory"])
        self.is_over = False

    def load_committed(self) -> Manifest | None:
        """Returns the manifest if an earlier start committed the shard set."""
        if not (self.out / FILE_NAME).is_file():
            return None
        self.is_over = True
        return load_manifest(self.out)

    def load_results(self, plan: Sequence[PlannedShard]) -> Iterator[tuple[PlannedShard, ShardResult]]:
        """Yields the shards that earlier starts completed."""
        for planned_shard in plan:
            result = load_result(planned_shard, self.out, self.work)
            if result is not None:
                yield planned_shard, result

    def read_rejections(self, plan: Sequence[PlannedShard]) -> Iterator[str]:
        """Yields a line of JSON for every rejected candidate, in the order of the plan."""
        for planned_shard in plan:
            yield from read_rejections(planned_shard, self.work)

    def commit(self, manifest: Manifest, plan: Sequence[PlannedShard]) -> None:
        """Writes the list of rejected images, then the manifest, which commits the shard set.

        Raises:
            ConfigError: A file cannot be written.
            DataError: A shard is not in the directory, although a worker wrote it.
        """
        with report_write_errors(self.out):
            self._check_files(manifest)
            with (
                replace_file(self.out / REJECTED_FILE) as temporary,
                temporary.open("w", encoding="utf-8") as lines,
            ):
                lines.writelines(self.read_rejections(plan))
            sync(self.out)
            manifest.save(self.out)
        self.is_over = True

    def discard(self, plan: Sequence[PlannedShard]) -> None:
        """Removes the shards of the build; the work folder is removed when the lock is released."""
        stems = {Path(planned_shard.file).stem for planned_shard in plan}
        with report_write_errors(self.out):
            for path in self.out.iterdir():
                if path.name.split(".")[0] in stems:
                    path.unlink()
        self.is_over = True

    def _check_files(self, manifest: Manifest) -> None:
        for split in manifest.splits.values():
            for shard in split.shards:
                for file in shard.files:
                    path = self.out / file.file
                    if not path.is_file() or path.stat().st_size != file.bytes:
                        raise DataError(
                            "an output directory that every worker sees",
                            f"{path} (missing or truncated)",
                            "choose a shared directory",
                        )


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
    refusal = ConfigError(
        "an output directory without another builder",
        f"out={out} (another builder is at work)",
        "wait until it ends, or stop it",
    )
    try:
        with ExitStack() as stack:
            with report_write_errors(out):
                is_new = not out.exists()
                if not work_folder.is_dir():
                    _check_empty(out)
                    work_folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_file(work_folder / "lock", refusal))
                description = {"digest": digest, "made_directory": is_new, "about": dict(about)}
                directory = BuildDirectory(out, _load_or_write_description(out, description))
                directory.work.mkdir(exist_ok=True)
                for path in directory.work.glob(".tmp-*"):  # left by writers that were killed
                    path.unlink(missing_ok=True)
            yield directory
    finally:
        # After the lock is released: some file systems remove no directory with an open file in it.
        if directory is not None and directory.is_over:
            _remove(work_folder)
            if directory.made_directory and not any(out.iterdir()):
                out.rmdir()


def check_output(out: Path) -> None:
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
        raise _build_occupied_error(out)


def _build_occupied_error(out: Path) -> ConfigError:
    return ConfigError(
        "an output that does not exist yet", f"out={out}", "choose another directory or remove it"
    )


def _load_or_write_description(out: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of the earlier start that is resumed, else writes and returns the given one."""
    path = out / WORK_FOLDER / "build.json"
    if not path.is_file():
        try:
            _check_empty(out)
        except ConfigError:
            _remove(out / WORK_FOLDER)
            raise
        write_atomically(path, json.dumps(description))
        return description

    earlier: dict[str, Any] = json.loads(path.read_bytes())
    if earlier["digest"] == description["digest"]:
        return earlier
    if (out / FILE_NAME).is_file():
        raise _build_occupied_error(out)
    about = description["about"]
    changed = [name for name, value in about.items() if earlier["about"].get(name) != value]
    raise ConfigError(
        "an output directory of its own",
        f"out={out} (an unfinished build, which differs: {', '.join(changed)})",
        "repeat the source and options of that build to finish it, or remove the directory",
    )


def _remove(work_folder: Path) -> None:
    """Removes the work folder, into which a worker that outlived its driver may still be writing."""
    for _ in range(REMOVE_ATTEMPTS):
        shutil.rmtree(work_folder, ignore_errors=True)
        if not work_folder.exists():
            return
        time.sleep(REMOVE_SECONDS)
