"""Draws the values of each augmentation, for tests."""

from __future__ import annotations

from typing import Any

from pipelines.augment.base import ImageShape
from pipelines.augment.draw import draw_values
from pipelines.spec import AugmentSpec

SQUARE = ImageShape(100, 100, 3)
WIDE = ImageShape(100, 150, 3)


def draw_by_name(
    spec: AugmentSpec, rows: Any, seed: int = 1, epoch: int = 0, image: ImageShape = SQUARE
) -> dict[str, Any]:
    """Returns what every augmentation that is on draws, by its name."""
    return {drawn.augmentation.name: drawn.values for drawn in draw_values(spec, seed, epoch, rows, image)}
