"""What a convolution does, shown on one photo: three filters made by hand, and what they find."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.report.drawing.album import Album, Drawing, photo
from service.report.drawing.colours import DIVERGING, signed
from service.report.sections.common import origin_of, photos_of
from service.report.subject import Section, Subject

Floats = NDArray[np.floating]

GREY = (0.299, 0.587, 0.114)  # how bright red, green and blue are to the eye (ITU-R BT.601)
KERNELS: dict[str, tuple[tuple[float, ...], ...]] = {
    "vertical edges": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),  # I. Sobel, 1968
    "horizontal edges": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "edges and points": ((0, -1, 0), (-1, 4, -1), (0, -1, 0)),  # the Laplacian
}


def grey(image: NDArray[np.uint8]) -> Floats:
    """The brightness of an image `[H, W, 1 or 3]`, float64 `[H, W]`, 0 to 255."""
    return np.asarray(image[..., 0].astype(np.float64) if image.shape[2] == 1 else image @ np.array(GREY))


def convolved(image: Floats, kernel: Floats) -> Floats:
    """Lays a kernel over every place of an image where it fits, as networks do: multiplied and summed, not mirrored.

    Args:
        image: `[H, W]`.
        kernel: `[h, w]`.

    Returns:
        `[H - h + 1, W - w + 1]`.
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel.shape)  # [H - h + 1, W - w + 1, h, w]
    return np.asarray(np.einsum("yxhw,hw->yx", windows, kernel))


def build_section(subject: Subject, album: Album) -> Section | None:
    """The demonstration on the first probe; None where there is none, or it is too small."""
    if not subject.examples or min(subject.examples[0].pixels.shape[:2]) < 3:
        return None
    probe = subject.examples[0]
    bright = grey(probe.pixels)
    origin = origin_of(subject, probe)
    before = photo(
        np.rint(bright).astype(np.uint8)[..., None], "grey", f"The same in grey; {probe.name}", origin
    )
    drawings = [photos_of(subject)[0], before]
    for name, kernel in KERNELS.items():
        found = convolved(bright, np.array(kernel))
        limit = float(np.abs(found).max()) or 1.0
        places = signed(found, limit)
        grow = -(-112 // max(places.shape))
        words = f"{name.capitalize()}, from -{limit:.3g} (blue) to {limit:.3g} (red); {probe.name}"
        drawings.append(
            Drawing(
                places.repeat(grow, 0).repeat(grow, 1),
                "edges",
                words,
                {**origin, "kernel": kernel},
                "png",
                DIVERGING,
            )
        )
    original, in_grey, *results = album.add_all(drawings)
    shown = [
        {"name": name, "kernel": kernel, "picture": picture}
        for (name, kernel), picture in zip(KERNELS.items(), results, strict=True)
    ]
    values = {"photo": original, "grey": in_grey, "kernels": shown}
    return Section(
        "edges",
        "What a filter does",
        values,
        {"row": probe.row, "kernels": {k: [list(r) for r in v] for k, v in KERNELS.items()}},
    )
