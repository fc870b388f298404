"""Compares a shard set with its manifest, down to every image: one Ray task per shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.cluster import ray_session, run_tasks
from pipelines.errors import DataError
from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location
from pipelines.shards.files import ShardFiles, open_files
from pipelines.shards.formats import ShardRows, open_shard, read_table
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.shards.manifest import (
    FILE_NAME,
    InlineSplit,
    Manifest,
    ShardFile,
    load_manifest,
)
from pipelines.shards.split_index import SetShard, SetShards, ShardCalls, read_part
from pipelines.spec import ShardSpec
from pipelines.storage import hash_file

AS_FOUND = ShardSpec()


class ShardCheck(NamedTuple):
    """Result of checking one shard.

    Attributes:
        problem: Name of the damaged file, its first bad row and the reason; None if the shard is intact.
        class_counts: int64 `[classes]`, rows per class; None if the shard cannot be read.
        id_hashes: uint64 `[rows]`, a hash of every identifier.
    """

    problem: str | None
    class_counts: NDArray[np.int64] | None
    id_hashes: NDArray[np.uint64]


def verify_shards(directory: str | Location, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Checks all files of a shard set.

    Per file: its size and SHA-256, the number of rows, and for every row the label, the checksum, whether the
    image decodes and whether the index of the split says the same. Over all files: that no identifier occurs
    twice, and the class counts of the manifest.

    Args:
        directory: Path or URI of the shard set. Every worker must see it under the same path.
        progress: Called with the number of rows checked and in total.

    Returns:
        A line for every damaged file, with its first bad row if a row is at fault; empty if all are intact.

    Raises:
        DataError: There is no shard set, or its manifest is damaged.
        ConfigError: Workers died while they checked shards.
    """
    directory = resolve_location(directory)
    manifest = load_manifest(directory)
    files = open_files(directory)
    shards = SetShards(files, manifest)
    total = sum(split.rows for split in manifest.splits.values())
    done = 0
    if progress is not None:
        progress(done, total)

    index_problems = _check_indices(files, manifest)
    calls = ShardCalls(files, shards, manifest.encoding, len(manifest.classes))
    # Class counts are added up at once: a thousand of them for every shard would not fit in memory.
    problems: list[str | None] = [None] * len(shards)
    id_hashes = [np.empty(0, np.uint64)] * len(shards)
    class_counts = {name: np.zeros(len(manifest.classes), np.int64) for name in manifest.splits}
    unreadable_splits = set()
    tasks = run_tasks(check_shard, calls, lambda index: shards[index].shard.file)
    with ray_session(), closing(tasks):
        for index, result in tasks:
            problems[index] = result.problem
            id_hashes[index] = result.id_hashes
            split = shards[index].split
            if result.class_counts is None:
                unreadable_splits.add(split)
            else:
                class_counts[split] += result.class_counts
            done += shards[index].shard.rows
            if progress is not None:
                progress(done, total)

    duplicates = _find_duplicates(files, shards, id_hashes)
    found = [problem or duplicate for problem, duplicate in zip(problems, duplicates, strict=True)]
    shard_problems = [problem for problem in found if problem]
    counts = {name: count for name, count in class_counts.items() if name not in unreadable_splits}
    return index_problems + shard_problems + _check_class_counts(manifest, counts)


def _check_indices(files: ShardFiles, manifest: Manifest) -> list[str]:
    """Returns a line for every split whose index of rows is damaged."""
    problems = []
    for split in manifest.splits.values():
        if isinstance(split, InlineSplit):
            continue
        try:
            if hash_file(files.fetch(split.index)) != split.index.sha256:
                problems.append(f"{split.index.file}: the SHA-256 differs")
        except DataError as error:
            problems.append(f"{split.index.file}: {_describe_error(error)}")
    return problems


def check_shard(files: ShardFiles, set_shard: SetShard, encoding: str, classes: int) -> ShardCheck:
    """Checks one shard by itself.

    Args:
        files: Files of the shard set.
        set_shard: Entry of the shard, and its part of the index.
        encoding: Encoding of the images, `raw` or that of image files.
        classes: Number of classes of the shard set.
    """
    shard = set_shard.shard
    try:
        with files.open(shard.files) as opened, open_shard(files, shard) as rows:
            pairs = zip(shard.files, opened, strict=True)
            altered = [file for file, local in pairs if hash_file(local.path) != file.sha256]
            problem = _find_bad_row(shard, rows, encoding, classes)
            if problem is None and set_shard.part is not None:
                problem = _compare_with_index(files, set_shard, rows)
            id_hashes = [xxhash.xxh3_64_intdigest(rows.id(row).encode()) for row in range(rows.rows)]
    except (DataError, OSError) as error:
        reason = _describe_error(error)
        file = next((file.file for file in shard.files if file.file in reason), shard.file)
        return ShardCheck(f"{file}: {reason}", None, np.empty(0, np.uint64))
    if altered and problem is None:
        problem = f"{altered[0].file}: the SHA-256 differs, although every row is as it was written"
    valid_labels = rows.labels[(rows.labels >= 0) & (rows.labels < classes)]
    return ShardCheck(problem, np.bincount(valid_labels, minlength=classes), np.array(id_hashes, np.uint64))


def _describe_error(error: Exception) -> str:
    if isinstance(error, DataError):
        return f"expected {error.expected}, received {error.received}"
    return str(error)


def _compare_with_index(files: ShardFiles, set_shard: SetShard, rows: ShardRows) -> str | None:
    """Describes the first row of a shard about which the index of the split says something else."""
    if set_shard.part is None:
        return None
    indexed = read_part(files, set_shard.part, set_shard.shard)
    for name in ("labels", "starts", "sizes", "checksums", "shapes"):
        is_different = getattr(indexed, name) != getattr(rows, name)
        if is_different.any():
            row = int(np.argwhere(is_different)[0, 0])
            place = f"row={row} of {set_shard.shard.file}"
            return f"{set_shard.part.file.file}: {name} of {place} differ from that file"
    return None


def _find_bad_row(shard: ShardFile, rows: ShardRows, encoding: str, classes: int) -> str | None:
    """Describes the first bad row of a shard."""
    for row in range(rows.rows):
        reason = _check_row(rows, row, encoding, classes)
        if reason is not None:
            return f"{shard.file}: row={row} id={rows.id(row)}: {reason}"
    return None


def _check_row(rows: ShardRows, row: int, encoding: str, classes: int) -> str | None:
    """Returns the reason why a row is bad, or None."""
    image = rows.read_image(row)
    if not rows.is_sound(row, image):
        return "image, label or checksum is not what was written"
    label = int(rows.labels[row])
    if not 0 <= label < classes:
        return f"label={label}, expected 0 to {classes - 1}"
    shape = tuple(rows.shapes[row].tolist())
    if encoding == "raw":
        is_right_size = len(image) == shape[0] * shape[1] * shape[2]
        return None if is_right_size else f"bytes={len(image)}, expected those of shape={shape}"
    try:
        decoded_shape = prepare_image(image, AS_FOUND).shape
    except UnreadableImageError as error:
        return f"the image cannot be decoded: {error}"
    return None if decoded_shape == shape else f"the image is of shape={decoded_shape}, expected {shape}"


def _find_duplicates(
    files: ShardFiles, shards: Sequence[SetShard], id_hashes: Sequence[NDArray[np.uint64]]
) -> list[str | None]:
    """Describes, for every shard, its first row whose identifier occurred in an earlier row."""
    hashes = np.concatenate([np.empty(0, np.uint64), *id_hashes])
    is_repeated = np.ones(len(hashes), bool)
    _, first_rows = np.unique(hashes, return_index=True)
    is_repeated[first_rows] = False

    problems: list[str | None] = []
    start = 0
    for index, shard_hashes in enumerate(id_hashes):
        stop = start + len(shard_hashes)
        repeated_rows = np.flatnonzero(is_repeated[start:stop])
        start = stop
        if not len(repeated_rows):
            problems.append(None)
            continue
        row = int(repeated_rows[0])
        shard = shards[index].shard
        identifier = str(read_table(files, shard)["id"][row].as_py())
        problems.append(f"{shard.file}: row={row} id={identifier}: an earlier row has this id")
    return problems


def _check_class_counts(manifest: Manifest, class_counts: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """Returns a line for every split whose rows per class differ from the manifest.

    Args:
        manifest: Manifest of the shard set.
        class_counts: Rows per class, int64 `[classes]`, of the splits that can be read.
    """
    problems = []
    for name, counts in class_counts.items():
        actual = counts.tolist()
        expected = list(manifest.splits[name].class_counts)
        if actual != expected:
            problems.append(f"{FILE_NAME}: split={name}: class_counts={expected}, found {actual}")
    return problems
