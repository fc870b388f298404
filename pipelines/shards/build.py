"""Builds a shard set from a source: plans it, builds its shards on workers, and commits the manifest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from pipelines.errors import ConfigError, DataError, GlassboxError
from pipelines.records import Rejected
from pipelines.remote.errors import StoreError
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.shards.build_directory import BuildDirectory, check_directory, lock_build_directory
from pipelines.shards.build_store import StoreBuild, check_prefix, lease_build
from pipelines.shards.images import CLIPPED, DARK, FULL, MAX_VALUE, find_deep_maximum, parse_levels
from pipelines.shards.manifest import VERSION, Manifest, ShardFile
from pipelines.shards.plan import MissingShards, PlannedShard, ShardPlan, choose_shard_rows, plan_shards
from pipelines.shards.rejections import REJECTED_FILE
from pipelines.shards.task import prepare_examples, read_examples
from pipelines.shards.totals import ShardSetTotals
from pipelines.shards.workers import build_on_workers, start_workers
from pipelines.sources import Source
from pipelines.sources.base import build_change_error
from pipelines.sources.classes import build_empty_class_error
from pipelines.sources.holdout import hold_out
from pipelines.sources.splits import join_names
from pipelines.spec import ShardSpec
from pipelines.storage import hash_json

SAMPLE = 64  # images from which the size of a stored image is estimated
SAMPLED_PLACES = 8  # in the train split, from which the sample is taken
SHOWN_REJECTIONS = 3  # in an error message

Progress = Callable[[int, int], None]
Build: TypeAlias = BuildDirectory | StoreBuild  # the claimed output

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildJob:
    """What is built, as decided before the first shard.

    Attributes:
        source: Source of the images, with the validation split held out.
        fingerprint: Digest of the whole source.
        spec: Options with everything chosen.
        plan: Shards to write.
        notes: What was decided about the options.
    """

    source: Source
    fingerprint: str
    spec: ShardSpec
    plan: ShardPlan
    notes: tuple[str, ...]


def build_shards(
    source: Source,
    out: str | Location,
    spec: ShardSpec,
    progress: Progress | None = None,
    workers: int | None = None,
    reopen: Callable[[], Source] | None = None,
) -> Manifest:
    """Builds a shard set; the bytes depend on the source and `spec` only, not on the number of workers.

    Every worker must see the source and `out` under the same path, unless they are in an object store. A
    build that was interrupted by a kill or an error resumes when it is started again with the same arguments,
    on another host if `out` is in a store. If the source is unusable, `out` is removed again.

    Args:
        source: Source of the images.
        out: Directory to create, or URI in an object store.
        spec: Options of the shard set. Without a size of shards, one is chosen (see
            `pipelines.shards.plan.choose_shard_rows`).
        progress: Called with the number of images done and in total: first when the workers are ready, then
            after every shard.
        workers: Largest number of shards built at a time; None for one per CPU of the cluster.
        reopen: Opens the source again at the end, unless it has a method `check_unchanged`. If its
            fingerprint differs by then, nothing is committed.

    Returns:
        The manifest of the shard set, as saved.

    Raises:
        ConfigError: The options contradict each other, `out` is occupied or cannot be written, another
            builder is at work there, or the cluster failed.
        DataError: No image is usable, `train` has images of fewer than two classes, or the source failed or
            changed.
    """
    location = parse_location(out)
    check_request(location, spec, workers)
    job = _plan_job(source, spec)
    about = {"the content of the source": job.fingerprint, "the options": job.spec.model_dump_json()}
    digest = hash_json([VERSION, *about.values(), source.classes, job.plan.describe()])
    with _claim_output(location, digest, about) as build:
        committed = build.load_committed()
        if committed is not None:
            return committed

        totals = ShardSetTotals(job.plan, len(source.classes))
        try:
            _build_missing_shards(job, build, totals, progress or _ignore_progress, workers)
        except GlassboxError as error:
            if not totals.candidates_done:  # otherwise, the next start resumes from the complete shards
                _discard(build, job.plan, error)
            raise
        try:
            _check_unchanged(source, job.fingerprint, reopen)
            _check_usable(job, build, totals)
        except DataError as error:
            _discard(build, job.plan, error)
            raise
        with build.open_commit_folder() as folder:
            manifest = _write_manifest(job, build, totals, folder)
            build.commit(folder)
    _log_warnings(manifest)
    return manifest


def _plan_job(source: Source, spec: ShardSpec) -> BuildJob:
    """Decides everything that the bytes of the shards depend on.

    Raises:
        DataError: The source has no images, or cannot be read.
    """
    fingerprint = source.fingerprint()  # of the source as `reopen` opens it, not of its divided splits
    source = hold_out(source, spec.validation)
    spec, notes = _resolve_levels(source, spec)
    spec = _resolve_shard_rows(source, spec)
    plan = plan_shards(source.counts(), spec)
    if not plan:
        raise DataError("at least one image", f"source={source.name}: images=0", "check the path")
    return BuildJob(source, fingerprint, spec, plan, notes)


def _discard(build: Build, plan: ShardPlan, error: GlassboxError) -> None:
    """Removes the shards of a build that failed for good; after a failure of a store, they are kept."""
    if not isinstance(error, StoreError):
        build.discard(plan)


def _claim_output(
    location: Location, digest: str, about: dict[str, str]
) -> AbstractContextManager[BuildDirectory] | AbstractContextManager[StoreBuild]:
    if isinstance(location, Uri):
        return lease_build(location, digest, about)
    return lock_build_directory(location.absolute(), digest, about)


def _ignore_progress(done: int, total: int) -> None:
    pass


def check_request(out: str | Location, spec: ShardSpec, workers: int | None = None) -> None:
    """Checks what can be checked before the source is opened, which may take long.

    Args:
        out: Directory to create, or URI in an object store.
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
    if spec.shard_mb is not None and spec.shard_rows is not None:
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
    location = parse_location(out)
    if isinstance(location, Uri):
        check_prefix(location)
    else:
        check_directory(location)


def _resolve_shard_rows(source: Source, spec: ShardSpec) -> ShardSpec:
    """Sets the number of rows per shard from `shard_mb`, or from the number and the size of the images."""
    images = source.counts().get("train", 0)
    if spec.shard_rows is not None or not images:
        return spec
    sizes = list(_sample_sizes(source, images, spec))
    image_bytes = sum(sizes) / len(sizes) if sizes else 0.0
    if spec.shard_mb is None:
        rows = choose_shard_rows(images, image_bytes)
    elif sizes:
        rows = max(int(spec.shard_mb * 1e6 / image_bytes), 1)
    else:
        rows = choose_shard_rows(images, 0.0)
    return spec.model_copy(update={"shard_rows": rows})


def _sample_sizes(source: Source, images: int, spec: ShardSpec) -> Iterator[int]:
    """Yields the sizes of some training images as they will be stored, in bytes.

    Args:
        source: Source of the images.
        images: Number of training images.
        spec: Options of the shard set.
    """
    is_stored_as_found = spec.encoding == "as-found" and spec.store_size is None
    count = max(min(images, SAMPLE) // SAMPLED_PLACES, 1)  # images per place
    starts = sorted({place * (images - count) // (SAMPLED_PLACES - 1) for place in range(SAMPLED_PLACES)})
    for start in starts:
        if is_stored_as_found:
            for item in read_examples(source, "train", start, start + count):
                if not isinstance(item, Rejected):
                    yield len(item.image)
            continue
        for prepared in prepare_examples(source, "train", start, start + count, spec):
            if not isinstance(prepared, Rejected):
                yield len(prepared[0].image)


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
    job: BuildJob,
    build: Build,
    totals: ShardSetTotals,
    progress: Progress,
    workers: int | None,
) -> None:
    """Builds every shard that an earlier start did not complete, and adds up the results of all shards."""
    is_complete = bytearray(len(job.plan))
    for planned_shard, result in build.load_results(job.plan):
        totals.add(planned_shard, result)
        is_complete[planned_shard.index] = 1
    missing = MissingShards(job.plan, is_complete)
    if not missing:
        progress(totals.candidates_done, totals.candidates)
        return
    with start_workers(job.source, job.spec, build.output, workers) as context:
        progress(totals.candidates_done, totals.candidates)
        # Closing the generator cancels running tasks.
        with closing(build_on_workers(job.source, context, missing, workers)) as results:
            for planned_shard, result in results:
                build.check_lease()
                totals.add(planned_shard, result)
                progress(totals.candidates_done, totals.candidates)


def _check_unchanged(source: Source, fingerprint: str, reopen: Callable[[], Source] | None) -> None:
    """Makes sure that the source did not change: the images read may be neither its old nor its new content.

    Raises:
        DataError: The source differs from what it was at the start.
    """
    check_unchanged = getattr(source, "check_unchanged", None)
    if check_unchanged is not None:
        check_unchanged()
        return
    if reopen is not None and reopen().fingerprint() != fingerprint:
        raise build_change_error(source.name)


def _check_usable(job: BuildJob, build: Build, totals: ShardSetTotals) -> None:
    """Makes sure that there are training images of every class.

    Raises:
        DataError: `train` has usable images of fewer than two classes, or none of some class.
    """
    class_counts = totals.get_class_counts("train")
    if sum(count > 0 for count in class_counts) < 2:
        raise _build_unusable_error(job, build, totals)
    empty = [name for name, count in zip(job.source.classes, class_counts, strict=True) if not count]
    if empty:
        raise build_empty_class_error(job.source.name, empty)


def _write_manifest(job: BuildJob, build: Build, totals: ShardSetTotals, folder: Path) -> Manifest:
    """Writes the manifest of all shards, the tables that it refers to, and the list of rejected images."""
    with (folder / REJECTED_FILE).open("wb") as rejected:

        def read_results() -> Iterator[tuple[PlannedShard, ShardFile, bytes]]:
            for planned_shard, marker in build.read_markers(job.plan):
                rejected.writelines(map(str.encode, marker.rejected_lines))
                yield planned_shard, marker.result.shard, marker.row_part

        splits = totals.build_splits(folder, read_results())
    manifest = Manifest(
        version=VERSION,
        format=job.spec.format,
        encoding=job.spec.encoding,
        store_size=job.spec.store_size,
        source=job.source.name,
        fingerprint=job.fingerprint,
        classes=job.source.classes,
        splits=splits,
        rejected=totals.rejected,
        levels=job.spec.levels,
        notes=(*getattr(job.source, "notes", ()), *job.notes),
        notices=dict(sorted(totals.notices.items())),
    )
    manifest.save(folder)
    return manifest


def _build_unusable_error(job: BuildJob, build: Build, totals: ShardSetTotals) -> DataError:
    """Returns the error for a source without enough usable images, with the first reasons for rejection."""
    class_counts = zip(job.source.classes, totals.get_class_counts("train"), strict=True)
    usable = ", ".join(f"{name}={count}" for name, count in class_counts)
    lines = (line for _, marker in build.read_markers(job.plan) for line in marker.rejected_lines)
    first = [json.loads(line) for line in islice(lines, SHOWN_REJECTIONS)]
    reasons = "; ".join(f"{entry['id']}: {entry['reason']}" for entry in first) or "none"
    received = f"source={job.source.name}: usable images in train: {usable}; "
    return DataError(
        "usable train images of at least two classes",
        f"{received}rejected={totals.rejected} ({reasons})",
        "repair the images, or choose another source",
    )
