"""The manifest of a training on several shard sets: `data.mix`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import model_validator

from pipelines.errors import DataError
from pipelines.input.mixture import compute_draws
from pipelines.remote.uri import Location
from pipelines.settings import Spec
from pipelines.shards.manifest import InlineSplit, Manifest, SplitManifest, load_manifest
from pipelines.spec import DataSpec
from pipelines.storage import hash_json

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
        class_counts: Expected rows per class in one epoch, rounded up.
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
    return mix_manifests(str(location), manifest, data)


def select_mix(settings: Mapping[str, Any], location: str | Location) -> DataSpec:
    """Returns the mix of a run, without its other settings, which an older version may have stored.

    Args:
        settings: Configuration of the run, groups nested.
        location: Shard set that is used; a mix belongs to the one that the configuration names.
    """
    stored = settings.get("data") or {}
    if not stored.get("mix") or str(location) != str(settings.get("shards")):
        return DataSpec()
    return DataSpec(mix=stored["mix"], epoch_images=stored.get("epoch_images"))


def mix_manifests(location: str, base: Manifest, data: DataSpec) -> MixedManifest:
    """Builds the manifest of a mix.

    Args:
        location: Path or URI of the shard set named by `--data`.
        base: Manifest of that set.
        data: Settings with a mix.

    Raises:
        DataError: A shard set does not exist or is damaged, or the sets cannot be mixed.
        ConfigError: A set would have no image in an epoch.
    """
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
        class_counts=tuple(np.ceil(counts - 1e-9).astype(int).tolist()),
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


def find_set(mix: Sequence[MixedSet], row: int) -> MixedSet:
    """Returns the set of a mix that a row comes from."""
    first_rows = [mixed.first_row for mixed in mix]
    return mix[bisect_right(first_rows, row) - 1]
