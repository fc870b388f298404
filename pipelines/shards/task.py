"""One task of a build: reads a range of the source, and writes one shard and its marker."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field, ValidationError

from pipelines.errors import ConfigError, DataError, GlassboxError
from pipelines.records import Example, Record, Rejected
from pipelines.shards.formats import write_shard
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.shards.manifest import ShardFile
from pipelines.shards.plan import PlannedShard
from pipelines.sources import Source
from pipelines.spec import ShardSpec, Spec
from pipelines.storage import write_atomically

UNUSUAL_SUFFIXES = (".jfif", ".jpe")  # names that some programs give to JPEGs

# A record with the sums and notices of `pipelines.shards.images.PreparedImage`.
Row = tuple[Record, NDArray[np.int64] | None, tuple[str, ...]]


class ShardResult(Spec):
    """Result of building one shard.

    Attributes:
        shard: Entry of the shard in the manifest; the file of a shard without rows does not exist.
        class_counts: Rows per class, in the order of the classes.
        pixel_sums: `[3][3]`: for R, G and B the number of pixels, their sum and the sum of their squares;
            zeros if nothing was decoded. Markers call them `moments`.
        rejected: Number of candidates that are not in the shard.
        notices: Number of images per kind of notice.
    """

    shard: ShardFile
    class_counts: tuple[int, ...]
    pixel_sums: tuple[tuple[int, ...], ...] = Field(
        validation_alias=AliasChoices("moments", "pixel_sums"), serialization_alias="moments"
    )
    rejected: int
    notices: dict[str, int] = Field(default_factory=dict)


def build_shard(
    source: Source, planned_shard: PlannedShard, spec: ShardSpec, out: Path, work: Path
) -> ShardResult:
    """Writes one shard, then its marker: one line with the result, and one per rejected candidate.

    Args:
        source: Source of the images.
        planned_shard: Range of candidates to read, and the file to write.
        spec: Options of the shard set.
        out: Directory of the shard set that the complete shard is moved to.
        work: Directory on the same file system for the shard in progress and for the marker.

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

    if not work.is_dir():
        received = f"{work.parent.parent} (not on {socket.gethostname()}, or removed)"
        raise ConfigError("an output directory that every worker sees", received, "choose a shared directory")
    with report_write_errors(out):
        shard = write_shard(work, planned_shard.file, read_records())
        for file in shard.files:
            os.replace(work / file.file, out / file.file)
        result = ShardResult(
            shard=shard,
            class_counts=tuple(class_counts.tolist()),
            pixel_sums=tuple(tuple(channel) for channel in pixel_sums.tolist()),
            rejected=len(rejected_lines),
            notices=dict(sorted(notice_counts.items())),
        )
        marker = "".join([result.model_dump_json(by_alias=True) + "\n", *rejected_lines])
        # Not durable: without its marker, a shard is built again.
        write_atomically(_get_marker_path(planned_shard, work), marker, durable=False)
    return result


def prepare_examples(
    source: Source, split: str, start: int, stop: int, spec: ShardSpec
) -> Iterator[Row | Rejected]:
    """Reads candidates `start` to `stop` of a split and prepares each for storage.

    Raises:
        DataError: The source fails or ends too early, or an image causes an unexpected error; the message
            names the image.
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
        yield item if isinstance(item, Rejected) else _prepare_example(item, spec)


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


@contextmanager
def report_write_errors(out: Path) -> Iterator[None]:
    """Turns errors of the operating system, such as a full disk, into a `ConfigError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename:
            reason += f" ({error.filename})"
        fix = "free space or change permissions and run the same command again, or choose another place"
        raise ConfigError("an output directory that can be written", f"out={out}: {reason}", fix) from None


def load_result(planned_shard: PlannedShard, out: Path, work: Path) -> ShardResult | None:
    """Loads the result that an earlier, interrupted build left for a shard, if its files are still there."""
    try:
        with _get_marker_path(planned_shard, work).open(encoding="utf-8") as lines:
            result = ShardResult.model_validate_json(next(lines, ""))
        is_complete = all((out / file.file).stat().st_size == file.bytes for file in result.shard.files)
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    return result if is_complete else None


def read_rejections(planned_shard: PlannedShard, work: Path) -> Iterator[str]:
    """Yields the lines of JSON that describe the rejected candidates of a shard."""
    with _get_marker_path(planned_shard, work).open(encoding="utf-8") as lines:
        next(lines)  # the result
        yield from lines


def _get_marker_path(planned_shard: PlannedShard, work: Path) -> Path:
    return work / f"{planned_shard.file}.done"
