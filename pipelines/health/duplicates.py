"""Groups images that are the same: identical, nearly the same, or mirrored, also across splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.health.neighbours import MAX_DISTANCE, Pairs, find_neighbours
from pipelines.health.thumbnails import mirror_hashes, normalize

MIN_CONTRAST = 4.0  # standard deviation in grey levels below which a perceptual hash is noise
MAX_PAIRS = 1_000_000  # similar pairs that are compared by their thumbnails
# A pair is a duplicate if it differs much less than images differ from the most similar one of a sample, for
# the 5 % of images with the smallest difference. One limit for all sets would be wrong: two handwritten ones
# are more alike than a photo and its own detail.
RATIO = 0.12
QUANTILE = 0.05
MAX_DIFFERENCE = 0.05  # one minus the correlation of two thumbnails
MIN_DIFFERENCE = 0.002  # of a JPEG of quality 20 or of half the size from its original
KINDS = ("identical", "similar", "mirrored")

ReadGrey = Callable[[NDArray[np.int64]], NDArray[np.float32]]
IsSamePicture = Callable[[int, int], bool]


class Sample(NamedTuple):
    """Images that stand for a shard set.

    Attributes:
        hashes: uint64 `[m]`, their perceptual hashes.
        grey: float32 `[m, SIDE, SIDE]`, their thumbnails.
    """

    hashes: NDArray[np.uint64]
    grey: NDArray[np.float32]


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that show the same picture.

    Attributes:
        images: Their indices in the shard set, ascending, so that the first split comes first.
        kind: `identical` if all have the same pixels, `mirrored` if one is the mirror image of another,
            else `similar`.
    """

    images: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Duplicates:
    """All groups of duplicates.

    Attributes:
        groups: Groups of at least two images, by their first image.
        is_complete: Whether all similar pairs were compared; False if there were more than `MAX_PAIRS`.
        max_difference: Largest difference, one minus the correlation, of two images that count as similar.
    """

    groups: tuple[DuplicateGroup, ...]
    is_complete: bool
    max_difference: float


def find_duplicates(
    contents: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    contrast: NDArray[np.float32],
    sample: Sample,
    read_grey: ReadGrey,
    has_same_pixels: IsSamePicture,
) -> Duplicates:
    """Finds groups of images that show the same picture.

    Identical files have the same digest. Other pairs are candidates if their perceptual hashes, or that of
    one and that of the other's mirror image, differ in at most 7 of 64 bits; they are duplicates if their
    thumbnails hardly differ. Images that are nearly of one colour have no usable hash and are only compared
    by digest.

    Measured on 3,000 photos of cats and dogs, with changed copies of 150 of them: copies that were re-encoded
    (JPEG quality 50 and 20), scaled, converted to grey, mirrored, or changed in contrast or brightness by
    30 % are found in 95 to 100 % of the cases; cropped by 1 % on every side 100 %, by 2 % 56 %, by 5 % none.
    Among the 4.5 million pairs of original photos, and as many mirrored ones, one pair is listed, and it is
    the same picture. `tests/benchmarks/README.md` has the table.

    Args:
        contents: uint64 `[n]`, digests of the files.
        hashes: uint64 `[n]`, perceptual hashes.
        contrast: float32 `[n]`, standard deviation of the grey levels.
        sample: Images that stand for the set.
        read_grey: Returns the grey thumbnails, float32 `[k, SIDE, SIDE]`, of some images.
        has_same_pixels: Tells whether two images of similar thumbnails have the same pixels at full size.
    """
    _, first, group = np.unique(contents, return_index=True, return_inverse=True)
    originals = first[group]  # [n], the first image of the same content
    identical = np.flatnonzero(originals != np.arange(len(contents)))
    links = [(int(originals[index]), int(index), "identical") for index in identical]

    distinct = np.sort(first[contrast[first] >= MIN_CONTRAST])
    pairs, is_mirrored, is_complete = _find_candidates(distinct, hashes)
    max_difference = MAX_DIFFERENCE
    if len(pairs):
        max_difference = estimate_max_difference(sample)
        differences = _compare(pairs, is_mirrored, read_grey)
        for (one, other), mirrored, difference in zip(
            pairs.tolist(), is_mirrored.tolist(), differences.tolist(), strict=True
        ):
            if difference > max_difference:
                continue
            kind = "mirrored" if mirrored else "similar"
            if not mirrored and difference < MIN_DIFFERENCE and has_same_pixels(one, other):
                kind = "identical"
            links.append((one, other, kind))
    return Duplicates(tuple(_group_links(links)), is_complete, max_difference)


def estimate_max_difference(sample: Sample) -> float:
    """Estimates how little two images of a set may differ to count as the same picture.

    Args:
        sample: Images that stand for the set.

    Returns:
        One minus the smallest correlation, within `MIN_DIFFERENCE` and `MAX_DIFFERENCE`.
    """
    if len(sample.hashes) < 2:
        return MAX_DIFFERENCE
    normalized = normalize(sample.grey)
    differences = 1 - normalized @ normalized.T  # [m, m]
    np.fill_diagonal(differences, 1)
    # In a set with many duplicates, these would hide how much pictures differ.
    is_hash_near = np.bitwise_count(sample.hashes[:, None] ^ sample.hashes) <= MAX_DISTANCE
    differences[is_hash_near & (differences < MAX_DIFFERENCE)] = 1
    usual = float(np.quantile(differences.min(axis=1), QUANTILE))
    return float(np.clip(RATIO * usual, MIN_DIFFERENCE, MAX_DIFFERENCE))


def _find_candidates(
    distinct: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> tuple[Pairs, NDArray[np.bool_], bool]:
    """Finds pairs of images with similar hashes, first those that are not mirrored."""
    own = hashes[distinct]
    pairs, _, has_all = find_neighbours(own, own, MAX_PAIRS)
    mirrored, _, has_all_mirrored = find_neighbours(own, mirror_hashes(own), MAX_PAIRS)
    candidates = np.concatenate([pairs, mirrored])
    is_mirrored = np.arange(len(candidates)) >= len(pairs)
    return distinct[candidates], is_mirrored, has_all and has_all_mirrored


def _compare(pairs: Pairs, is_mirrored: NDArray[np.bool_], read_grey: ReadGrey) -> NDArray[np.float32]:
    """Returns one minus the correlation of the thumbnails of every pair, float32 `[n]`."""
    images, positions = np.unique(pairs, return_inverse=True)
    positions = positions.reshape(pairs.shape)
    grey = read_grey(images)
    normalized = normalize(grey)  # [k, SIDE * SIDE]
    mirrored = normalize(grey[:, :, ::-1])
    differences = np.empty(len(pairs), np.float32)
    step = 4_096  # pairs at a time, 16 MB each
    for start in range(0, len(pairs), step):
        part = slice(start, start + step)
        one = normalized[positions[part, 0]]
        other = normalized[positions[part, 1]]
        is_flipped = is_mirrored[part]
        other[is_flipped] = mirrored[positions[part, 1][is_flipped]]
        differences[part] = 1 - np.einsum("np,np->n", one, other)
    return differences


def _group_links(links: Sequence[tuple[int, int, str]]) -> list[DuplicateGroup]:
    """Joins linked images into groups (union-find)."""
    parents: dict[int, int] = {}

    def find_root(image: int) -> int:
        parents.setdefault(image, image)
        while parents[image] != image:
            parents[image] = parents[parents[image]]  # halves the path for the next time
            image = parents[image]
        return image

    for one, other, _ in links:
        first, second = sorted((find_root(one), find_root(other)))
        parents[second] = first
    members: dict[int, list[int]] = {}
    for image in parents:
        members.setdefault(find_root(image), []).append(image)
    kinds: dict[int, int] = {}
    for one, _, kind in links:
        root = find_root(one)
        kinds[root] = max(kinds.get(root, 0), KINDS.index(kind))
    return [
        DuplicateGroup(tuple(sorted(images)), KINDS[kinds[root]]) for root, images in sorted(members.items())
    ]
