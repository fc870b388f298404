"""Training images: some of every class, as the model sees them before augmentation."""

from __future__ import annotations

import numpy as np

from service.report.drawing.album import Album, Picture
from service.report.subject import Section, Subject


def choose(labels: np.ndarray, count: int) -> np.ndarray:
    """Picks rows that stand for a split: equally many of every class, spread evenly over each.

    Args:
        labels: int `[N]`.
        count: Rows to pick, at most; where it does not divide by the classes, the first ones get one more.

    Returns:
        int64 `[<= count]`, grouped by class, ascending within each.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = np.zeros(len(classes), np.int64)
    for _ in range(min(count, len(labels))):
        shares[np.where(shares < sizes, shares, count + 1).argmin()] += 1
    rows = [np.zeros(0, np.int64)]
    for label, size, share in zip(classes, sizes, shares, strict=True):
        places = (np.arange(share) * size) // max(share, 1)
        rows.append(np.flatnonzero(labels == label)[places])
    return np.concatenate(rows)


def build_section(subject: Subject, album: Album) -> Section:
    """A grid of training images with the names of their classes."""
    images = subject.training
    rows = choose(images.labels, subject.options.training_images).tolist()
    groups: dict[str, list[Picture]] = {}
    for row, pixels, name in zip(rows, images.read(rows), images.ids(rows), strict=True):
        label = subject.classes[images.labels[row]]
        picture = album.add_photo(
            pixels, "training", f"Training image {row}, {label}: {name}", **subject.origin(images, [row])
        )
        groups.setdefault(label, []).append(picture)
    counts = np.bincount(images.labels, minlength=len(subject.classes)).tolist()
    sizes = dict(zip(subject.classes, counts, strict=True))
    height, width, channels = subject.model.input_shape[1:]
    return Section(
        "training_images",
        "Training images",
        {
            "groups": [(label, sizes[label], pictures) for label, pictures in groups.items()],
            "rows": len(images.labels),
            "size": (height, width),
        },
        {
            "images": len(images.labels),
            "per_class": sizes,
            "height": height,
            "width": width,
            "channels": channels,
            "shown_rows": rows,
        },
    )
