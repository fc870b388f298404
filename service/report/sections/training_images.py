"""Training images: some images of every class, before augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.input.mixed_manifest import MixedSet, find_set
from service.report.analysis.images import Images
from service.report.drawing.album import Album, Picture
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section


def build_section(
    album: Album,
    provenance: Provenance,
    images: Images,
    classes: Sequence[str],
    input_shape: tuple[int, ...],
    count: int,
    mix: Sequence[MixedSet] = (),
) -> Section:
    """Builds a grid of training images, grouped by class.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        images: Split the model was trained on.
        classes: Class names; labels are indices into them.
        input_shape: Height, width and channels of the model's input.
        count: Number of images to show, at most.
        mix: The sets that the images come from, if there are several.
    """
    rows = select_rows(images.labels, count).tolist()
    groups: dict[str, list[Picture]] = {}
    for row, pixels, name in zip(rows, images.read(rows), images.read_ids(rows), strict=True):
        label = classes[images.labels[row]]
        picture = album.add_photo(
            pixels,
            "training",
            f"Training image {row}, {label}: {name}{_describe_origin(mix, row)}",
            **provenance.describe_images(images.split, [row]),
        )
        groups.setdefault(label, []).append(picture)
    counts = np.bincount(images.labels, minlength=len(classes)).tolist()
    sizes = dict(zip(classes, counts, strict=True))
    height, width, channels = input_shape
    values = {
        "groups": [(label, sizes[label], pictures) for label, pictures in groups.items()],
        "rows": len(images.labels),
        "classes": len(classes),
        "size": (height, width),
        "mix": mix,
    }
    figures = {
        "images": len(images.labels),
        "per_class": sizes,
        "height": height,
        "width": width,
        "channels": channels,
        "shown_rows": rows,
    }
    if mix:
        figures["mix"] = [mixed.model_dump() for mixed in mix]
        figures["shown_sets"] = [find_set(mix, row).location for row in rows]
    return Section("training_images", "Training images", values, figures)


def _describe_origin(mix: Sequence[MixedSet], row: int) -> str:
    return f" ({find_set(mix, row).location})" if mix else ""


def select_rows(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Selects rows that represent a split: equally many of every class, spread evenly over each class.

    Args:
        labels: int32 `[N]`, labels of the split.
        count: Largest number of rows; if it is not divisible by the classes, the first ones get one more.

    Returns:
        int64 `[<= count]`, grouped by class, ascending within each.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = np.zeros(len(classes), np.int64)
    for _ in range(min(count, len(labels))):
        # One more for the class with the fewest, unless it has no further images.
        shares[np.where(shares < sizes, shares, count + 1).argmin()] += 1
    rows = [np.zeros(0, np.int64)]
    for label, size, share in zip(classes, sizes, shares, strict=True):
        positions = (np.arange(share) * size) // max(share, 1)
        rows.append(np.flatnonzero(labels == label)[positions])
    return np.concatenate(rows)
