"""What a check of a shard set found: warnings in words, and every figure for other programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Largest class over the smallest one from which a set counts as imbalanced: a share of the smaller one of two
# classes below 20 %, "moderate" in Google's machine learning course.
IMBALANCE = 4.0
KIND_NAMES = {
    "identical": "identical",
    "similar": "nearly identical (re-encoded, resized or slightly changed)",
    "mirrored": "mirror images",
}


@dataclass(frozen=True)
class ImageName:
    """One image of the shard set.

    Attributes:
        split: Name of its split.
        row: Row number in that split.
        id: Path of the image in its source.
        label: Name of its class.
    """

    split: str
    row: int
    id: str
    label: str

    def __str__(self) -> str:
        return f"{self.split} row {self.row}: {self.id} ({self.label})"


@dataclass(frozen=True)
class DuplicateImages:
    """Images that show the same picture.

    Attributes:
        kind: `identical`, `similar` or `mirrored`, see `pipelines.health.duplicates.DuplicateGroup`.
        images: The images, at least two, those of the first split first.
    """

    kind: str
    images: tuple[ImageName, ...]

    @property
    def is_leak(self) -> bool:
        """Whether the images are in different splits."""
        return len({image.split for image in self.images}) > 1

    @property
    def is_contradictory(self) -> bool:
        """Whether the images have different labels."""
        return len({image.label for image in self.images}) > 1


@dataclass(frozen=True)
class ImageSizes:
    """Sizes of the stored images in pixels; triples are minimum, median and maximum.

    Attributes:
        heights: Heights of the images.
        widths: Widths of the images.
        ratios: Ratios of width to height.
        distinct: Number of different sizes.
        most_common: The most common size: height, width.
        most_common_count: Number of images of that size.
        elongated: Number of images more than twice as wide as high, or the other way round.
        grey: Number of images with one channel.
    """

    heights: tuple[float, float, float]
    widths: tuple[float, float, float]
    ratios: tuple[float, float, float]
    distinct: int
    most_common: tuple[int, int]
    most_common_count: int
    elongated: int
    grey: int


@dataclass(frozen=True)
class Health:
    """Result of checking a shard set.

    Attributes:
        classes: Class names in the order of their labels.
        class_counts: Images per class by split, over the whole set.
        images: Number of images that were read.
        duplicates: Groups of images that show the same picture.
        has_all_duplicates: Whether all similar images were compared.
        sizes: Sizes of the images; None without images.
        darkest: The darkest images with their mean brightness, 0 to 255.
        brightest: The brightest images with their mean brightness.
        constant: Images of a single colour.
        mean_images: Mean thumbnail of a sample of every class, uint8 `[H, W, 3]`; None without images.
    """

    classes: tuple[str, ...]
    class_counts: dict[str, tuple[int, ...]]
    images: int
    duplicates: tuple[DuplicateImages, ...]
    has_all_duplicates: bool
    sizes: ImageSizes | None
    darkest: tuple[tuple[ImageName, float], ...]
    brightest: tuple[tuple[ImageName, float], ...]
    constant: tuple[ImageName, ...]
    mean_images: tuple[NDArray[np.uint8] | None, ...]

    @property
    def total(self) -> int:
        """Number of images in the shard set."""
        return sum(sum(counts) for counts in self.class_counts.values())

    @property
    def leaks(self) -> tuple[DuplicateImages, ...]:
        """Groups of the same picture in several splits."""
        return tuple(group for group in self.duplicates if group.is_leak)

    @property
    def contradictions(self) -> tuple[DuplicateImages, ...]:
        """Groups of the same picture with different labels."""
        return tuple(group for group in self.duplicates if group.is_contradictory)

    def count_leaked(self) -> dict[tuple[str, str], int]:
        """Counts, for every pair of splits, the images of the second whose picture is in the first too."""
        order = list(self.class_counts)
        counts: dict[tuple[str, str], int] = {}
        for group in self.leaks:
            splits = [image.split for image in group.images]
            present = sorted(set(splits), key=order.index)
            for position, second in enumerate(present):
                for first in present[:position]:
                    counts[first, second] = counts.get((first, second), 0) + splits.count(second)
        return counts

    @property
    def imbalance(self) -> float:
        """Images of the largest class over those of the smallest one that has any, in the first split."""
        counts = [count for count in self._first_counts if count]
        return max(counts) / min(counts) if counts else 1.0

    @property
    def _first_counts(self) -> tuple[int, ...]:
        return next(iter(self.class_counts.values()), ())

    @property
    def alerts(self) -> tuple[str, ...]:
        """Warnings of mistakes that make scores wrong; duplicates across splits come first."""
        return (*self._warn_of_leaks(), *self._warn_of_contradictions())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to correct before training: the alerts, then everything else."""
        return (
            *self.alerts,
            *self._warn_of_duplicates(),
            *self._warn_of_classes(),
            *self._warn_of_constant_images(),
        )

    def figures(self) -> dict[str, Any]:
        """Returns every figure by name, ready for JSON."""
        return {
            "images": self.images,
            "total": self.total,
            "warnings": list(self.warnings),
            "class_counts": {
                split: dict(zip(self.classes, counts, strict=True))
                for split, counts in self.class_counts.items()
            },
            "imbalance": self.imbalance,
            "leaked": [
                {"split": second, "also_in": first, "images": count}
                for (first, second), count in self.count_leaked().items()
            ],
            "duplicates": [
                {"kind": group.kind, "images": [asdict(image) for image in group.images]}
                for group in self.duplicates
            ],
            "has_all_duplicates": self.has_all_duplicates,
            "sizes": asdict(self.sizes) if self.sizes else None,
            "darkest": [asdict(image) | {"brightness": value} for image, value in self.darkest],
            "brightest": [asdict(image) | {"brightness": value} for image, value in self.brightest],
            "constant": [asdict(image) for image in self.constant],
        }

    def _warn_of_leaks(self) -> list[str]:
        warnings = []
        for (first, second), count in self.count_leaked().items():
            total = sum(self.class_counts[second])
            are = "is" if count == 1 else "are"
            warnings.append(
                f"Leakage: {count:,} of {total:,} {second} images {are} also in {first}. "
                f"{_explain_leak(first)} Remove the copies from one of the two splits, and build the "
                "shard set again."
            )
        return warnings

    def _warn_of_contradictions(self) -> list[str]:
        count = len(self.contradictions)
        if not count:
            return []
        pictures = "picture has" if count == 1 else "pictures have"
        return [
            f"{count:,} {pictures} copies with different labels. At least one of the labels is wrong: "
            "look at them, and correct or remove them."
        ]

    def _warn_of_duplicates(self) -> list[str]:
        inside = [group for group in self.duplicates if not group.is_leak]
        copies = sum(len(group.images) - 1 for group in inside)
        if not copies:
            return []
        images = "image is a copy" if copies == 1 else "images are copies"
        text = (
            f"{copies:,} {images} of another one in the same split. Copies count twice in training, and "
            "make scores look more certain than they are."
        )
        if not self.has_all_duplicates:
            text += " There are more: the search stopped, because too many images resemble each other."
        return [text]

    def _warn_of_classes(self) -> list[str]:
        warnings = []
        for split, counts in self.class_counts.items():
            empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
            if empty and any(counts):
                names = ", ".join(empty[:5]) + (" and others" if len(empty) > 5 else "")
                warnings.append(f"{len(empty):,} of {len(counts):,} classes have no {split} images: {names}.")
        if self.imbalance >= IMBALANCE:
            counts = self._first_counts
            share = max(counts) / sum(counts)
            warnings.append(
                f"The largest class has {self.imbalance:.0f} times as many images as the smallest one. "
                f"Always predicting the largest class is right for {share:.0%} of the images: compare "
                "accuracies with this number, and look at the accuracy of every class."
            )
        return warnings

    def _warn_of_constant_images(self) -> list[str]:
        count = len(self.constant)
        if not count:
            return []
        images = "image is" if count == 1 else "images are"
        return [f"{count:,} {images} of a single colour and show nothing: remove them."]


def _explain_leak(split: str) -> str:
    """Explains what is wrong with images of another split that are in this split too."""
    if split == "train":
        return "A model sees them during training, so its score on them says nothing about new images."
    return "The two scores are not independent of each other."
