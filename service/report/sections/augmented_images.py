"""Pictures of augmented images, for the section of a report and for the preview page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.augment.base import Fact
from service.report.analysis.augmented import AugmentedImage
from service.report.drawing.album import Album, Drawing, Picture, draw_photo


@dataclass(frozen=True)
class VersionView:
    """An image as augmented in one epoch, for the templates.

    Attributes:
        epoch: Number of the epoch.
        picture: The augmented image.
        facts: Descriptions of the drawn parameters.
        matrix: Rows of the affine matrix; None without geometric augmentations.
    """

    epoch: int
    picture: Picture
    facts: tuple[Fact, ...]
    matrix: list[list[float]] | None


@dataclass(frozen=True)
class ImageView:
    """An image with its augmented versions, for the templates.

    Attributes:
        row: Row of the image in its split.
        id: Identifier of the image in its source.
        label: Name of its class.
        original: The image as stored.
        versions: The image in each of the epochs.
    """

    row: int
    id: str
    label: str
    original: Picture
    versions: list[VersionView]


def add_augmented_images(
    album: Album, images: Sequence[AugmentedImage], shards_digest: str, split: str
) -> list[ImageView]:
    """Adds augmented images and their originals to an album.

    Args:
        album: Album the pictures are added to.
        images: Images with their augmented versions.
        shards_digest: Digest of the shard set's manifest, for the manifest of the page.
        split: Split the images are from.
    """
    views = []
    for image in images:
        origin = {"shards": shards_digest, "split": split, "row": image.row}
        original, *pictures = album.add_all(_draw_image(image, origin))
        versions = [
            VersionView(version.epoch, picture, version.facts, version.parameters.get("affine"))
            for version, picture in zip(image.versions, pictures, strict=True)
        ]
        views.append(ImageView(image.row, image.id, image.label, original, versions))
    return views


def _draw_image(image: AugmentedImage, origin: dict[str, Any]) -> list[Drawing]:
    """Draws the original, then the versions."""
    alt = f"{image.label}, {image.id}, as stored"
    drawings = [draw_photo(image.pixels, "original", alt, origin | {"id": image.id})]
    for version in image.versions:
        facts = [f"{fact.name} {fact.value}" for fact in version.facts]
        alt = ", ".join([f"the same in epoch {version.epoch}", *facts])
        parameters = {"epoch": version.epoch, "parameters": version.parameters}
        drawings.append(draw_photo(version.pixels, "version", alt, origin | parameters))
    return drawings
