"""Checks the health of a shard set: finds what harms training or falsifies its scores, without any model."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cluster import ray_session, run_tasks
from pipelines.errors import ConfigError, DataError
from pipelines.health.duplicates import Duplicates, Sample, find_duplicates
from pipelines.health.report import DuplicateImages, Health, ImageName, ImageSizes
from pipelines.health.scan import EMPTY, ShardFeatures, scan_shard
from pipelines.health.thumbnails import SIDE, compute_thumbnail, convert_to_grey, decode_image
from pipelines.input.reader import ShardReader
from pipelines.open_file import DAMAGE_FIX
from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location
from pipelines.shards.files import ShardFiles, open_files
from pipelines.shards.manifest import Manifest, load_manifest
from pipelines.shards.split_index import SetShard, SetShards, ShardCalls

SAMPLE = 1000  # images that stand for the set when the difference between two images is judged
MEAN_SAMPLE = 300  # images per class behind a mean image, about
MAX_CONSTANT_CONTRAST = 1.0  # grey levels; images below are decoded in full to see whether they are constant
EXTREMES = 5  # darkest and brightest images that are listed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Features:
    """Features of all images that were read, in the order of splits and rows.

    Attributes:
        splits: Names of the splits.
        rows: Number of images that were read in each split: its first ones.
        images: Features of the images, as of a single shard.
        sampled: int64 `[m]`, indices of the images in `images.sample`.
    """

    splits: tuple[str, ...]
    rows: tuple[int, ...]
    images: ShardFeatures
    sampled: NDArray[np.int64]

    def locate(self, index: int) -> tuple[str, int]:
        """Returns split and row of an image."""
        ends = np.cumsum(self.rows)
        position = int(np.searchsorted(ends, index, side="right"))
        return self.splits[position], int(index - ends[position] + self.rows[position])


def check_shards(
    directory: str | Location,
    progress: Progress | None = None,
    workers: int | None = None,
    limit: int | None = None,
) -> Health:
    """Checks the health of a shard set.

    Every image is decoded once, JPEGs at a fraction of their size. This takes less time than decoding them
    for training; what is computed besides adds about a tenth. Memory: 40 bytes an image.

    Args:
        directory: Path or URI of the shard set.
        progress: Called with the number of images read and in total.
        workers: Maximum number of Ray tasks; None for one per CPU of the cluster at `RAY_ADDRESS`, or for
            this process alone if the variable is not set.
        limit: Number of images to read, the first ones of every split; None for all.

    Raises:
        DataError: There is no shard set, or a file or an image of it is damaged.
        ConfigError: Workers died, or `workers` is not positive.
    """
    if workers is not None and workers < 1:
        raise ConfigError(
            "at least one worker", f"workers={workers}", "name a larger number, or leave it out"
        )
    directory = resolve_location(directory)
    manifest = load_manifest(directory)
    files = open_files(directory)
    shards = _select_shards(files, manifest, limit)
    features = _collect_features(files, manifest, shards, progress or (lambda done, total: None), workers)
    reader = _ImageReader(directory, manifest, features)
    duplicates = find_duplicates(
        features.images.contents,
        features.images.hashes,
        features.images.contrast,
        _select_sample(features),
        reader.read_grey,
        reader.has_same_pixels,
    )
    candidates = np.flatnonzero(features.images.contrast < MAX_CONSTANT_CONTRAST)
    constant = [index for index in candidates.tolist() if reader.is_constant(index)]
    by_brightness = np.argsort(features.images.brightness, kind="stable")
    darkest = by_brightness[:EXTREMES].tolist()
    brightest = by_brightness[::-1][:EXTREMES].tolist()
    return Health(
        classes=manifest.classes,
        class_counts={name: split.class_counts for name, split in manifest.splits.items()},
        images=len(features.images.labels),
        duplicates=_name_duplicates(duplicates, reader),
        has_all_duplicates=duplicates.is_complete,
        sizes=_measure_sizes(features.images.shapes),
        darkest=tuple(zip(reader.name(darkest), features.images.brightness[darkest].tolist(), strict=True)),
        brightest=tuple(
            zip(reader.name(brightest), features.images.brightness[brightest].tolist(), strict=True)
        ),
        constant=tuple(reader.name(constant)),
        mean_images=_compute_mean_images(features, len(manifest.classes)),
    )


class _ImageReader:
    """Reads images of the set by their index in the features.

    Args:
        directory: Path or URI of the shard set.
        manifest: Manifest of that shard set.
        features: Features that the indices refer to.
    """

    def __init__(self, directory: Location, manifest: Manifest, features: Features) -> None:
        self._features = features
        self._encoding = manifest.encoding
        self._classes = manifest.classes
        self._readers = {name: ShardReader(directory, name) for name in features.splits}

    def name(self, indices: Sequence[int]) -> list[ImageName]:
        """Returns split, row, identifier and class of some images."""
        names = []
        for index in indices:
            split, row = self._features.locate(index)
            (image_id,) = self._readers[split].read_ids([row])
            label = int(self._features.images.labels[index])
            names.append(ImageName(split, row, image_id, self._classes[label]))
        return names

    def read_grey(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the grey thumbnails of some images, float32 `[n, SIDE, SIDE]`."""
        grey = np.empty((len(indices), SIDE, SIDE), np.float32)
        start = 0  # index of the first image of the split
        for split, count in zip(self._features.splits, self._features.rows, strict=True):
            positions = np.flatnonzero((indices >= start) & (indices < start + count))
            images = self._readers[split].read_images(indices[positions] - start)
            shapes = self._features.images.shapes[indices[positions]].tolist()
            for position, image, shape in zip(positions.tolist(), images, shapes, strict=True):
                grey[position] = compute_thumbnail(image, shape, self._encoding, channels=1)[..., 0]
            start += count
        return grey

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Returns the pixels of an image at full size, uint8 `[H, W, C]`."""
        image, shape = self._read(index)
        try:
            return decode_image(image, shape, self._encoding)
        except ValueError as error:  # the thumbnail could be decoded, the whole image cannot
            (name,) = self.name([index])
            received = f"split={name.split} row={name.row} id={name.id}: {error}"
            raise DataError("images that can be decoded", received, DAMAGE_FIX) from None

    def has_same_pixels(self, one: int, other: int) -> bool:
        """Tells whether two images have the same shape and pixels."""
        if tuple(self._features.images.shapes[one]) != tuple(self._features.images.shapes[other]):
            return False
        return np.array_equal(self.decode(one), self.decode(other))

    def is_constant(self, index: int) -> bool:
        """Tells whether all pixels of an image have one colour."""
        pixels = self.decode(index)
        return bool((pixels == pixels[0, 0]).all())

    def _read(self, index: int) -> tuple[bytes, Sequence[int]]:
        split, row = self._features.locate(index)
        (image,) = self._readers[split].read_images([row])
        return image, self._features.images.shapes[index].tolist()


def _select_shards(files: ShardFiles, manifest: Manifest, limit: int | None) -> Sequence[SetShard]:
    """Returns the shards to read: the first ones of every split, in proportion."""
    shards = SetShards(files, manifest)
    total = sum(split.rows for split in manifest.splits.values())
    if limit is None or limit >= total:
        return shards
    selected = []
    rows = dict.fromkeys(manifest.splits, 0)
    for set_shard in shards:
        if rows[set_shard.split] < limit / total * manifest.splits[set_shard.split].rows:
            selected.append(set_shard)
            rows[set_shard.split] += set_shard.shard.rows
    return selected


def _collect_features(
    files: ShardFiles,
    manifest: Manifest,
    shards: Sequence[SetShard],
    progress: Progress,
    workers: int | None,
) -> Features:
    """Scans shards, in this process or as Ray tasks."""
    total = sum(set_shard.shard.rows for set_shard in shards)
    sample_size = max(SAMPLE, MEAN_SAMPLE * len(manifest.classes))
    per_shard = -(-sample_size // max(len(shards), 1))
    calls = ShardCalls(files, shards, manifest.encoding, per_shard)
    results = [EMPTY] * len(shards)
    done = 0
    progress(done, total)
    with closing(_run(calls, workers)) as scans:
        for index, scan in scans:
            results[index] = scan
            done += shards[index].shard.rows
            progress(done, total)

    rows = dict.fromkeys(manifest.splits, 0)
    sampled = [np.zeros(0, np.int64)]
    start = 0
    for set_shard, scan in zip(shards, results, strict=True):
        rows[set_shard.split] += set_shard.shard.rows
        sampled.append(np.arange(start, start + len(scan.sample)))
        start += set_shard.shard.rows
    columns = {
        name: np.concatenate([getattr(EMPTY, name), *(getattr(scan, name) for scan in results)])
        for name in ShardFeatures._fields
    }
    return Features(tuple(rows), tuple(rows.values()), ShardFeatures(**columns), np.concatenate(sampled))


def _select_sample(features: Features) -> Sample:
    """Selects thumbnails that stand for the set, evenly spread over those that were kept."""
    positions = np.linspace(0, len(features.sampled) - 1, min(SAMPLE, len(features.sampled))).astype(np.int64)
    grey = convert_to_grey(features.images.sample[positions])
    return Sample(features.images.hashes[features.sampled[positions]], grey)


def _run(
    calls: Sequence[tuple[Any, ...]], workers: int | None
) -> Generator[tuple[int, ShardFeatures], None, None]:
    """Yields index and result of every call of `scan_shard`."""
    if workers is None and not os.environ.get("RAY_ADDRESS"):
        for index, call in enumerate(calls):
            yield index, scan_shard(*call)
        return
    with ray_session():
        yield from run_tasks(scan_shard, calls, lambda index: str(calls[index][1].shard.file), workers)


def _name_duplicates(duplicates: Duplicates, reader: _ImageReader) -> tuple[DuplicateImages, ...]:
    return tuple(DuplicateImages(group.kind, tuple(reader.name(group.images))) for group in duplicates.groups)


def _measure_sizes(shapes: NDArray[np.int32]) -> ImageSizes | None:
    """Summarizes heights and widths; None without images."""
    if not len(shapes):
        return None
    sizes, counts = np.unique(shapes[:, :2], axis=0, return_counts=True)
    most_common = int(counts.argmax())
    ratios = shapes[:, 1] / shapes[:, 0]
    return ImageSizes(
        heights=_list_quartiles(shapes[:, 0]),
        widths=_list_quartiles(shapes[:, 1]),
        ratios=_list_quartiles(ratios),
        distinct=len(sizes),
        most_common=(int(sizes[most_common, 0]), int(sizes[most_common, 1])),
        most_common_count=int(counts[most_common]),
        elongated=int(((ratios > 2) | (ratios < 0.5)).sum()),
        grey=int((shapes[:, 2] == 1).sum()),
    )


def _list_quartiles(values: NDArray[Any]) -> tuple[float, float, float]:
    """Returns minimum, median and maximum."""
    return float(values.min()), float(np.median(values)), float(values.max())


def _compute_mean_images(features: Features, classes: int) -> tuple[NDArray[np.uint8] | None, ...]:
    """Returns the mean thumbnail of a sample of every class, uint8 `[SIDE, SIDE, 3]`; None without images."""
    labels = features.images.labels[features.sampled]
    means: list[NDArray[np.uint8] | None] = []
    for label in range(classes):
        thumbnails = features.images.sample[labels == label]
        if len(thumbnails):
            means.append(thumbnails.mean(axis=0).round().astype(np.uint8))
        else:
            means.append(None)
    return tuple(means)
