"""RandAugment: how often each change is drawn, and its pixels against Pillow's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from drawing import SQUARE, WIDE, draw_by_name
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from pipelines.augment.base import ImageShape
from pipelines.augment.geometry import compose_matrices
from pipelines.augment.randaugment import (
    COLOURS,
    GEOMETRY,
    LAYERS,
    OPERATIONS,
    Changes,
    RandAugmentColour,
    RandAugmentGeometry,
    build_parameters,
)
from pipelines.spec import AugmentSpec

MANY = np.arange(20_000)
SPEC = AugmentSpec(randaugment=7.0)


def make_photo(height: int = 24, width: int = 30) -> np.ndarray:
    """Returns smooth colours with some noise, uint8, of values from 12 to 240."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).uniform(-12, 12, (height, width, 3))
    waves = np.stack([np.sin(x / 5), np.cos(y / 4), np.sin((x + y) / 7)], axis=-1)
    return (126 + 100 * waves + noise).clip(12, 240).astype(np.uint8)


def test_half_of_all_changes_are_made_and_all_are_equally_frequent() -> None:
    changes = draw_by_name(SPEC, MANY)["randaugment geometry"]
    is_made = changes.operation >= 0
    assert 0.49 < is_made.mean() < 0.51
    assert abs(np.corrcoef(is_made)[0, 1]) < 0.03
    counts = np.bincount(changes.operation[is_made], minlength=len(OPERATIONS))
    assert stats.chisquare(counts).pvalue > 0.001
    assert abs(np.corrcoef(changes.operation)[0, 1]) < 0.03
    assert 0.49 < (changes.sign > 0).mean() < 0.51


def test_the_magnitude_is_normal_and_limited() -> None:
    strength = draw_by_name(SPEC, MANY)["randaugment geometry"].strength.reshape(-1)
    assert stats.kstest(10 * strength, stats.norm(7, 0.5).cdf).pvalue > 0.001
    strong = draw_by_name(AugmentSpec(randaugment=10.0), MANY)["randaugment geometry"].strength
    assert strong.max() == 1.0
    assert 0.49 < (strong == 1.0).mean() < 0.51
    exact = draw_by_name(AugmentSpec(randaugment=7.0, randaugment_std=0.0), MANY)["randaugment geometry"]
    assert set(exact.strength.reshape(-1).tolist()) == {0.7}


def test_geometry_and_colour_agree_on_what_is_done() -> None:
    drawn = draw_by_name(SPEC, MANY)
    operation = drawn["randaugment geometry"].operation
    colour = drawn["randaugment"][:, :, 0].T
    is_colour = operation >= len(GEOMETRY)
    assert (colour[is_colour] == operation[is_colour] - len(GEOMETRY)).all()
    assert (colour[~is_colour] == -1).all()


def test_nothing_happens_to_padding() -> None:
    drawn = draw_by_name(SPEC, np.full(100, -1))
    assert (drawn["randaugment geometry"].operation == -1).all()
    assert (drawn["randaugment"][:, :, 0] == -1).all()


def change(*names_and_amounts: tuple[str, float]) -> Changes:
    """Returns the changes of one image: an operation and its strength with its sign for each layer."""
    layers = [*names_and_amounts, *[("", 0.0)] * (LAYERS - len(names_and_amounts))]
    operations = [OPERATIONS.index(name) if name else -1 for name, _ in layers]
    amounts = np.array([[amount] for _, amount in layers])
    return Changes(np.array(operations)[:, None], np.abs(amounts), np.where(amounts < 0, -1.0, 1.0))


def enhance(kind: Any) -> Callable[[Image.Image, float], Image.Image]:
    return lambda photo, amount: kind(photo).enhance(max(0.1, 1 + 0.9 * amount))


def add_below(photo: Image.Image, amount: float) -> Image.Image:
    added = [min(255, value + int(110 * amount)) for value in range(128)]
    return photo.point([*added, *range(128, 256)] * 3)


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda photo, amount: ImageOps.autocontrast(photo),
    "invert": lambda photo, amount: ImageOps.invert(photo),
    "posterize": lambda photo, amount: ImageOps.posterize(photo, 4 - int(4 * amount)),
    "solarize": lambda photo, amount: ImageOps.solarize(photo, 256 - int(256 * amount)),
    "solarize_add": add_below,
    "colour": enhance(ImageEnhance.Color),
    "contrast": enhance(ImageEnhance.Contrast),
    "brightness": enhance(ImageEnhance.Brightness),
    "sharpness": enhance(ImageEnhance.Sharpness),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("amount", [0.35, 0.7])
def test_colours_are_those_of_pillow(name: str, amount: float) -> None:
    amounts = [amount, -amount] if name in COLOURS[-4:] else [amount]
    for signed in amounts:
        images, expected = apply_colour([(name, signed)]), PILLOW[name](Image.fromarray(make_photo()), signed)
        # Pillow rounds down, and before that grey values, the mean and what is smoothed
        np.testing.assert_allclose(images, np.asarray(expected, np.float32), atol=1.7)


@pytest.mark.heavy
def test_two_changes_are_made_in_their_order() -> None:
    first, second = ("invert", 0.7), ("solarize_add", 0.7)
    photo = Image.fromarray(make_photo())
    one = np.asarray(add_below(ImageOps.invert(photo), 0.7), np.float32)
    other = np.asarray(ImageOps.invert(add_below(photo, 0.7)), np.float32)
    assert (one != other).any()
    np.testing.assert_array_equal(apply_colour([first, second]), one)
    np.testing.assert_array_equal(apply_colour([second, first]), other)


@pytest.mark.heavy
def test_one_channel_and_one_colour_stay_finite() -> None:
    grey = np.full((1, 4, 4, 1), 77.0, np.float32)
    for name in COLOURS:
        assert np.isfinite(apply_colour([(name, 0.7)], grey)).all()
    np.testing.assert_array_equal(apply_colour([("autocontrast", 0.7)], grey), grey[0])


def apply_colour(changes: list[tuple[str, float]], images: np.ndarray | None = None) -> np.ndarray:
    """Applies colour changes to a photo, or to the first of some images."""
    augmentation = RandAugmentColour(SPEC)
    drawn = build_parameters(change(*changes))
    photos = make_photo()[None].astype(np.float32) if images is None else images
    return np.asarray(augmentation.apply(photos, drawn))[0]


@pytest.mark.heavy
@pytest.mark.parametrize("amount", [0.6, -0.6])
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_that_of_pillow(name: str, amount: float) -> None:
    from pipelines.augment.warp import warp

    height, width = 60, 90
    photo = make_photo(height, width)
    image = Image.fromarray(photo)
    affine = {
        "shear_x": (1, 0.3 * amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * amount, 1, 0),
        "translate_x": (1, 0, 0.45 * amount * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * amount * height),
    }
    grey = (128, 128, 128)
    if name == "rotate":
        expected = image.rotate(30 * amount, Image.Resampling.BILINEAR, fillcolor=grey)
    else:
        expected = image.transform(
            image.size, Image.Transform.AFFINE, affine[name], Image.Resampling.BILINEAR, fillcolor=grey
        )
    shape = ImageShape(height, width, 3)
    transform = RandAugmentGeometry(SPEC).transform(change((name, amount)), shape)
    matrices = compose_matrices([transform], [], 1, shape.aspect)
    warped = np.asarray(warp(photo[None], matrices, "constant", 128.0))[0]
    difference = np.abs(warped - np.asarray(expected, np.float32)).max(axis=-1)
    # Pillow does not blend pixels with what lies beyond the edge
    assert (difference < 1.5).mean() > 0.97
    assert difference[height // 4 : -height // 4, width // 4 : -width // 4].max() < 1.5 or "translate" in name


@pytest.mark.parametrize("image", [SQUARE, WIDE])
def test_the_second_change_applies_to_the_result_of_the_first(image: ImageShape) -> None:
    augmentation = RandAugmentGeometry(SPEC)
    both = augmentation.transform(change(("rotate", 1.0), ("translate_x", 1.0)), image)
    # The center of the result shows what is 0.45 of the width to the right, in the rotated image.
    x = 0.45 * image.aspect
    cos, sin = np.cos(np.deg2rad(30)), np.sin(np.deg2rad(30))
    np.testing.assert_allclose([both.c[0], both.f[0]], [cos * x, sin * x])
