"""Dataset health: duplicates, class sizes and unusual images of the shard set, with pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.health.report import KIND_NAMES, DuplicateImages, Health, ImageName
from pipelines.health.text import describe_scope, describe_sizes, select_classes, sort_duplicates
from pipelines.input.mixed_manifest import MixedSet
from service.report.drawing.album import Album, Drawing, Picture, draw_photo
from service.report.sections.section import Section

MAX_GROUPS = 12  # groups of duplicates shown
MAX_COPIES = 4  # images shown of one group
MAX_CONSTANT = 6  # images of a single colour shown
MEAN_SIDE = 128  # pixels of a mean image on the page

ReadPicture = Callable[[str, int], np.ndarray]


@dataclass(frozen=True)
class ShownGroup:
    """A group of duplicates with the pictures of its first images.

    Attributes:
        group: Images that show the same picture.
        kind: Its kind in words.
        copies: Images and their pictures.
    """

    group: DuplicateImages
    kind: str
    copies: tuple[tuple[ImageName, Picture], ...]


@dataclass(frozen=True)
class ShownClass:
    """One row of the table of classes.

    Attributes:
        name: Name of the class.
        counts: Number of images in every split.
        share: Share of the images of the first split, 0 to 1.
        mean: Picture of its mean image; None without images.
    """

    name: str
    counts: tuple[int, ...]
    share: float
    mean: Picture | None


def build_section(
    album: Album,
    health: Health,
    read_picture: ReadPicture,
    shards_digest: str,
    mix: Sequence[MixedSet] = (),
) -> Section:
    """Builds the tables and pictures of a check.

    Args:
        album: Album the pictures are added to.
        health: Result of the check.
        read_picture: Returns the pixels of an image, uint8 `[H, W, 1 or 3]`, by split and row.
        shards_digest: Digest of the shard set's manifest, recorded with every picture.
        mix: The sets that the training images come from, if there are several; those in the check are the
            images of the set named by `--data` alone.
    """
    painter = _Painter(album, read_picture, shards_digest)
    groups = sort_duplicates(health.duplicates)[:MAX_GROUPS]
    values = {
        "health": health,
        "scope": describe_scope(health),
        "sizes": describe_sizes(health),
        "splits": tuple(health.class_counts),
        "classes": _describe_classes(health, painter),
        "groups": [_show_group(group, painter) for group in groups],
        "darkest": painter.add_with_values(health.darkest),
        "brightest": painter.add_with_values(health.brightest),
        "constant": painter.add(health.constant[:MAX_CONSTANT]),
        "mix": mix,
    }
    figures = health.figures() | {"alerts": list(health.alerts)}
    return Section("health", "Dataset health", values, figures)


class _Painter:
    """Adds images of the shard set to an album."""

    def __init__(self, album: Album, read_picture: ReadPicture, shards_digest: str) -> None:
        self._album = album
        self._read_picture = read_picture
        self._shards_digest = shards_digest

    def add(self, images: Iterable[ImageName]) -> list[tuple[ImageName, Picture]]:
        """Adds the pictures of some images."""
        images = list(images)
        drawings = []
        for image in images:
            origin = {"shards": self._shards_digest, "split": image.split, "rows": [image.row]}
            drawings.append(
                draw_photo(self._read_picture(image.split, image.row), "health", str(image), origin)
            )
        return list(zip(images, self._album.add_all(drawings), strict=True))

    def add_with_values(
        self, images: Iterable[tuple[ImageName, float]]
    ) -> list[tuple[ImageName, Picture, float]]:
        """Adds the pictures of some images, each with its value."""
        pairs = list(images)
        pictures = self.add(image for image, _ in pairs)
        return [(image, picture, value) for (image, picture), (_, value) in zip(pictures, pairs, strict=True)]

    def add_mean(self, pixels: np.ndarray, name: str) -> Picture:
        """Adds the mean image of a class, enlarged smoothly."""
        picture = Image.fromarray(pixels).resize((MEAN_SIDE, MEAN_SIDE), Image.Resampling.BICUBIC)
        origin = {"shards": self._shards_digest, "class": name}
        drawing = Drawing(
            np.asarray(picture),
            "mean",
            f"Mean image of class {name}, {pixels.shape[1]} x {pixels.shape[0]} pixels",
            origin,
        )
        return self._album.add_all([drawing])[0]


def _show_group(group: DuplicateImages, painter: _Painter) -> ShownGroup:
    return ShownGroup(group, KIND_NAMES[group.kind], tuple(painter.add(_select_copies(group))))


def _select_copies(group: DuplicateImages) -> list[ImageName]:
    """Selects the first images of a group; of a leak, at least one of every split."""
    first_of_splits: dict[str, ImageName] = {}
    for image in group.images:
        first_of_splits.setdefault(image.split, image)
    selected = list(first_of_splits.values())
    for image in group.images:
        if len(selected) >= MAX_COPIES:
            break
        if image not in selected:
            selected.append(image)
    return sorted(selected, key=group.images.index)


def _describe_classes(health: Health, painter: _Painter) -> list[ShownClass]:
    first_counts = next(iter(health.class_counts.values()), ())
    total = max(sum(first_counts), 1)
    classes = []
    for label in select_classes(health):
        name = health.classes[label]
        pixels = health.mean_images[label]
        mean = None if pixels is None else painter.add_mean(pixels, name)
        counts = tuple(counts[label] for counts in health.class_counts.values())
        classes.append(ShownClass(name, counts, first_counts[label] / total, mean))
    return classes
