"""Builds a shard set from a source: plans it, builds its shards on workers, and commits the manifest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

from pipelines.errors import ConfigError, DataError, GlassboxError
from pipelines.records import Rejected
from pipelines.shards.build_directory import BuildDirectory, check_output, lock_build_directory
from pipelines.shards.images import CLIPPED, DARK, FULL, MAX_VALUE, find_deep_maximum, parse_levels
from pipelines.shards.manifest import VERSION, Manifest
from pipelines.shards.plan import plan_shards
from pipelines.shards.task import prepare_examples
from pipelines.shards.totals import ShardSetTotals
from pipelines.shards.workers import build_on_workers, start_workers
from pipelines.sources import Source
from pipelines.sources.classes import build_empty_class_error
from pipelines.sources.holdout import hold_out
from pipelines.sources.splits import join_names
from pipelines.spec import ShardSpec
from pipelines.storage import hash_json

SAMPLE = 64  # images from which the rows of `shard_mb` are estimated
SHOWN_REJECTIONS = 3  # in an error message

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


def build_shards(
    source: Source,
    out: Path,
    spec: ShardSpec,
    progress: Progress | None = None,
    workers: int | None = None,
    reopen: Callable[[], Source] | None = None,
) -> Manifest:
    """Builds a shard set; the bytes depend on the source and `spec` only, not on the number of workers.

    Every worker must see the source and `out` under the same path. A build that was interrupted by a kill
    or an error resumes when it is started again with the same arguments. If the source is unusable, `out` is
    removed again.

    Args:
        source: Source of the images.
        out: Directory to create.
        spec: Options of the shard set.
        progress: Called with the number of images done and in total: first when the workers are ready, then
            after every shard.
        workers: Largest number of shards built at a time; None for one per CPU of the cluster.
        reopen: Opens the source again at the end. If its fingerprint differs by then, nothing is committed.

    Returns:
        The manifest of the shard set, as saved.

    Raises:
        ConfigError: The options contradict each other, `out` is occupied or cannot be written, another
            builder is at work there, or the cluster failed.
        DataError: No image is usable, `train` has images of fewer than two classes, or the source failed or
            changed.
    """
    check_request(out, spec, workers)
    fingerprint = source.fingerprint()  # of the source as `reopen` opens it, not of its divided splits
    source = hold_out(source, spec.validation)
    spec, level_notes = _resolve_levels(source, spec)
    plan = plan_shards(source.counts(), _resolve_shard_rows(source, spec))
    if not plan:
        raise DataError("at least one image", f"source={source.name}: images=0", "check the path")
    about = {"the content of the source": fingerprint, "the options": spec.model_dump_json()}
    shards = [planned_shard.model_dump() for planned_shard in plan]
    digest = hash_json([VERSION, *about.values(), source.classes, shards])
    with lock_build_directory(out.absolute(), digest, about) as directory:
        committed = directory.load_committed()
        if committed is not None:
            return committed

        totals = ShardSetTotals(plan, len(source.classes))
        try:
            _build_missing_shards(source, spec, directory, totals, progress or _ignore_progress, workers)
        except GlassboxError:
            if not totals.candidates_done:  # otherwise, the next start resumes from the finished shards
                directory.discard(plan)
            raise
        try:
            _check_unchanged(source.name, fingerprint, reopen)
            manifest = _build_manifest(source, fingerprint, spec, directory, totals, level_notes)
        except GlassboxError:
            directory.discard(plan)
            raise
        directory.commit(manifest, plan)
    _log_warnings(manifest)
    return manifest


def _ignore_progress(done: int, total: int) -> None:
    pass


def check_request(out: Path, spec: ShardSpec, workers: int | None = None) -> None:
    """Checks what can be checked before the source is opened, which may take long.

    Args:
        out: Directory to create.
        spec: Options of the shard set.
        workers: Largest number of shards built at a time; None for one per CPU of the cluster.

    Raises:
        ConfigError: The options contradict each other, or `out` is occupied.
    """
    if spec.check == "header" and (spec.encoding != "as-found" or spec.store_size):
        raise ConfigError(
            "images stored as found where only headers are checked",
            f"check=header encoding={spec.encoding} store_size={spec.store_size}",
            "use check=decode, or store images as found",
        )
    if spec.shard_mb is not None and "shard_rows" in spec.model_fields_set:
        raise ConfigError(
            "one size of shards",
            f"shard_mb={spec.shard_mb} shard_rows={spec.shard_rows}",
            "leave one of them out",
        )
    if spec.levels not in ("auto", FULL):
        low, high = parse_levels(spec.levels)
        if not low < high <= MAX_VALUE:
            raise ConfigError(
                f"levels MIN:MAX with 0 <= MIN < MAX <= {MAX_VALUE}",
                f"levels={spec.levels}",
                "write --levels 0:4095 for 12-bit data, for example",
            )
    if workers is not None and workers < 1:
        raise ConfigError(
            "at least one worker", f"workers={workers}", "give a number from 1, or leave it out for all CPUs"
        )
    check_output(out)


def _resolve_shard_rows(source: Source, spec: ShardSpec) -> ShardSpec:
    """Replaces `shard_mb` by the number of rows that gives this size, estimated from the first images."""
    count = min(source.counts().get("train", 0), SAMPLE)
    if spec.shard_mb is None or not count:
        return spec
    sizes = []
    for item in prepare_examples(source, "train", 0, count, spec):
        if not isinstance(item, Rejected):
            record, *_ = item
            sizes.append(len(record.image))
    rows = spec.shard_rows
    if sizes:
        rows = int(spec.shard_mb * 1e6 * len(sizes) / sum(sizes))
    return spec.model_copy(update={"shard_rows": max(rows, 1)})


def _resolve_levels(source: Source, spec: ShardSpec) -> tuple[ShardSpec, tuple[str, ...]]:
    """Replaces `levels="auto"` by the range of the smallest depth that holds the first images.

    Returns:
        The options, and a note if the range was chosen here.
    """
    if spec.levels != "auto":
        return spec, ()
    count = min(source.counts().get("train", 0), SAMPLE)
    maxima = []
    for item in source.read("train", 0, count):
        maximum = None if isinstance(item, Rejected) else find_deep_maximum(item.image)
        if maximum is not None:
            maxima.append(maximum)
    levels = FULL
    if maxima:
        depth = max(max(maxima).bit_length(), 8)
        levels = FULL if depth == 16 else f"0:{2**depth - 1}"
    note = f"levels: {levels} (largest value of {len(maxima)} 16-bit images of the first {count}: "
    note += f"{max(maxima, default='none')})"
    return spec.model_copy(update={"levels": levels}), (note,)


def _log_warnings(manifest: Manifest) -> None:
    """Logs what the user should look at before training on the shard set."""
    for notice, count in manifest.notices.items():
        if notice in (DARK, CLIPPED):
            logger.warning("warning: %d images with %s", count, notice)
    validation = manifest.splits.get("validation")
    if validation is None:
        return
    names = [name for name, count in zip(manifest.classes, validation.class_counts, strict=True) if not count]
    if names:
        logger.warning("warning: no usable validation images of class %s", join_names(map(repr, names)))


def _build_missing_shards(
    source: Source,
    spec: ShardSpec,
    directory: BuildDirectory,
    totals: ShardSetTotals,
    progress: Progress,
    workers: int | None,
) -> None:
    """Builds every shard that an earlier start did not complete, and adds up the results of all shards."""
    for planned_shard, result in directory.load_results(totals.plan):
        totals.add(planned_shard, result)
    missing = totals.missing
    if not missing:
        progress(totals.candidates_done, totals.candidates)
        return
    with start_workers(source, spec, directory.out, directory.work, workers) as context:
        progress(totals.candidates_done, totals.candidates)
        with closing(build_on_workers(context, missing, workers)) as results:  # closing cancels running tasks
            for planned_shard, result in results:
                totals.add(planned_shard, result)
                progress(totals.candidates_done, totals.candidates)


def _check_unchanged(name: str, fingerprint: str, reopen: Callable[[], Source] | None) -> None:
    """Makes sure that the source did not change: the images read may be neither its old nor its new content.

    Raises:
        DataError: The fingerprint differs from that at the start.
    """
    if reopen is not None and reopen().fingerprint() != fingerprint:
        raise DataError(
            "a source that does not change while it is read",
            f"source={name} (changed since the build began)",
            "build again when nothing changes it any more",
        )


def _build_manifest(
    source: Source,
    fingerprint: str,
    spec: ShardSpec,
    directory: BuildDirectory,
    totals: ShardSetTotals,
    level_notes: tuple[str, ...],
) -> Manifest:
    """Builds the manifest of all shards.

    Raises:
        DataError: `train` has usable images of fewer than two classes, or none of some class.
    """
    splits = totals.build_splits()
    class_counts = splits["train"].class_counts if "train" in splits else (0,) * len(source.classes)
    if sum(count > 0 for count in class_counts) < 2:
        raise _build_unusable_error(source, class_counts, directory, totals)
    empty = [name for name, count in zip(source.classes, class_counts, strict=True) if not count]
    if empty:
        raise build_empty_class_error(source.name, empty)
    return Manifest(
        version=VERSION,
        format=spec.format,
        encoding=spec.encoding,
        store_size=spec.store_size,
        source=source.name,
        fingerprint=fingerprint,
        classes=source.classes,
        splits=splits,
        rejected=totals.rejected,
        levels=spec.levels,
        notes=(*getattr(source, "notes", ()), *level_notes),
        notices=dict(sorted(totals.notices.items())),
    )


def _build_unusable_error(
    source: Source, class_counts: tuple[int, ...], directory: BuildDirectory, totals: ShardSetTotals
) -> DataError:
    """Returns the error for a source without enough usable images, with the first reasons for rejection."""
    usable = ", ".join(f"{name}={count}" for name, count in zip(source.classes, class_counts, strict=True))
    first = [json.loads(line) for line in islice(directory.read_rejections(totals.plan), SHOWN_REJECTIONS)]
    reasons = "; ".join(f"{entry['id']}: {entry['reason']}" for entry in first) or "none"
    return DataError(
        "usable train images of at least two classes",
        f"source={source.name}: usable images in train: {usable}; rejected={totals.rejected} ({reasons})",
        "repair the images, or choose another source",
    )
