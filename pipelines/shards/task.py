"""What one Ray task of a build does: read a range of the source, write one shard, leave a marker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from pipelines.records import Example, Rejected
from pipelines.shards.arrow import write_shard
from pipelines.shards.images import UnreadableImageError, prepare
from pipelines.shards.manifest import ShardFile
from pipelines.shards.plan import PlannedShard
from pipelines.sources import Source
from pipelines.spec import ShardSpec, Spec
from pipelines.storage import replacing, sha256, write_atomically


class ShardResult(Spec):
    """What came of one planned shard; as a file, the marker that it is done.

    Attributes:
        shard: The file; one of 0 rows is not there.
        class_counts: Rows per class.
        histogram: `[3][256]`, pixels per value of R, G and B over all images.
        rejected: Id and reason of every candidate not taken, in order.
    """

    shard: ShardFile
    class_counts: tuple[int, ...]
    histogram: tuple[tuple[int, ...], ...]
    rejected: tuple[tuple[str, str], ...]


def build_shard(source: Source, planned: PlannedShard, spec: ShardSpec, out: Path, markers: Path) -> ShardResult:
    """Writes one shard whole, then its marker.

    Raises:
        DataError: The source cannot be read any more.
        OSError: The shard cannot be written.
    """
    counts, histogram = np.zeros(len(source.classes), np.int64), np.zeros((3, 256), np.int64)
    rejected: list[tuple[str, str]] = []

    def taken() -> Iterator[Example]:
        for item in source.read(planned.source_split, planned.start, planned.stop):
            try:
                if isinstance(item, Rejected):
                    raise UnreadableImageError(item.reason)
                ready = prepare(item.image, spec.store_size)
            except UnreadableImageError as error:
                rejected.append((item.id, str(error)))
                continue
            counts[item.label] += 1
            np.add(histogram, ready.histogram, out=histogram)
            yield Example(ready.image, item.label, item.id, item.evidence)

    path = out / planned.file
    with replacing(path) as temporary:
        rows = write_shard(temporary, taken())
    shard = ShardFile(file=planned.file, rows=rows, bytes=path.stat().st_size, sha256=sha256(path))
    if not rows:
        path.unlink()
    pixels = tuple(tuple(channel) for channel in histogram.tolist())
    result = ShardResult(shard=shard, class_counts=tuple(counts.tolist()), histogram=pixels, rejected=tuple(rejected))
    write_atomically(marker(markers, planned), result.model_dump_json())
    return result


def finished(planned: PlannedShard, out: Path, markers: Path) -> ShardResult | None:
    """The result an earlier, interrupted build left for a planned shard, if its file still stands."""
    path = out / planned.file
    try:
        result = ShardResult.model_validate_json(marker(markers, planned).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    size = path.stat().st_size if path.is_file() else None
    return result if size == (result.shard.bytes if result.shard.rows else None) else None


def marker(markers: Path, planned: PlannedShard) -> Path:
    """Where the marker of a planned shard lies."""
    return markers / f"{planned.file}.json"
