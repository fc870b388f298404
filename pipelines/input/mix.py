"""Several shard sets as one training split: `data.mix`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from pipelines.errors import DataError
from pipelines.input.mixture import compute_draws
from pipelines.input.reader import RowNumbers, ShardNumbers, ShardReader
from pipelines.input.windows import Rows
from pipelines.records import Box
from pipelines.remote.uri import Location
from pipelines.settings import Spec
from pipelines.shards.manifest import InlineSplit, Manifest, SplitManifest, load_manifest
from pipelines.spec import DataSpec
from pipelines.storage import hash_json

T = TypeVar("T")

SPLIT = "train"  # the split that is mixed
MAX_NAMES = 5  # classes listed in an error


class MixedSet(Spec):
    """One set of a mix.

    Attributes:
        location: Path or URI of the shard set.
        weight: Weight of the set in the mix.
        rows: Number of training images of the set.
        first_row: Row number of its first image; the rows of all sets are numbered one after the other.
        epoch_images: Number of its images in one epoch.
        digest: Digest of its manifest.
    """

    location: str
    weight: float
    rows: int
    first_row: int
    epoch_images: int
    digest: str


class MixedSplit(Spec):
    """The training split of a mix, see `pipelines.shards.manifest.SplitManifest`.

    Attributes:
        rows: Number of images of all sets.
        shard_count: Number of shards of all sets.
        bytes: Size of the shards of all sets.
        class_counts: Expected rows per class in one epoch.
        mean: Mean of R, G and B over the images of an epoch; None if a set has none.
        std: Standard deviation of the same pixels.
    """

    rows: int
    shard_count: int
    bytes: int
    class_counts: tuple[int, ...]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None


class MixedManifest(Manifest):
    """The manifest of the set named by `--data`, with a mix in place of its training split.

    Attributes:
        splits: Splits by name; `train` is the mix.
        mix: The sets of the mix, in the order of their rows.
        base_digest: Digest of the manifest without the mix.
    """

    splits: dict[str, MixedSplit | SplitManifest | InlineSplit]  # type: ignore[assignment]
    mix: tuple[MixedSet, ...]
    base_digest: str

    @model_validator(mode="after")
    def _check_splits(self) -> MixedManifest:
        return self

    def digest(self) -> str:
        """Returns a digest of all sets: those that are mixed, and the one with the validation images."""
        return hash_json([self.base_digest, *(mixed.digest for mixed in self.mix)])


def load_training_manifest(location: str | Location, data: DataSpec) -> Manifest:
    """Reads the manifest of the images that a run is trained and validated on.

    Args:
        location: Path or URI of the shard set named by `--data`.
        data: Settings of the run; with a mix, the training split is that of the mix.

    Raises:
        DataError: A shard set does not exist or is damaged, or the sets cannot be mixed.
        ConfigError: A set would have no image in an epoch.
    """
    manifest = load_manifest(location)
    if not data.mix:
        return manifest
    return _mix_manifests(str(location), manifest, data)


def _mix_manifests(location: str, base: Manifest, data: DataSpec) -> MixedManifest:
    weights: Mapping[str, float] = data.mix or {}
    manifests = {name: load_manifest(name) for name in weights}
    _check_alike(location, base, manifests)
    splits = [manifest.get_split(SPLIT) for manifest in manifests.values()]
    rows = [split.rows for split in splits]
    draws = compute_draws(rows, list(weights.values()), data.epoch_images)
    mixed_sets = [
        MixedSet(
            location=name,
            weight=weight,
            rows=rows[index],
            first_row=sum(rows[:index]),
            epoch_images=draws[index],
            digest=manifests[name].digest(),
        )
        for index, (name, weight) in enumerate(weights.items())
    ]
    mean, std = _mix_pixels(splits, draws)
    shares = np.array(draws) / np.maximum(rows, 1)
    counts = shares @ np.array([split.class_counts for split in splits])
    mixed_split = MixedSplit(
        rows=sum(rows),
        shard_count=sum(split.shard_count for split in splits),
        bytes=sum(split.bytes for split in splits),
        class_counts=tuple(np.rint(counts).astype(int).tolist()),
        mean=mean,
        std=std,
    )
    first = next(iter(manifests.values()))
    content = dict(base) | {
        "encoding": first.encoding,
        "source": "mix of " + ", ".join(manifest.source for manifest in manifests.values()),
        "splits": {SPLIT: mixed_split} | {name: s for name, s in base.splits.items() if name != SPLIT},
        "mix": tuple(mixed_sets),
        "base_digest": base.digest(),
    }
    return MixedManifest(**content)


def _check_alike(location: str, base: Manifest, manifests: Mapping[str, Manifest]) -> None:
    """Checks that the sets have the same classes, and images that can be decoded together.

    Raises:
        DataError: They differ; the message lists the differences.
    """
    first_name = next(iter(manifests))
    first = manifests[first_name]
    for name, manifest in manifests.items():
        if manifest.classes != base.classes:
            raise DataError(
                f"the classes of {location} in every set of data.mix",
                f"data.mix: {name}: {_describe_difference(base.classes, manifest.classes)}",
                "build the sets with the same classes in the same order (--classes FILE)",
            )
        if (manifest.encoding == "raw") != (first.encoding == "raw"):
            raise DataError(
                "sets of data.mix that are all stored as raw pixels, or all as image files",
                f"{first_name}: encoding={first.encoding}, {name}: encoding={manifest.encoding}",
                "build one of them again with another --encoding",
            )
        if manifest.levels != base.levels:
            raise DataError(
                f"the levels of {location} in every set of data.mix: {base.levels}",
                f"{name}: levels={manifest.levels}",
                "build one of them again with the same --levels",
            )


def _describe_difference(expected: Sequence[str], received: Sequence[str]) -> str:
    missing = [name for name in expected if name not in received]
    additional = [name for name in received if name not in expected]
    parts = []
    for text, names in (("missing", missing), ("not expected", additional)):
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            parts.append(f"{text}: {', '.join(names[:MAX_NAMES])}{more}")
    return "; ".join(parts) or f"another order: {', '.join(received[:MAX_NAMES])}"


Pixels = tuple[float, float, float]


def _mix_pixels(
    splits: Sequence[SplitManifest | InlineSplit], draws: Sequence[int]
) -> tuple[Pixels | None, Pixels | None]:
    """Returns mean and standard deviation over the images of an epoch, from those of the sets."""
    means = []
    squares = []
    for split in splits:
        if split.mean is None or split.std is None:
            return None, None
        means.append(np.array(split.mean))
        squares.append(np.square(split.std) + np.square(split.mean))
    shares = np.array(draws) / sum(draws)
    mean = shares @ np.array(means)
    std = np.sqrt(np.maximum(shares @ np.array(squares) - mean**2, 0))
    return tuple(mean.tolist()), tuple(std.tolist())


class MixedReader:
    """Random access to the training rows of several sets, numbered one set after the other.

    The members are those of `ShardReader`.

    Args:
        location: Shard set named by `--data`.
        data: Settings with a mix.

    Attributes:
        manifest: Manifest of the mix.
        split: Name of the split.
        rows: Number of examples of all sets.
        shard_rows: int64 `[shards]`, rows of every shard of all sets, in row order.
        set_shard_rows: The same for each set.

    Raises:
        DataError: A set does not exist or is damaged, or the sets cannot be mixed.
    """

    def __init__(self, location: str | Location, data: DataSpec) -> None:
        self.manifest = _mix_manifests(str(location), load_manifest(location), data)
        self.split = SPLIT
        self._readers = [ShardReader(mixed.location, SPLIT, data.cache_gb) for mixed in self.manifest.mix]
        self.set_shard_rows: tuple[Rows, ...] = tuple(reader.shard_rows for reader in self._readers)
        self.shard_rows = np.concatenate(self.set_shard_rows)
        self._ends = np.array(list(accumulate(reader.rows for reader in self._readers)))
        self._shard_ends = np.array(list(accumulate(len(rows) for rows in self.set_shard_rows)))
        self.rows = int(self._ends[-1])

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Class indices of all rows, int32 `[rows]`; read when they are first used."""
        return np.concatenate([reader.labels for reader in self._readers])

    def read_labels(self, rows: RowNumbers) -> NDArray[np.int32]:
        """Returns the class indices of some rows, int32 `[n]`."""
        return np.array(self._gather(rows, ShardReader.read_labels), np.int32)

    def read_images(self, rows: RowNumbers) -> list[bytes]:
        """Reads the stored images of some rows, in the given order.

        Raises:
            DataError: A row does not exist, a file is missing or truncated, or an image or label differs from
                what was written; names file, row and id.
        """
        return self._gather(rows, ShardReader.read_images)

    def read_shapes(self, rows: RowNumbers) -> NDArray[np.int32]:
        """Returns height, width and channels of the stored images of some rows, int32 `[n, 3]`."""
        return np.array(self._gather(rows, ShardReader.read_shapes), np.int32).reshape(-1, 3)

    def read_ids(self, rows: RowNumbers) -> list[str]:
        """Returns the identifiers of some rows: their paths in the source."""
        return self._gather(rows, ShardReader.read_ids)

    def read_bboxes(self, rows: RowNumbers) -> list[Box | None]:
        """Returns the boxes `(ymin, xmin, ymax, xmax)` in [0, 1] of some rows, None if unknown."""
        return self._gather(rows, ShardReader.read_bboxes)

    def plan(self, windows: Iterable[ShardNumbers]) -> MixedReader:
        """Returns a reader for one pass over the split, whose shards a cache can fetch ahead and keep.

        Args:
            windows: Shards in the order of their use, see `ShardReader.plan`; iterated once for each set.
        """
        reader = copy.copy(self)
        ends = self._shard_ends.tolist()
        reader._readers = [
            part.plan(_select_shards(windows, end - len(part.shard_rows), end))
            for part, end in zip(self._readers, ends, strict=True)
        ]
        return reader

    def advance(self, window: int) -> None:
        """Announces that all windows of the plan before number `window` have been read."""
        for reader in self._readers:
            reader.advance(window)

    def check_window(self, shards: int, window: str) -> None:
        """Checks that a cache can hold twice as many bytes as any `shards` shards of each set have.

        Args:
            shards: Number of shards that are read at a time.
            window: Setting of the window, for the message.

        Raises:
            ConfigError: The cache is smaller; the message names the number needed.
        """
        for reader in self._readers:
            reader.check_window(shards, window)

    def metrics(self) -> Any:
        """Returns what was fetched from stores so far for the first set on one, None for local sets."""
        return next((m for reader in self._readers if (m := reader.metrics()) is not None), None)

    def close(self) -> None:
        """Ends the plan, and lets go of all files."""
        for reader in self._readers:
            reader.close()

    def _gather(self, rows: RowNumbers, read: Callable[[ShardReader, Rows], Iterable[T]]) -> list[T]:
        """Reads some rows from their sets, and puts the results into the order of the rows.

        Raises:
            DataError: A row does not exist.
        """
        numbers = np.asarray(rows, np.int64)
        is_outside = (numbers < 0) | (numbers >= self.rows)
        if is_outside.any():
            raise DataError(
                f"a row of {self.split!r} from 0 to {self.rows - 1}",
                f"row={numbers[is_outside][0]}",
                "choose a row in this range",
            )
        sets = np.searchsorted(self._ends, numbers, side="right")
        results: list[Any] = [None] * len(numbers)
        for index in np.unique(sets).tolist():
            reader = self._readers[index]
            places = np.flatnonzero(sets == index)
            values = read(reader, numbers[places] - (int(self._ends[index]) - reader.rows))
            for place, value in zip(places.tolist(), values, strict=True):
                results[place] = value
        return results


def _select_shards(windows: Iterable[ShardNumbers], first: int, last: int) -> Iterator[Rows]:
    """Yields those shards of every window that belong to one set, numbered from its first."""
    for window in windows:
        shards = np.asarray(window, np.int64)
        yield shards[(shards >= first) & (shards < last)] - first


AnyReader = ShardReader | MixedReader


def open_reader(location: str | Location, split: str, data: DataSpec) -> AnyReader:
    """Opens a split of a shard set, or the mix in place of its training split.

    Args:
        location: Path or URI of the shard set named by `--data`.
        split: Name of the split.
        data: Settings of the run.

    Raises:
        DataError: The shard set or the split does not exist or is damaged, or the sets cannot be mixed.
    """
    if data.mix and split == SPLIT:
        return MixedReader(location, data)
    return ShardReader(location, split, data.cache_gb)


def list_set_rows(reader: AnyReader) -> tuple[Rows, ...]:
    """Returns the rows of every shard, for each set of a mix, or for the single set."""
    return reader.set_shard_rows if isinstance(reader, MixedReader) else (reader.shard_rows,)


def list_draws(reader: AnyReader) -> tuple[int, ...] | None:
    """Returns the images of every set of a mix in an epoch; None for a single set."""
    if not isinstance(reader, MixedReader):
        return None
    return tuple(mixed.epoch_images for mixed in reader.manifest.mix)


def describe_mix(manifest: Manifest) -> tuple[str, ...]:
    """Describes the sets of a mix in sentences; nothing for a single set."""
    if not isinstance(manifest, MixedManifest):
        return ()
    total = sum(mixed.epoch_images for mixed in manifest.mix)
    lines = [f"mix: {total:,} images per epoch; validation images from --data alone"]
    for mixed in manifest.mix:
        share = mixed.epoch_images / total
        lines.append(
            f"mix: {mixed.location}: {mixed.epoch_images:,} of {mixed.rows:,} images per epoch ({share:.1%})"
        )
    return tuple(lines)
