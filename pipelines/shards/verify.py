"""A shard set held against its manifest, down to the last image: one Ray task a shard."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.cluster import ray_session, run_tasks
from pipelines.errors import DataError
from pipelines.shards.formats import ShardRows, open_shard
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.shards.manifest import FILE_NAME, Manifest, ShardFile, load_manifest
from pipelines.spec import ShardSpec
from pipelines.storage import hash_file

AS_FOUND = ShardSpec()


class ShardCheck(NamedTuple):
    """What came of one shard.

    Attributes:
        problem: The file, its first bad row and what is wrong, or None.
        counts: int64 `[classes]`, rows per class; None where the shard cannot be read.
        ids: uint64 `[rows]`, a hash of every identifier.
    """

    problem: str | None
    counts: NDArray[np.int64] | None
    ids: NDArray[np.uint64]


def verify_shards(directory: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Checks every file of a shard set: size and SHA-256, the rows, every image, label and checksum, and that it decodes.

    Over all files: that no identifier comes twice, and that the classes have the rows that the manifest says.

    Args:
        directory: The shard set. Every worker must see it under the same path.
        progress: Called with the number of rows done and of all rows.

    Returns:
        A line for every bad file, with the first bad row where a row is at fault; none where all is well.

    Raises:
        DataError: There is no shard set, or its manifest is damaged.
        ConfigError: Workers died.
    """
    directory = Path(directory).absolute()
    manifest = load_manifest(directory)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    total, done = sum(shard.rows for shard in shards), 0
    results: dict[int, ShardCheck] = {}
    report = progress or (lambda done, total: None)
    report(0, total)
    calls = [(directory, shard, manifest.encoding, len(manifest.classes)) for shard in shards]
    with ray_session(), closing(run_tasks(check_shard, calls, lambda place: shards[place].file)) as checked:
        for index, result in checked:
            results[index] = result
            done += shards[index].rows
            report(done, total)
    ordered = [results[index] for index in range(len(shards))]
    twice = _duplicates(directory, shards, ordered)
    problems = [result.problem or again for result, again in zip(ordered, twice, strict=True)]
    return [problem for problem in problems if problem] + _miscounted(manifest, ordered)


def check_shard(directory: Path, shard: ShardFile, encoding: str, classes: int) -> ShardCheck:
    """Checks one shard by itself. See `verify_shards`."""
    try:
        broken = [
            file
            for file in shard.files
            if _is_whole(directory, file.file, file.bytes) and hash_file(directory / file.file) != file.sha256
        ]
        rows = open_shard(directory, shard)
        problem = next(
            (
                f"{shard.file}: row={row} id={rows.id(row)}: {bad}"
                for row, bad in _bad_rows(rows, encoding, classes)
            ),
            None,
        )
    except (DataError, OSError) as error:
        reason = (
            f"expected {error.expected}, received {error.received}"
            if isinstance(error, DataError)
            else str(error)
        )
        file = next((file.file for file in shard.files if file.file in reason), shard.file)
        return ShardCheck(f"{file}: {reason}", None, np.empty(0, np.uint64))
    if broken and problem is None:
        problem = f"{broken[0].file}: the SHA-256 is another, though every row is as it was written"
    known = rows.labels[(rows.labels >= 0) & (rows.labels < classes)]
    ids = np.array([xxhash.xxh3_64_intdigest(rows.id(row).encode()) for row in range(rows.rows)], np.uint64)
    return ShardCheck(problem, np.bincount(known, minlength=classes), ids)


def _is_whole(directory: Path, file: str, size: int) -> bool:
    path = directory / file
    return path.is_file() and path.stat().st_size == size  # else `open_shard` says what is wrong


def _bad_rows(rows: ShardRows, encoding: str, classes: int) -> Generator[tuple[int, str], None, None]:
    """Every bad row and what is wrong with it."""
    for row in range(rows.rows):
        label, shape = int(rows.labels[row]), tuple(rows.shapes[row].tolist())
        if not rows.is_sound(row):
            yield row, "image, label or checksum is not what was written"
        elif not 0 <= label < classes:
            yield row, f"label={label}, expected 0 to {classes - 1}"
        elif encoding == "raw":
            if len(rows.image(row)) != shape[0] * shape[1] * shape[2]:
                yield row, f"bytes={len(rows.image(row))}, expected those of shape={shape}"
        else:
            try:
                found = prepare_image(bytes(rows.image(row)), AS_FOUND).shape
            except UnreadableImageError as error:
                yield row, f"the image cannot be decoded: {error}"
            else:
                if found != shape:
                    yield row, f"the image is of shape={found}, expected {shape}"


def _duplicates(directory: Path, shards: Sequence[ShardFile], results: Sequence[ShardCheck]) -> list[str | None]:
    """For every shard, its first row whose identifier an earlier row has."""
    ids = np.concatenate([np.empty(0, np.uint64), *(result.ids for result in results)])
    again = np.ones(len(ids), bool)
    again[np.unique(ids, return_index=True)[1]] = False  # the first of each
    problems: list[str | None] = []
    start = 0
    for shard, result in zip(shards, results, strict=True):
        rows = np.flatnonzero(again[start : start + len(result.ids)])
        start += len(result.ids)
        name = open_shard(directory, shard).id(int(rows[0])) if len(rows) else None
        problems.append(
            None if name is None else f"{shard.file}: row={rows[0]} id={name}: an earlier row has this id"
        )
    return problems


def _miscounted(manifest: Manifest, results: Sequence[ShardCheck]) -> list[str]:
    """A line for every split whose classes have other rows than the manifest says; no word where a shard could not be read."""
    problems, remaining = [], iter(results)
    for name, split in manifest.splits.items():
        counts = [next(remaining).counts for _ in split.shards]
        known = [count for count in counts if count is not None]
        found = tuple(np.sum(known, axis=0, dtype=int).tolist()) if known else (0,) * len(manifest.classes)
        if len(known) == len(counts) and found != split.class_counts:
            problems.append(
                f"{FILE_NAME}: split={name}: class_counts={list(split.class_counts)}, found {list(found)}"
            )
    return problems
