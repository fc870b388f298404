"""Colour augmentations: known colours, a plain reference for one pixel, and the ranges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from drawing import draw_by_name
from scipy import stats

from pipelines.augment.base import ColourAugmentation, ImageShape
from pipelines.augment.colour import ColourMap, identity_colour_map, precompose_matrices, to_matrices
from pipelines.augment.draw import draw
from pipelines.augment.registry import AUGMENTATIONS
from pipelines.spec import AugmentSpec, DataSpec

FULL = AugmentSpec(brightness=0.2, contrast=0.3, saturation=0.5, hue=30)
NAMES = ("brightness", "contrast", "saturation", "hue")


def map_colour(colour: Sequence[float], **values: float) -> np.ndarray:
    """Applies some changes to one colour, or to one grey value."""
    image = ImageShape(1, 1, len(colour))
    colour_map = identity_colour_map(1, len(colour))
    for augmentation in reversed(AUGMENTATIONS):
        if augmentation.name in values and issubclass(augmentation, ColourAugmentation):
            drawn = np.array([values[augmentation.name]], float)
            colour_map = augmentation(AugmentSpec()).precompose(colour_map, drawn, image)
    (matrix,) = to_matrices(colour_map)
    assert matrix.dtype == np.float32
    return matrix @ (*colour, 1)


def map_step_by_step(
    colour: Sequence[float], brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Applies the four changes one after the other, each by its definition."""
    colour = np.array(colour) * brightness
    colour = 127.5 + (colour - 127.5) * contrast
    luma = colour @ [0.299, 0.587, 0.114]
    colour = luma + (colour - luma) * saturation
    axis = np.ones(3) / np.sqrt(3)
    angle = np.deg2rad(hue)
    along = axis * (axis @ colour)
    across = colour - along
    return along + across * np.cos(angle) + np.cross(axis, across) * np.sin(angle)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (200, 100, 40)),
        ({"brightness": 1.1}, (220, 110, 44)),
        ({"contrast": 0.5}, (163.75, 113.75, 83.75)),
        ({"contrast": 0.0}, (127.5, 127.5, 127.5)),
        # brightness first; values below 0 are clipped later
        ({"brightness": 0.5, "contrast": 2.0}, (72.5, -27.5, -87.5)),
        ({"saturation": 0.0}, (123.06, 123.06, 123.06)),  # 0.299 * 200 + 0.587 * 100 + 0.114 * 40
        ({"saturation": 0.5}, (161.53, 111.53, 81.53)),
        ({"hue": 120}, (40, 200, 100)),
        ({"hue": -120}, (100, 40, 200)),
        ({"hue": 180}, (80 / 3, 380 / 3, 560 / 3)),  # the mirror image about the mean, 340 / 3
    ],
)
def test_known_colours(values: dict[str, float], expected: Sequence[float]) -> None:
    np.testing.assert_allclose(map_colour((200, 100, 40), **values), expected, atol=1e-4)


def test_a_third_of_a_turn_takes_red_to_green_to_blue_as_the_colour_wheel_does() -> None:
    np.testing.assert_allclose(map_colour((255, 0, 0), hue=120), (0, 255, 0), atol=1e-4)
    np.testing.assert_allclose(map_colour((0, 255, 0), hue=120), (0, 0, 255), atol=1e-4)


@pytest.mark.parametrize("row", range(8))
def test_the_map_is_the_four_changes_in_their_order(row: int) -> None:
    drawn = draw_by_name(FULL, [row], seed=5)
    colour = np.random.default_rng(row).uniform(0, 255, 3)
    expected = map_step_by_step(colour, *(float(drawn[name][0]) for name in NAMES))
    matrix = draw(FULL, 5, 0, [row], DataSpec())["colour"][0]
    np.testing.assert_allclose(matrix @ (*colour, 1), expected, atol=1e-3)


def test_greys_stay_grey_under_saturation_and_hue() -> None:
    np.testing.assert_allclose(map_colour((90, 90, 90), saturation=0.3, hue=77), (90, 90, 90), atol=1e-4)


def test_one_channel_has_brightness_and_contrast_only() -> None:
    np.testing.assert_allclose(map_colour((100,), brightness=1.5, contrast=0.5), (138.75,), rtol=1e-6)
    assert list(draw_by_name(FULL, [0], image=ImageShape(4, 4, 1))) == ["brightness", "contrast"]


def test_built_in_changes_before_any_linear_map_are_composed_in_order() -> None:
    """A map that does not preserve grey, as one from outside may be, follows saturation and contrast."""
    colour = np.array([200.0, 100.0, 40.0])
    matrix = np.random.default_rng(0).uniform(-1, 1, (1, 3, 4)) * [1, 1, 1, 50]
    colour_map = precompose_matrices(identity_colour_map(1, 3), matrix)
    for augmentation in reversed(AUGMENTATIONS):
        if augmentation.name in ("contrast", "saturation"):
            colour_map = augmentation(AugmentSpec()).precompose(
                colour_map, np.array([0.5]), ImageShape(1, 1, 3)
            )
    expected = matrix[0] @ (*map_step_by_step(colour, 1.0, 0.5, 0.5, 0.0), 1)
    np.testing.assert_allclose(to_matrices(colour_map)[0] @ (*colour, 1), expected, atol=1e-3)


def test_maps_without_a_change_are_exact_identities() -> None:
    colour_map = identity_colour_map(2, 3)
    assert isinstance(colour_map, ColourMap)
    assert (to_matrices(colour_map) == np.eye(3, 4)).all()


RANGES = {"brightness": (0.8, 1.2), "contrast": (0.7, 1.3), "saturation": (0.5, 1.5), "hue": (-30, 30)}


@pytest.mark.parametrize("name", RANGES)
def test_every_parameter_is_uniform_over_its_range(name: str) -> None:
    low, high = RANGES[name]
    values = draw_by_name(FULL, np.arange(4000))[name]
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_the_parameters_of_an_image_are_independent() -> None:
    drawn = draw_by_name(FULL, np.arange(4000))
    correlation = np.corrcoef(np.stack([drawn[name] for name in NAMES]))
    assert np.abs(correlation - np.eye(4)).max() < 0.07


@pytest.mark.parametrize(
    "change", [{"brightness": 0.9}, {"contrast": 0.9}, {"saturation": 1.0}, {"hue": 180}]
)
def test_widening_one_range_moves_no_other_parameter(change: dict[str, float]) -> None:
    rows = np.arange(20)
    before = draw_by_name(FULL, rows)
    after = draw_by_name(FULL.model_copy(update=change), rows)
    assert [name for name in NAMES if not np.array_equal(before[name], after[name])] == list(change)
