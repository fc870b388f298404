"""The output directory of a build: claimed by one builder at a time, and left complete, resumable or as it was."""

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
from pipelines.shards.task import ShardResult, load_result, read_rejections, report_write_errors
from pipelines.storage import lock_file, replace_file, sync, write_atomically

REJECTED = "rejected.jsonl"
WORK_FOLDER = ".building"  # inside the shard set, until it is complete


class BuildDirectory:
    """A claimed output directory.

    Shards are made in a directory of the build's own and moved to `out` when they are whole. A worker that outlives
    its driver therefore writes bytes that are the same anyway, or fails because that directory is gone.

    Attributes:
        out: The shard set.
        work: Where shards are made and where the marker of each stays until the end.
    """

    def __init__(self, out: Path, note: Mapping[str, Any]) -> None:
        self.out, self.work = out, out / WORK_FOLDER / note["digest"][:16]
        self.made_directory = bool(note["made_directory"])
        self.is_over = False  # nothing is left to resume

    def committed(self) -> Manifest | None:
        """The manifest, where an earlier start came as far as that."""
        if not (self.out / FILE_NAME).is_file():
            return None
        self.is_over = True
        return load_manifest(self.out)

    def load_result(self, plan: Sequence[PlannedShard]) -> Iterator[tuple[PlannedShard, ShardResult]]:
        """What earlier starts finished."""
        for planned in plan:
            if result := load_result(planned, self.out, self.work):
                yield planned, result

    def read_rejections(self, plan: Sequence[PlannedShard]) -> Iterator[str]:
        """A line of JSON for every candidate that was not taken, in the order of the plan; one shard's at a time in memory."""
        for planned in plan:
            yield from read_rejections(planned, self.work)

    def complete(self, manifest: Manifest, plan: Sequence[PlannedShard]) -> None:
        """Lists what was rejected, then commits the shard set.

        Raises:
            ConfigError: It cannot be written.
            DataError: A shard is not where the worker put it.
        """
        with report_write_errors(self.out):
            for file in (
                file for split in manifest.splits.values() for shard in split.shards for file in shard.files
            ):
                path = self.out / file.file
                if not path.is_file() or path.stat().st_size != file.bytes:
                    raise DataError(
                        "an output that every worker sees",
                        f"{path} (missing or cut)",
                        "choose a shared directory",
                    )
            with replace_file(self.out / REJECTED) as temporary, temporary.open("w", encoding="utf-8") as lines:
                lines.writelines(self.rejections(plan))
            sync(self.out)
            manifest.save(self.out)
        self.is_over = True

    def discard(self, plan: Sequence[PlannedShard]) -> None:
        """Removes the shards of the build; the rest goes with the claim."""
        stems = {Path(planned.file).stem for planned in plan}
        with report_write_errors(self.out):
            for path in self.out.iterdir():
                if path.name.split(".")[0] in stems:
                    path.unlink()
        self.is_over = True


@contextmanager
def lock_build_directory(out: Path, digest: str, about: Mapping[str, str]) -> Iterator[BuildDirectory]:
    """Claims an output directory for the length of a block; afterwards nothing is left in it of a build that is over.

    Args:
        out: Absolute path of the directory; made where it is missing.
        digest: What makes the build this one: equal digests give equal bytes.
        about: The parts of it by name, to tell builds apart in messages.

    Raises:
        ConfigError: `out` holds something else or an unfinished build of something else, another builder is at
            work there, or it cannot be written.
    """
    room, workplace = out / WORK_FOLDER, None
    busy = ConfigError(
        "an output that nobody is building",
        f"out={out} (another builder is at work)",
        "wait until it ends, or stop it",
    )
    try:
        with ExitStack() as stack:
            with report_write_errors(out):
                made = not out.exists()
                if not room.is_dir():
                    _check_empty(out)
                    room.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_file(room / "lock", busy))
                workplace = BuildDirectory(
                    out, _noted(out, {"digest": digest, "made_directory": made, "about": dict(about)})
                )
                workplace.work.mkdir(exist_ok=True)
                for path in workplace.work.glob(".tmp-*"):  # of writers that were killed
                    path.unlink(missing_ok=True)
            yield workplace
    finally:
        if (
            workplace and workplace.is_over
        ):  # the lock is free again: some file systems remove no directory with an open file in it
            _remove(room)
            if workplace.made_directory and not any(out.iterdir()):
                out.rmdir()


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(path.name != WORK_FOLDER for path in out.iterdir())):
        raise ConfigError(
            "an output that does not exist yet", f"out={out}", "choose another directory or remove it"
        )


def _noted(out: Path, note: dict[str, Any]) -> dict[str, Any]:
    """The note of the build that is claimed: this one's, or that of the earlier start that it continues."""
    path = out / WORK_FOLDER / "build.json"
    if not path.is_file():
        try:
            _check_empty(out)
        except ConfigError:
            _remove(out / WORK_FOLDER)
            raise
        write_atomically(path, json.dumps(note))
        return note
    earlier: dict[str, Any] = json.loads(path.read_bytes())
    if earlier["digest"] == note["digest"]:
        return earlier
    if (out / FILE_NAME).is_file():
        raise ConfigError(
            "an output that does not exist yet", f"out={out}", "choose another directory or remove it"
        )
    changed = ", ".join(name for name, value in note["about"].items() if earlier["about"].get(name) != value)
    received = f"out={out} (an unfinished build of another kind; what differs: {changed})"
    raise ConfigError(
        "an output of its own",
        received,
        "give the same source and options to finish that build, or remove the directory",
    )


def _remove(room: Path) -> None:
    """Removes the work directory, although a worker that outlived its driver may still put a file there."""
    for _ in range(50):
        shutil.rmtree(room, ignore_errors=True)
        if not room.exists():
            return
        time.sleep(0.1)
