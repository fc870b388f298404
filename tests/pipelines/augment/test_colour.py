"""Colour maps: known colours, a plain reference for one pixel, and the ranges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from pipelines.augment.colour import ColourParameters, colour_matrices, colour_parameters
from pipelines.augment.philox import uniform
from pipelines.spec import AugmentSpec

FULL = AugmentSpec(brightness=0.2, contrast=0.3, saturation=0.5, hue=30)


def mapped(colour: Sequence[float], **changes: float) -> np.ndarray:
    """One colour, or one grey value, after the changes."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    parameters = ColourParameters(**{name: np.array([value]) for name, value in (neutral | changes).items()})
    (matrix,) = colour_matrices(parameters, len(colour))
    assert matrix.dtype == np.float32
    return matrix @ (*colour, 1)


def step_by_step(
    colour: Sequence[float], brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """The four changes one after the other, each in the words of its definition."""
    colour = np.array(colour) * brightness
    colour = 127.5 + (colour - 127.5) * contrast
    luma = colour @ [0.299, 0.587, 0.114]
    colour = luma + (colour - luma) * saturation
    axis, angle = np.ones(3) / np.sqrt(3), np.deg2rad(hue)
    along = axis * (axis @ colour)
    across = colour - along
    return along + across * np.cos(angle) + np.cross(axis, across) * np.sin(angle)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (200, 100, 40)),
        ({"brightness": 1.1}, (220, 110, 44)),
        ({"contrast": 0.5}, (163.75, 113.75, 83.75)),
        ({"contrast": 0.0}, (127.5, 127.5, 127.5)),
        ({"brightness": 0.5, "contrast": 2.0}, (72.5, -27.5, -87.5)),  # brightness first; apply cuts below 0
        ({"saturation": 0.0}, (123.06, 123.06, 123.06)),  # 0.299 * 200 + 0.587 * 100 + 0.114 * 40
        ({"saturation": 0.5}, (161.53, 111.53, 81.53)),
        ({"hue": 120}, (40, 200, 100)),
        ({"hue": -120}, (100, 40, 200)),
        ({"hue": 180}, (80 / 3, 380 / 3, 560 / 3)),  # the mirror image about the mean, 340 / 3
    ],
)
def test_known_colours(changes: dict[str, float], expected: Sequence[float]) -> None:
    np.testing.assert_allclose(mapped((200, 100, 40), **changes), expected, atol=1e-4)


def test_a_third_of_a_turn_takes_red_to_green_to_blue_as_the_colour_wheel_does() -> None:
    np.testing.assert_allclose(mapped((255, 0, 0), hue=120), (0, 255, 0), atol=1e-4)
    np.testing.assert_allclose(mapped((0, 255, 0), hue=120), (0, 0, 255), atol=1e-4)


@pytest.mark.parametrize("row", range(8))
def test_the_map_is_the_four_changes_in_their_order(row: int) -> None:
    parameters = colour_parameters(FULL, uniform(5, 0, [row]), [row])
    colour = np.random.default_rng(row).uniform(0, 255, 3)
    expected = step_by_step(colour, *(float(value[0]) for value in parameters))
    np.testing.assert_allclose(colour_matrices(parameters, 3)[0] @ (*colour, 1), expected, atol=1e-3)


def test_greys_stay_grey_under_saturation_and_hue() -> None:
    np.testing.assert_allclose(mapped((90, 90, 90), saturation=0.3, hue=77), (90, 90, 90), atol=1e-4)


def test_one_channel_knows_brightness_and_contrast_alone() -> None:
    np.testing.assert_allclose(
        mapped((100,), brightness=1.5, contrast=0.5, saturation=0.0, hue=90), (138.75,), rtol=1e-6
    )


RANGES = {"brightness": (0.8, 1.2), "contrast": (0.7, 1.3), "saturation": (0.5, 1.5), "hue": (-30, 30)}


@pytest.mark.parametrize("name", RANGES)
def test_every_parameter_is_uniform_over_its_range(name: str) -> None:
    low, high = RANGES[name]
    rows = np.arange(4000)
    assert (
        stats.kstest(
            getattr(colour_parameters(FULL, uniform(1, 0, rows), rows), name),
            stats.uniform(low, high - low).cdf,
        ).pvalue
        > 0.001
    )


def test_the_parameters_of_an_image_are_independent() -> None:
    rows = np.arange(4000)
    correlation = np.corrcoef(np.stack(colour_parameters(FULL, uniform(1, 0, rows), rows)))
    assert np.abs(correlation - np.eye(4)).max() < 0.07


@pytest.mark.parametrize(
    "change", [{"brightness": 0.9}, {"contrast": 0.9}, {"saturation": 1.0}, {"hue": 180}]
)
def test_widening_one_range_moves_no_other_parameter(change: dict[str, float]) -> None:
    rows = np.arange(20)
    one, other = (
        colour_parameters(spec, uniform(1, 0, rows), rows) for spec in (FULL, FULL.model_copy(update=change))
    )
    assert [name for name in RANGES if not np.array_equal(getattr(one, name), getattr(other, name))] == list(
        change
    )
