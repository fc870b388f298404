"""Compares a shard set with its manifest, down to every image: one Ray task per shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from pipelines.shards.manifest import FILE_NAME, Manifest, ShardFile, StoredFile, load_manifest
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


def verify_shards(directory: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Checks all files of a shard set.

    Per file: its size and SHA-256, the number of rows, and for every row the label, the checksum and
    whether the image decodes. Over all files: that no identifier occurs twice, and the class counts of the
    manifest.

    Args:
        directory: Directory of the shard set. Every worker must see it under the same path.
        progress: Called with the number of rows checked and in total.

    Returns:
        A line for every damaged file, with its first bad row if a row is at fault; empty if all are intact.

    Raises:
        DataError: There is no shard set, or its manifest is damaged.
        ConfigError: Workers died while they checked shards.
    """
    directory = Path(directory).absolute()
    manifest = load_manifest(directory)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    total = sum(shard.rows for shard in shards)
    done = 0
    if progress is not None:
        progress(done, total)

    calls = [(directory, shard, manifest.encoding, len(manifest.classes)) for shard in shards]
    results: dict[int, ShardCheck] = {}
    with ray_session(), closing(run_tasks(check_shard, calls, lambda index: shards[index].file)) as tasks:
        for index, result in tasks:
            results[index] = result
            done += shards[index].rows
            if progress is not None:
                progress(done, total)

    ordered = [results[index] for index in range(len(shards))]
    duplicates = _find_duplicates(directory, shards, ordered)
    problems = [result.problem or duplicate for result, duplicate in zip(ordered, duplicates, strict=True)]
    return [problem for problem in problems if problem] + _check_class_counts(manifest, ordered)


def check_shard(directory: Path, shard: ShardFile, encoding: str, classes: int) -> ShardCheck:
    """Checks one shard by itself.

    Args:
        directory: Directory of the shard set.
        shard: Entry of the shard in the manifest.
        encoding: Encoding of the images, `raw` or that of image files.
        classes: Number of classes of the shard set.
    """
    try:
        altered = [file for file in shard.files if _is_altered(directory, file)]
        rows = open_shard(directory, shard)
        problem = _find_bad_row(shard, rows, encoding, classes)
    except (DataError, OSError) as error:
        reason = str(error)
        if isinstance(error, DataError):
            reason = f"expected {error.expected}, received {error.received}"
        file = next((file.file for file in shard.files if file.file in reason), shard.file)
        return ShardCheck(f"{file}: {reason}", None, np.empty(0, np.uint64))
    if altered and problem is None:
        problem = f"{altered[0].file}: the SHA-256 differs, although every row is as it was written"
    valid_labels = rows.labels[(rows.labels >= 0) & (rows.labels < classes)]
    id_hashes = [xxhash.xxh3_64_intdigest(rows.id(row).encode()) for row in range(rows.rows)]
    return ShardCheck(problem, np.bincount(valid_labels, minlength=classes), np.array(id_hashes, np.uint64))


def _is_altered(directory: Path, file: StoredFile) -> bool:
    """Tells whether a file has the right size but another digest; `open_shard` reports wrong sizes."""
    path = directory / file.file
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return hash_file(path) != file.sha256


def _find_bad_row(shard: ShardFile, rows: ShardRows, encoding: str, classes: int) -> str | None:
    """Describes the first bad row of a shard."""
    for row in range(rows.rows):
        reason = _check_row(rows, row, encoding, classes)
        if reason is not None:
            return f"{shard.file}: row={row} id={rows.id(row)}: {reason}"
    return None


def _check_row(rows: ShardRows, row: int, encoding: str, classes: int) -> str | None:
    """Returns the reason why a row is bad, or None."""
    if not rows.is_sound(row):
        return "image, label or checksum is not what was written"
    label = int(rows.labels[row])
    if not 0 <= label < classes:
        return f"label={label}, expected 0 to {classes - 1}"
    shape = tuple(rows.shapes[row].tolist())
    image = bytes(rows.image(row))
    if encoding == "raw":
        is_right_size = len(image) == shape[0] * shape[1] * shape[2]
        return None if is_right_size else f"bytes={len(image)}, expected those of shape={shape}"
    try:
        decoded_shape = prepare_image(image, AS_FOUND).shape
    except UnreadableImageError as error:
        return f"the image cannot be decoded: {error}"
    return None if decoded_shape == shape else f"the image is of shape={decoded_shape}, expected {shape}"


def _find_duplicates(
    directory: Path, shards: Sequence[ShardFile], results: Sequence[ShardCheck]
) -> list[str | None]:
    """Describes, for every shard, its first row whose identifier occurred in an earlier row."""
    hashes = np.concatenate([np.empty(0, np.uint64), *(result.id_hashes for result in results)])
    is_repeated = np.ones(len(hashes), bool)
    _, first_rows = np.unique(hashes, return_index=True)
    is_repeated[first_rows] = False

    problems: list[str | None] = []
    start = 0
    for shard, result in zip(shards, results, strict=True):
        stop = start + len(result.id_hashes)
        repeated_rows = np.flatnonzero(is_repeated[start:stop])
        start = stop
        if not len(repeated_rows):
            problems.append(None)
            continue
        row = int(repeated_rows[0])
        identifier = open_shard(directory, shard).id(row)
        problems.append(f"{shard.file}: row={row} id={identifier}: an earlier row has this id")
    return problems


def _check_class_counts(manifest: Manifest, results: Sequence[ShardCheck]) -> list[str]:
    """Returns a line for every split whose rows per class differ from the manifest.

    Splits with a shard that cannot be read are left out.
    """
    problems = []
    remaining = iter(results)
    for name, split in manifest.splits.items():
        counts = [next(remaining).class_counts for _ in split.shards]
        readable = [count for count in counts if count is not None]
        if len(readable) < len(counts):
            continue
        actual = [0] * len(manifest.classes)
        if readable:
            actual = np.sum(readable, axis=0, dtype=int).tolist()
        expected = list(split.class_counts)
        if actual != expected:
            problems.append(f"{FILE_NAME}: split={name}: class_counts={expected}, found {actual}")
    return problems
