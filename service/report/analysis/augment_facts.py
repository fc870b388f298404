"""The parameters of an augmentation in words and numbers that a person reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.colour import ColourParameters, colour_parameters
from pipelines.augment.draw import draw
from pipelines.augment.geometry import AffineParameters, affine_parameters
from pipelines.augment.philox import uniform
from pipelines.spec import AugmentSpec, DataSpec
from service.report.drawing.formatting import signed


@dataclass(frozen=True)
class Fact:
    """One thing that was drawn: its name, its value, and whether that is the neighbour's share in the image."""

    name: str
    value: str
    of_neighbour: bool = False


def described(
    spec: AugmentSpec,
    seed: int,
    epoch: int,
    rows: NDArray[np.int64],
    data: DataSpec,
    shares: NDArray[np.float32] | None,
) -> list[list[Fact]]:
    """What was drawn for each image of a batch: one fact for every change that is on.

    Args:
        spec: The ranges.
        seed: That of the run.
        epoch: Which epoch.
        rows: Rows of the split in the order of the batch, `[n]`.
        data: Size and channels of the images.
        shares: Of each image itself where images are mixed, `[n]`.
    """
    numbers = uniform(seed, epoch, rows)
    affine = affine_parameters(spec, numbers, rows, data.image_size[1] / data.image_size[0])
    colour, drawn = colour_parameters(spec, numbers, rows), draw(spec, seed, epoch, rows, data)
    facts = []
    for place in range(len(rows)):
        listed = [*_geometry(spec, affine, place), *_colour(spec, colour, place, data.channels)]
        if "erase" in drawn:
            listed.append(Fact("erased", _box(drawn["erase"][place])))
        if shares is not None:
            kind = (
                "cutmix"
                if "cut" in drawn and drawn["cut"][place].any()
                else "mixup"
                if spec.mixup
                else "cutmix"
            )
            share = 1.0 - float(shares[place])
            listed.append(Fact(kind, f"{share:.0%}", of_neighbour=True) if share else Fact(kind, "no"))
        facts.append(listed)
    return facts


def _geometry(spec: AugmentSpec, drawn: AffineParameters, place: int) -> list[Fact]:
    theta, tx, ty, shear, zx, zy, flip, flip_vertical = (values[place] for values in drawn[:-1])
    top, left, height, width = (float(side[place]) for side in drawn.crop)
    sides = [
        side
        for side, turned in (("left\N{EN DASH}right", flip), ("top\N{EN DASH}bottom", flip_vertical))
        if turned
    ]
    facts = {
        "crop": (spec.crop, f"{height * width:.0%} at x {left:.0%} y {top:.0%}"),
        "rotation": (spec.rotation, signed(theta, "°")),
        "shift": (spec.shift, f"x {signed(100 * tx, '%')} y {signed(100 * ty, '%')}"),
        "shear": (spec.shear, signed(shear, "°")),
        "zoom": (spec.zoom, f"x {1 / zx:.0%} y {1 / zy:.0%}"),
        "flip": (spec.flip or spec.flip_vertical, ", ".join(sides) or "no"),
    }
    return [Fact(name, value) for name, (on, value) in facts.items() if on]


def _colour(spec: AugmentSpec, drawn: ColourParameters, place: int, channels: int) -> list[Fact]:
    facts = {
        name: signed(100 * (getattr(drawn, name)[place] - 1), "%")
        for name in ("brightness", "contrast", "saturation")
    }
    facts["hue"] = signed(drawn.hue[place], "°")
    known = ("brightness", "contrast", "saturation", "hue") if channels == 3 else ("brightness", "contrast")
    return [Fact(name, facts[name]) for name in known if getattr(spec, name)]


def _box(corners: NDArray[np.float32]) -> str:
    top, left, bottom, right = (float(corner) for corner in corners)
    area = (bottom - top) * (right - left)
    return f"{area:.0%}" if area else "no"
