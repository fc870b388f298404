"""A source becomes a shard set: planned, built by workers shard by shard, committed by the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

from pipelines.errors import ConfigError, DataError, GlassboxError
from pipelines.records import Rejected
from pipelines.shards.build_directory import BuildDirectory, lock_build_directory
from pipelines.shards.manifest import VERSION, Manifest
from pipelines.shards.plan import plan_shards
from pipelines.shards.task import prepare_examples
from pipelines.shards.totals import ShardSetTotals
from pipelines.shards.workers import build_on_workers, start_workers
from pipelines.sources import Source
from pipelines.spec import ShardSpec
from pipelines.storage import hash_json

SAMPLE = 64  # images that `shard_mb` is judged by

Progress = Callable[[int, int], None]


def build_shards(
    source: Source,
    out: Path,
    spec: ShardSpec,
    progress: Progress | None = None,
    workers: int | None = None,
    reopen: Callable[[], Source] | None = None,
) -> Manifest:
    """Builds a shard set; the bytes depend on the source and `spec` alone, not on the number of workers.

    Every worker must see the source and `out` under the same path. A build that was interrupted, by a kill or by
    an error, goes on where it was when it is started again. Where the source cannot make a data set, nothing is
    left at `out`.

    Args:
        source: Where the images come from.
        out: Directory to make.
        spec: How shards are made.
        progress: Called with the number of images done and of all images: first when the workers are ready, then
            after every shard.
        workers: Shards in work at a time, at most; None for one a CPU of the cluster.
        reopen: Opens the source once more at the end; where its fingerprint is another then, nothing is committed.

    Returns:
        The manifest, as saved.

    Raises:
        ConfigError: The options make no sense together, `out` holds something or cannot be written, another
            builder is at work there, or the cluster failed.
        DataError: No image is usable, train has images of fewer than two classes, or the source broke or changed.
    """
    _check(spec, workers)
    plan, fingerprint = plan_shards(source.counts(), _sized(source, spec)), source.fingerprint()
    if not plan:
        raise DataError("at least one image", f"source={source.name}: images=0", "check the path")
    about = {"the content of the source": fingerprint, "the options": spec.model_dump_json()}
    with lock_build_directory(
        out.absolute(),
        hash_json([VERSION, *about.values(), source.classes, [p.model_dump() for p in plan]]),
        about,
    ) as workplace:
        if manifest := workplace.committed():
            return manifest
        tally = ShardSetTotals(plan, len(source.classes))
        try:
            _run(source, spec, workplace, tally, progress or (lambda done, total: None), workers)
        except GlassboxError:
            if not tally.done:  # otherwise the next start goes on from there
                workplace.discard(plan)
            raise
        try:
            _check_unchanged(source.name, fingerprint, reopen)
            manifest = _manifest(source, spec, workplace, tally)
        except GlassboxError:
            workplace.discard(plan)
            raise
        workplace.complete(manifest, plan)
    return manifest


def _check(spec: ShardSpec, workers: int | None) -> None:
    """Refuses options that make no sense, or none together."""
    if spec.check == "header" and (spec.encoding != "as-found" or spec.store_size):
        received = f"check=header encoding={spec.encoding} store_size={spec.store_size}"
        raise ConfigError(
            "images as found where only headers are checked",
            received,
            "use check=decode, or store images as found",
        )
    if spec.shard_mb is not None and "shard_rows" in spec.model_fields_set:
        raise ConfigError(
            "one size of shards",
            f"shard_mb={spec.shard_mb} shard_rows={spec.shard_rows}",
            "leave one of them out",
        )
    if workers is not None and workers < 1:
        raise ConfigError(
            "at least one worker", f"workers={workers}", "give a number from 1, or leave it out for all CPUs"
        )


def _sized(source: Source, spec: ShardSpec) -> ShardSpec:
    """The spec with the rows that make shards of `shard_mb`, by the mean size of the first images as they are stored."""
    count = min(source.counts().get("train", 0), SAMPLE)
    if spec.shard_mb is None or not count:
        return spec
    sizes = [
        len(row[0].image)
        for row in prepare_examples(source, "train", 0, count, spec)
        if not isinstance(row, Rejected)
    ]
    rows = int(spec.shard_mb * 1e6 * len(sizes) / sum(sizes)) if sizes else spec.shard_rows
    return spec.model_copy(update={"shard_rows": max(rows, 1)})


def _run(
    source: Source,
    spec: ShardSpec,
    workplace: BuildDirectory,
    tally: ShardSetTotals,
    progress: Progress,
    workers: int | None,
) -> None:
    """Builds every shard that is not there yet, and adds up what all of them hold."""
    for planned, result in workplace.finished(tally.plan):
        tally.add(planned, result)
    missing = tally.missing
    if not missing:
        progress(tally.done, tally.total)
        return
    with start_workers(source, spec, (workplace.out, workplace.work), workers) as order:
        progress(tally.done, tally.total)
        with closing(build_on_workers(order, missing, workers)) as results:  # cancels what still runs
            for planned, result in results:
                tally.add(planned, result)
                progress(tally.done, tally.total)


def _check_unchanged(name: str, fingerprint: str, reopen: Callable[[], Source] | None) -> None:
    """What was read while a source changed may be neither its old nor its new content.

    Raises:
        DataError: It has another fingerprint than at the start.
    """
    if reopen and reopen().fingerprint() != fingerprint:
        fix = "build again when nothing changes it any more"
        raise DataError(
            "a source that stays as it is while it is read",
            f"source={name} (changed since the build began)",
            fix,
        )


def _manifest(source: Source, spec: ShardSpec, workplace: BuildDirectory, tally: ShardSetTotals) -> Manifest:
    """Describes the finished shards.

    Raises:
        DataError: Too little is usable.
    """
    splits = tally.splits()
    counts = splits["train"].class_counts if "train" in splits else (0,) * len(source.classes)
    if sum(map(bool, counts)) < 2:
        found = ", ".join(f"{name}={count}" for name, count in zip(source.classes, counts, strict=True))
        first = map(json.loads, islice(workplace.rejections(tally.plan), 3))
        reasons = "; ".join(f"{entry['id']}: {entry['reason']}" for entry in first) or "none"
        received = (
            f"source={source.name}: usable images in train: {found}; rejected={tally.rejected} ({reasons})"
        )
        raise DataError(
            "usable train images of at least two classes",
            received,
            "repair the images, or choose another source",
        )
    return Manifest(
        version=VERSION,
        format=spec.format,
        encoding=spec.encoding,
        store_size=spec.store_size,
        source=source.name,
        fingerprint=source.fingerprint(),
        classes=source.classes,
        splits=splits,
        rejected=tally.rejected,
    )
