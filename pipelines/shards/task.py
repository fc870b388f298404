"""What one worker of a build does: read a range of the source, write one shard, leave a marker."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.errors import ConfigError, DataError, GlassboxError
from pipelines.records import Example, Record, Rejected
from pipelines.shards.formats import write_shard
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.shards.manifest import ShardFile
from pipelines.shards.plan import PlannedShard
from pipelines.sources import Source
from pipelines.spec import ShardSpec, Spec
from pipelines.storage import write_atomically

Row = tuple[Record, NDArray[np.int64] | None]  # and its moments, see `pipelines.shards.images.PreparedImage`


class ShardResult(Spec):
    """What came of one planned shard.

    Attributes:
        shard: The file; one of 0 rows is not there.
        class_counts: Rows per class.
        moments: `[3][3]`: for R, G and B the number of pixels, their sum and the sum of their squares; zeros where nothing was decoded.
        rejected: Number of candidates not taken.
    """

    shard: ShardFile
    class_counts: tuple[int, ...]
    moments: tuple[tuple[int, ...], ...]
    rejected: int


def build_shard(source: Source, planned: PlannedShard, spec: ShardSpec, out: Path, work: Path) -> ShardResult:
    """Writes one shard whole, then its marker: the result in the first line, what was rejected in the others.

    Args:
        source: Where the images come from.
        planned: Which of them.
        spec: How they are stored.
        out: Where the shard goes when it is whole.
        work: Where it is made, on the same file system, and where the marker stays.

    Raises:
        DataError: The source cannot be read any more; names the image.
        ConfigError: The shard cannot be written.
    """
    counts, moments = np.zeros(len(source.classes), np.int64), np.zeros((3, 3), np.int64)
    rejected: list[str] = []

    def taken() -> Iterator[Record]:
        for item in prepare_examples(source, planned.source_split, planned.start, planned.stop, spec):
            if isinstance(item, Rejected):
                rejected.append(json.dumps({"id": item.id, "reason": item.reason}, ensure_ascii=False) + "\n")
                continue
            record, sums = item
            counts[record.label] += 1
            if sums is not None:
                np.add(moments, sums, out=moments)
            yield record

    if not work.is_dir():
        received = f"{work.parent.parent} (not on {socket.gethostname()}, or removed)"
        raise ConfigError("an output directory that every worker sees", received, "choose a shared directory")
    with report_write_errors(out):
        shard = write_shard(work, planned.file, taken())
        for file in shard.files:
            os.replace(work / file.file, out / file.file)
        totals = tuple(tuple(channel) for channel in moments.tolist())
        result = ShardResult(
            shard=shard, class_counts=tuple(counts.tolist()), moments=totals, rejected=len(rejected)
        )
        lines = [result.model_dump_json() + "\n", *rejected]
        write_atomically(
            _marker(planned, work), "".join(lines), durable=False
        )  # lost with the power: the shard is made again
    return result


def prepare_examples(source: Source, split: str, start: int, stop: int, spec: ShardSpec) -> Iterator[Row | Rejected]:
    """Reads candidates `start` to `stop` of a split and makes each ready to be stored.

    Raises:
        DataError: The source fails or is shorter than it said, or an image breaks what reads it; names the image.
    """
    items = source.read(split, start, stop)
    for index in range(start, stop):
        with _naming(f"image {index} of {split}"):
            item = next(items, None)
        if item is None:
            received = f"source={source.name}: {index - start} after number {start}"
            raise DataError(
                f"{stop - start} images of {split}", received, "keep the source as it is while it is read"
            )
        yield item if isinstance(item, Rejected) else _prepared(item, spec)


def _prepared(example: Example, spec: ShardSpec) -> Row | Rejected:
    with _naming(f"id={example.id}"):
        try:
            ready = prepare_image(example.image, spec)
        except UnreadableImageError as error:
            return Rejected(example.id, str(error))
    return Record(ready.image, example.label, example.id, ready.shape, example.evidence), ready.moments


@contextmanager
def _naming(image: str) -> Iterator[None]:
    """Lets no failure leave without the image it concerns."""
    try:
        yield
    except GlassboxError as error:
        raise type(error)(error.expected, f"{error.received} ({image})", error.fix) from None
    except Exception as error:
        received = f"{image}: {type(error).__name__}: {error}"
        raise DataError(
            "an image that can be read", received, "repair or remove it, and start the build again"
        ) from error


@contextmanager
def report_write_errors(out: Path) -> Iterator[None]:
    """A full disk or a missing permission is the user's to mend; what is finished stays for the next start."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        fix = "free space or change permissions and run the same command again, or choose another place"
        raise ConfigError("an output directory that can be written", f"out={out}: {reason}", fix) from None


def load_result(planned: PlannedShard, out: Path, work: Path) -> ShardResult | None:
    """The result an earlier, interrupted build left for a planned shard, if its files still stand."""
    try:
        with _marker(planned, work).open(encoding="utf-8") as lines:
            result = ShardResult.model_validate_json(next(lines, ""))
        stands = all((out / file.file).stat().st_size == file.bytes for file in result.shard.files)
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    return result if stands else None


def read_rejections(planned: PlannedShard, work: Path) -> Iterator[str]:
    """The line of JSON of every candidate of a finished shard that was not taken."""
    with _marker(planned, work).open(encoding="utf-8") as lines:
        next(lines)
        yield from lines


def _marker(planned: PlannedShard, work: Path) -> Path:
    return work / f"{planned.file}.done"
