"""How a convolution works, shown on one image: three edge filters written by hand, and their outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.examples import ReportExample
from service.report.drawing.album import Album, Drawing, draw_photo
from service.report.drawing.colours import DIVERGING, quantize_signed
from service.report.sections.provenance import Provenance, draw_examples
from service.report.sections.section import Section

Floats = NDArray[np.floating]

GREY = (0.299, 0.587, 0.114)  # luma weights of red, green and blue (ITU-R BT.601)
SMALLEST = 112  # smallest longer side of a picture, in pixels
KERNELS: dict[str, tuple[tuple[float, ...], ...]] = {
    "vertical edges": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),  # I. Sobel, 1968
    "horizontal edges": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "edges and points": ((0, -1, 0), (-1, 4, -1), (0, -1, 0)),  # the Laplacian
}


def build_section(album: Album, provenance: Provenance, examples: Sequence[ReportExample]) -> Section | None:
    """Builds the demonstration on the first example.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        examples: Images to choose from; the first one is shown.

    Returns:
        The section; None if there is no example, or it is smaller than the filters.
    """
    if not examples or min(examples[0].pixels.shape[:2]) < 3:
        return None
    example = examples[0]
    grey = to_grey(example.pixels)
    origin = provenance.describe_example(example)
    grey_pixels = np.rint(grey).astype(np.uint8)[..., None]
    drawings = [
        *draw_examples([example], provenance),
        draw_photo(grey_pixels, "grey", f"The same in greyscale; {example.name}", origin),
    ]
    for name, kernel in KERNELS.items():
        response = convolve(grey, np.array(kernel))
        limit = float(np.abs(response).max()) or 1.0
        indices = quantize_signed(response, limit)
        grow = -(-SMALLEST // max(indices.shape))
        drawings.append(
            Drawing(
                indices.repeat(grow, 0).repeat(grow, 1),
                "edges",
                f"{name.capitalize()}, from -{limit:.3g} (blue) to {limit:.3g} (red); {example.name}",
                {**origin, "kernel": kernel},
                "png",
                DIVERGING,
            )
        )
    original, in_grey, *results = album.add_all(drawings)
    views = [
        {"name": name, "kernel": kernel, "picture": picture}
        for (name, kernel), picture in zip(KERNELS.items(), results, strict=True)
    ]
    values = {"photo": original, "grey": in_grey, "kernels": views}
    kernels = {name: [list(row) for row in kernel] for name, kernel in KERNELS.items()}
    return Section("edges", "How a convolution works", values, {"row": example.row, "kernels": kernels})


def to_grey(image: NDArray[np.uint8]) -> Floats:
    """Converts an image `[H, W, 1 or 3]` to its luma, float64 `[H, W]`, 0 to 255."""
    if image.shape[2] == 1:
        return image[..., 0].astype(np.float64)
    return np.asarray(image @ np.array(GREY))


def convolve(image: Floats, kernel: Floats) -> Floats:
    """Computes the cross-correlation of an image and a kernel, as convolutions in networks do.

    Args:
        image: Greyscale image `[H, W]`.
        kernel: Weights of the filter, `[h, w]`.

    Returns:
        `[H - h + 1, W - w + 1]`, without padding.
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel.shape)  # [H - h + 1, W - w + 1, h, w]
    return np.asarray(np.einsum("yxhw,hw->yx", windows, kernel))
