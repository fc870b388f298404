"""A source becomes a shard set: one Ray task per planned shard, the manifest last."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines.cluster import connected
from pipelines.errors import ConfigError, DataError, GlassboxError
from pipelines.shards.manifest import VERSION, Manifest, SplitManifest
from pipelines.shards.plan import PlannedShard, plan_shards
from pipelines.shards.task import ShardResult, build_shard, finished
from pipelines.sources import Source
from pipelines.spec import ShardSpec
from pipelines.storage import write_atomically

REJECTED = "rejected.jsonl"
WORK = ".building"  # inside the shard set, until it is complete

Progress = Callable[[int, int], None]


def build_shards(source: Source, out: Path, spec: ShardSpec, progress: Progress | None = None) -> Manifest:
    """Builds a shard set; the bytes depend on the source and `spec` alone, not on the number of workers.

    Every worker must see the source and `out` under the same path. A build that was interrupted goes on where it
    was when it is started again. Where the source's images cannot make a data set, nothing is left at `out`.

    Args:
        source: Where the images come from.
        out: Directory to make.
        spec: How shards are made.
        progress: Called with the number of images done and of all images.

    Returns:
        The manifest, as saved.

    Raises:
        ConfigError: `out` holds something, or cannot be written.
        DataError: No image is usable, train has images of fewer than two classes, or the source broke.
    """
    plan = plan_shards(source.counts(), spec)
    if not plan:
        raise DataError("at least one image", f"source={source.name}: images=0", "check the path")
    with _environment(out):
        build = _Build(Path(out).absolute(), plan, _digest(source, spec, plan))
        try:
            results = _run(source, spec, build, progress or (lambda done, total: None))
            manifest = _manifest(source, spec, plan, results)
        except GlassboxError:
            build.discard()
            raise
        build.complete(manifest, results)
    return manifest


@contextmanager
def _environment(out: Path) -> Iterator[None]:
    """A full disk or a missing permission is the user's to mend; what is finished stays for the next start."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        fix = "free space or change permissions and run the same command again, or choose another place"
        raise ConfigError("an output directory that can be written", f"out={out}: {reason} ({error.filename})", fix) from None


class _Build:
    """The output directory of a build in progress: claimed, and later completed or discarded."""

    def __init__(self, out: Path, plan: Sequence[PlannedShard], digest: str) -> None:
        self.out, self.plan, self.work = out, plan, out / WORK
        self._note = self.work / "plan.json"
        if self._note.is_file():
            note = json.loads(self._note.read_bytes())
            if note["digest"] != digest:
                fix = "finish that build, or remove the directory"
                raise ConfigError("an output of its own", f"out={out} (an unfinished build of another source or with other options)", fix)
            self._is_new = note["made_directory"]
            self._sweep()
            return
        if out.exists() and (not out.is_dir() or any(path.name != WORK for path in out.iterdir())):
            raise ConfigError("an output that does not exist yet", f"out={out}", "choose another directory or remove it")
        self._is_new = not out.exists()
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomically(self._note, json.dumps({"digest": digest, "made_directory": self._is_new}))

    def complete(self, manifest: Manifest, results: Sequence[ShardResult]) -> None:
        """Lists what was rejected, then commits the shard set."""
        for shard in (shard for split in manifest.splits.values() for shard in split.shards):
            path = self.out / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise DataError("an output that every worker sees", f"{path} (a worker wrote it elsewhere)", "choose a shared directory")
        lines = (json.dumps({"id": name, "reason": reason}, ensure_ascii=False) for result in results for name, reason in result.rejected)
        write_atomically(self.out / REJECTED, "".join(f"{line}\n" for line in lines))
        manifest.save(self.out)
        for path in self.work.iterdir():
            if path != self._note:
                path.unlink()
        shutil.rmtree(self.work)  # the note last: a kill in between leaves a build that only has to be started again

    def discard(self) -> None:
        """Removes what the build wrote, and the directory if the build made it."""
        self._sweep()
        for planned in self.plan:
            (self.out / planned.file).unlink(missing_ok=True)
        shutil.rmtree(self.work)
        if self._is_new:
            self.out.rmdir()

    def _sweep(self) -> None:
        """Removes what writers that were killed left half-done."""
        for path in (*self.out.glob(".tmp-*"), *self.work.glob(".tmp-*")):
            path.unlink()


def _digest(source: Source, spec: ShardSpec, plan: Sequence[PlannedShard]) -> str:
    parts: list[Any] = [VERSION, source.fingerprint(), source.classes, spec, plan]
    return hashlib.sha256(json.dumps(parts, default=BaseModel.model_dump).encode()).hexdigest()


def _run(source: Source, spec: ShardSpec, build: _Build, progress: Progress) -> list[ShardResult]:
    """Builds every shard that is not there yet; the results in the order of the plan."""
    plan = build.plan
    results = {index: result for index, planned in enumerate(plan) if (result := finished(planned, build.out, build.work))}
    total = sum(planned.stop - planned.start for planned in plan)
    done = sum(plan[index].stop - plan[index].start for index in results)
    progress(done, total)
    missing = [index for index in range(len(plan)) if index not in results]
    with connected(), closing(_built(source, spec, build, missing)) as built:
        for index, result in built:
            results[index] = result
            done += plan[index].stop - plan[index].start
            progress(done, total)
    return [results[index] for index in range(len(plan))]


def _built(source: Source, spec: ShardSpec, build: _Build, missing: Sequence[int]) -> Generator[tuple[int, ShardResult], None, None]:
    """Runs a bounded number of tasks at a time, and yields (place in the plan, result) as they end."""
    import ray

    task, shared, waiting = ray.remote(build_shard), ray.put(source), deque(missing)
    limit = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
    running: dict[Any, int] = {}  # task -> place in the plan
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                index = waiting.popleft()
                running[task.remote(shared, build.plan[index], spec, build.out, build.work)] = index
            (ready, *_), _ = ray.wait(list(running))
            yield running.pop(ready), ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        _stop(running)


def _stop(running: Collection[Any]) -> None:
    """Cancels the tasks that still run, and waits until they have written their last."""
    import ray

    for reference in running:
        ray.cancel(reference)
    if running:
        ray.wait(list(running), num_returns=len(running), timeout=60)


def _manifest(source: Source, spec: ShardSpec, plan: Sequence[PlannedShard], results: Sequence[ShardResult]) -> Manifest:
    """Adds the results up.

    Raises:
        DataError: Too little is usable.
    """
    groups: dict[str, list[ShardResult]] = {}
    for planned, result in zip(plan, results, strict=True):
        groups.setdefault(planned.split, []).append(result)
    splits = {name: _split(group) for name, group in groups.items() if any(result.shard.rows for result in group)}
    counts = splits["train"].class_counts if "train" in splits else (0,) * len(source.classes)
    rejected = [entry for result in results for entry in result.rejected]
    if sum(map(bool, counts)) < 2:
        found = ", ".join(f"{name}={count}" for name, count in zip(source.classes, counts, strict=True))
        reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3]) or "none"
        received = f"source={source.name}: usable images in train: {found}; rejected={len(rejected)} ({reasons})"
        raise DataError("usable train images of at least two classes", received, "repair the images, or choose another source")
    return Manifest(
        version=VERSION,
        format="arrow",
        encoding="jpeg, png",
        store_size=spec.store_size,
        source=source.name,
        fingerprint=source.fingerprint(),
        classes=source.classes,
        splits=splits,
        rejected=len(rejected),
    )


def _split(results: Sequence[ShardResult]) -> SplitManifest:
    channels = zip(*(result.histogram for result in results), strict=True)
    red, green, blue = (_moments([sum(counts) for counts in zip(*channel, strict=True)]) for channel in channels)
    return SplitManifest(
        shards=tuple(result.shard for result in results if result.shard.rows),
        class_counts=tuple(map(sum, zip(*(result.class_counts for result in results), strict=True))),
        mean=(red[0], green[0], blue[0]),
        std=(red[1], green[1], blue[1]),
    )


def _moments(histogram: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of whole values 0 to 255, from how often each occurs; exact up to the last rounding."""
    pixels = sum(histogram)
    total = sum(value * count for value, count in enumerate(histogram))
    squares = sum(value * value * count for value, count in enumerate(histogram))
    return total / pixels, math.sqrt(pixels * squares - total * total) / pixels
