"""One task of a build: reads a range of the source, and writes one shard and its marker."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError, GlassboxError
from pipelines.records import Example, Record, Rejected
from pipelines.shards.arrow import ImageBuffer
from pipelines.shards.formats import write_shard
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.shards.markers import Marker, ShardResult, get_marker_name, read_row_part
from pipelines.shards.output import BuildOutput, report_write_errors
from pipelines.shards.plan import PlannedShard
from pipelines.sources import Source
from pipelines.spec import ShardSpec

UNUSUAL_SUFFIXES = (".jfif", ".jpe")  # names that some programs give to JPEGs

# A record with the sums and notices of `pipelines.shards.images.PreparedImage`.
Row = tuple[Record, NDArray[np.int64] | None, tuple[str, ...]]


def build_shard(
    source: Source,
    planned_shard: PlannedShard,
    spec: ShardSpec,
    output: BuildOutput,
    images: ImageBuffer | None = None,
) -> ShardResult:
    """Writes one shard, then its marker: one line with the result, and one per rejected candidate.

    Args:
        source: Source of the images.
        planned_shard: Range of candidates to read, and the file to write.
        spec: Options of the shard set.
        output: Directory or object store that receives the shard and the marker.
        images: Memory for the images, see `pipelines.shards.formats.write_shard`.

    Raises:
        DataError: The source can no longer be read; the message names the image.
        ConfigError: The shard cannot be written.
    """
    class_counts = np.zeros(len(source.classes), np.int64)
    pixel_sums = np.zeros((3, 3), np.int64)
    rejected_lines: list[str] = []
    notice_counts: Counter[str] = Counter()

    def read_records() -> Iterator[Record]:
        for item in prepare_examples(
            source, planned_shard.source_split, planned_shard.start, planned_shard.stop, spec
        ):
            if isinstance(item, Rejected):
                line = json.dumps({"id": item.id, "reason": item.reason}, ensure_ascii=False)
                rejected_lines.append(line + "\n")
                continue
            record, sums, notices = item
            class_counts[record.label] += 1
            notice_counts.update(notices)
            if sums is not None:
                np.add(pixel_sums, sums, out=pixel_sums)
            yield record

    output.check_visible()
    with report_write_errors(output), output.open_scratch() as scratch:
        shard = write_shard(scratch, planned_shard.file, read_records(), images)
        result = ShardResult(
            shard=shard,
            class_counts=tuple(class_counts.tolist()),
            pixel_sums=tuple(tuple(channel) for channel in pixel_sums.tolist()),
            rejected=len(rejected_lines),
            notices=dict(sorted(notice_counts.items())),
        )
        marker = Marker(result, read_row_part(scratch, shard), tuple(rejected_lines))
        output.publish(scratch, shard.files, get_marker_name(planned_shard.file), marker.encode())
    return result


def prepare_examples(
    source: Source, split: str, start: int, stop: int, spec: ShardSpec
) -> Iterator[Row | Rejected]:
    """Reads candidates `start` to `stop` of a split and prepares each for storage.

    Raises:
        DataError: The source fails or ends too early, or an image causes an unexpected error; the message
            names the image.
    """
    for item in read_examples(source, split, start, stop):
        yield item if isinstance(item, Rejected) else _prepare_example(item, spec)


def read_examples(source: Source, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
    """Reads candidates `start` to `stop` of a split.

    Raises:
        DataError: The source fails or ends too early; the message names the image.
    """
    items = source.read(split, start, stop)
    for index in range(start, stop):
        with _add_image_to_errors(f"image {index} of {split}"):
            item = next(items, None)
        if item is None:
            raise DataError(
                f"{stop - start} images of {split}",
                f"source={source.name}: {index - start} after number {start}",
                "leave the source unchanged while it is read",
            )
        yield item


def _prepare_example(example: Example, spec: ShardSpec) -> Row | Rejected:
    with _add_image_to_errors(f"id={example.id}"):
        try:
            image = prepare_image(example.image, spec)
        except UnreadableImageError as error:
            return Rejected(example.id, str(error))
    record = Record(image.image, example.label, example.id, image.shape, example.bbox)
    suffix = os.path.splitext(example.id)[1].lower()
    notices = image.notices
    if suffix in UNUSUAL_SUFFIXES:
        notices = (*notices, f"suffix {suffix}")
    return record, image.pixel_sums, notices


@contextmanager
def _add_image_to_errors(image: str) -> Iterator[None]:
    """Makes sure that every error of a block names the image that caused it."""
    try:
        yield
    except GlassboxError as error:
        raise type(error)(error.expected, f"{error.received} ({image})", error.fix) from None
    except Exception as error:
        received = f"{image}: {type(error).__name__}: {error}"
        raise DataError(
            "an image that can be read", received, "repair or remove it, and start the build again"
        ) from error
