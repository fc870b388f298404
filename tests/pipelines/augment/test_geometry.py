"""Affine parameters and crops; the matrices against hand calculation and against Keras."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipelines.augment.geometry import (
    AffineParameters,
    Boxes,
    affine_matrices,
    affine_parameters,
    moves,
    placed,
)
from pipelines.augment.philox import uniform
from pipelines.spec import AugmentSpec

FULL = AugmentSpec(rotation=40, shift=0.2, shear=15, zoom=0.3, flip=True, flip_vertical=True)
MANY = np.arange(4000)
WHOLE = Boxes(*(np.array([side]) for side in (0.0, 0.0, 1.0, 1.0)))


def drawn(
    spec: AugmentSpec, rows: Any, seed: int = 1, epoch: int = 0, aspect: float = 1.0
) -> AffineParameters:
    return affine_parameters(spec, uniform(seed, epoch, rows), rows, aspect)


def parameters(crop: Boxes = WHOLE, **changes: float) -> AffineParameters:
    """One image to which nothing happens but the changes."""
    neutral = {
        "theta": 0.0,
        "tx": 0.0,
        "ty": 0.0,
        "shear": 0.0,
        "zx": 1.0,
        "zy": 1.0,
        "flip": False,
        "flip_vertical": False,
    }
    return AffineParameters(
        **{name: np.array([value]) for name, value in (neutral | changes).items()}, crop=crop
    )


def matrix(aspect: float = 1.0, **changes: Any) -> np.ndarray:
    return affine_matrices(parameters(**changes), aspect)[0]


def test_no_ranges_move_nothing() -> None:
    assert not moves(AugmentSpec())
    assert (affine_matrices(drawn(AugmentSpec(), MANY), 1.7) == np.eye(2, 3)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"rotation": 1},
        {"shift": 0.1},
        {"shear": 1},
        {"zoom": 0.1},
        {"flip": True},
        {"flip_vertical": True},
        {"crop": (0.5, 1.0)},
    ],
)
def test_every_range_moves_something(change: dict[str, Any]) -> None:
    spec = AugmentSpec(**change)
    assert moves(spec)
    assert (affine_matrices(drawn(spec, MANY[:8])) != np.eye(2, 3)).any()


def test_padding_stays_as_it_is() -> None:
    spec = FULL.model_copy(update={"crop": (0.2, 0.5)})
    matrices = affine_matrices(drawn(spec, [-1, 4, -1]))
    assert (matrices[[0, 2]] == np.eye(2, 3)).all()
    np.testing.assert_array_equal(matrices[1], affine_matrices(drawn(spec, [4]))[0])


RANGES = {
    "theta": (-40, 40),
    "tx": (-0.2, 0.2),
    "ty": (-0.2, 0.2),
    "shear": (-15, 15),
    "zx": (0.7, 1.3),
    "zy": (0.7, 1.3),
}


@pytest.mark.parametrize("name", RANGES)
def test_every_parameter_is_uniform_over_its_range(name: str) -> None:
    low, high = RANGES[name]
    assert stats.kstest(getattr(drawn(FULL, MANY), name), stats.uniform(low, high - low).cdf).pvalue > 0.001


@pytest.mark.parametrize("name", ["flip", "flip_vertical"])
def test_every_second_image_is_flipped_where_flips_are_on(name: str) -> None:
    assert 1900 < getattr(drawn(FULL, MANY), name).sum() < 2100
    assert not getattr(drawn(FULL.model_copy(update={name: False}), MANY), name).any()


def test_the_parameters_of_an_image_are_independent() -> None:
    values = drawn(FULL.model_copy(update={"crop": (0.2, 0.5)}), MANY)
    correlation = np.corrcoef(np.stack([*values[:-1], values.crop.top, values.crop.left]).astype(float))
    assert np.abs(correlation - np.eye(10)).max() < 0.07


@pytest.mark.parametrize("aspect", [1.0, 1.5])
def test_a_crop_has_the_area_and_the_shape_asked_for_and_lies_inside(aspect: float) -> None:
    boxes = drawn(AugmentSpec(crop=(0.2, 0.5), crop_ratio=(0.75, 4 / 3)), MANY, aspect=aspect).crop
    assert stats.kstest(boxes.height * boxes.width, stats.uniform(0.2, 0.3).cdf).pvalue > 0.001
    ratio = boxes.width * aspect / boxes.height  # in pixels
    assert stats.kstest(np.log(ratio), stats.uniform(np.log(0.75), np.log(16 / 9)).cdf).pvalue > 0.001
    assert stats.kstest(boxes.top / (1 - boxes.height), "uniform").pvalue > 0.001
    assert stats.kstest(boxes.left / (1 - boxes.width), "uniform").pvalue > 0.001


def test_a_crop_too_long_for_the_image_is_cut_to_fit() -> None:
    one = np.ones(1)
    assert [float(side[0]) for side in placed(0.5 * one, 4 * one, 0.5 * one, one)] == [
        0.5 - np.sqrt(0.125) / 2,
        0.0,
        np.sqrt(0.125),
        1.0,
    ]


CROP = Boxes(*(np.array([side]) for side in (0.5, 0.125, 0.5, 0.25)))  # top, left, height, width


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [[0.25, 0, 0.125], [0, 0.5, 0.5]]),
        ({"flip": True}, [[-0.25, 0, 0.375], [0, 0.5, 0.5]]),
        (
            {"tx": 0.5},
            [[0.25, 0, 0.25], [0, 0.5, 0.5]],
        ),  # half of the crop, and what lies around it comes into sight
        ({"theta": 90}, [[0, -0.25, 0.375], [0.5, 0, 0.5]]),  # the crop is turned, not the window
    ],
)
def test_a_crop_is_what_all_the_rest_happens_to(
    changes: dict[str, float], expected: list[list[float]]
) -> None:
    np.testing.assert_allclose(matrix(crop=CROP, **changes), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tx": 0.25}, [[1, 0, 0.25], [0, 1, 0]]),
        ({"ty": 0.25}, [[1, 0, 0], [0, 1, 0.25]]),
        ({"zx": 0.5}, [[0.5, 0, 0.25], [0, 1, 0]]),
        ({"zy": 2.0}, [[1, 0, 0], [0, 2, -0.5]]),
        ({"flip": True}, [[-1, 0, 1], [0, 1, 0]]),
        ({"flip_vertical": True}, [[1, 0, 0], [0, -1, 1]]),
        ({"flip_vertical": True, "ty": 0.25}, [[1, 0, 0], [0, -1, 1.25]]),
        ({"theta": 90}, [[0, -1, 1], [1, 0, 0]]),
        ({"theta": 180}, [[-1, 0, 1], [0, -1, 1]]),
        ({"shear": 30}, [[1, -0.5, 0.25], [0, np.sqrt(0.75), 0.5 - np.sqrt(0.75) / 2]]),
        ({"theta": 90, "tx": 0.25}, [[0, -1, 1], [1, 0, 0.25]]),  # the shift is rotated with the image
        ({"flip": True, "tx": 0.25}, [[-1, 0, 1.25], [0, 1, 0]]),  # the result is mirrored, not the shift
        ({"zx": 0.5, "tx": 0.25}, [[0.5, 0, 0.5], [0, 1, 0]]),  # the shift is not zoomed
    ],
)
def test_matrices_worked_out_by_hand(changes: dict[str, float], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(matrix(**changes), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"theta": 90},
            [[0, -0.5, 0.75], [2, 0, -0.5]],
        ),  # half as high as wide: a column of the output shows half a row
        ({"shear": 30}, [[1, -0.25, 0.125], [0, np.sqrt(0.75), 0.5 - np.sqrt(0.75) / 2]]),
        ({"tx": 0.25, "ty": 0.5}, [[1, 0, 0.25], [0, 1, 0.5]]),  # shifts are fractions of their own side
        (
            {"theta": 90, "tx": 0.25},
            [[0, -0.5, 0.75], [2, 0, 0]],
        ),  # a quarter of the width is half of the height
        ({"flip": True}, [[-1, 0, 1], [0, 1, 0]]),
    ],
)
def test_matrices_of_an_image_twice_as_wide_as_high(
    changes: dict[str, float], expected: list[list[float]]
) -> None:
    np.testing.assert_allclose(matrix(aspect=2.0, **changes), expected, atol=1e-7)


def test_a_batch_of_matrices_is_made_one_by_one() -> None:
    values = drawn(FULL.model_copy(update={"crop": (0.2, 0.5)}), range(6), seed=3, aspect=1.5)
    for index, expected in enumerate(affine_matrices(values, 1.5)):
        one = AffineParameters(
            *(v[index : index + 1] for v in values[:-1]),
            crop=Boxes(*(v[index : index + 1] for v in values.crop)),
        )
        np.testing.assert_array_equal(affine_matrices(one, 1.5)[0], expected)


@pytest.mark.parametrize("row", range(12))
def test_the_matrix_is_the_one_keras_hands_to_scipy(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras' own code composes the matrix; only the resampling is replaced, by one that writes it down."""
    from keras.src.legacy.preprocessing import image

    size, seen = 10, {}

    def affine_transform(channel: np.ndarray, linear: np.ndarray, offset: np.ndarray, **_: Any) -> np.ndarray:
        seen["matrix"] = np.column_stack([linear, offset])
        return channel

    interpolation = SimpleNamespace(affine_transform=affine_transform)
    monkeypatch.setattr(image, "scipy", SimpleNamespace(ndimage=SimpleNamespace(interpolation=interpolation)))
    parameters = drawn(FULL, [row], seed=9)
    values = {name: float(value[0]) for name, value in parameters._asdict().items() if name != "crop"}
    mirrored, upside_down = bool(values.pop("flip")), bool(values.pop("flip_vertical"))
    settings = values | {
        "tx": values["tx"] * size,
        "ty": values["ty"] * size,
        "flip_horizontal": mirrored,
        "flip_vertical": upside_down,
    }
    image.ImageDataGenerator(data_format="channels_last").apply_transform(np.zeros((size, size, 3)), settings)

    for y, x in [(0, 0), (9, 0), (3, 7), (9, 9)]:
        before_flips = (size - 1 - y if upside_down else y, size - 1 - x if mirrored else x)
        row_keras, column_keras = seen["matrix"] @ (*before_flips, 1)  # pixels, row before column
        x_ours, y_ours = affine_matrices(parameters)[0] @ ((x + 0.5) / size, (y + 0.5) / size, 1)
        np.testing.assert_allclose(
            (x_ours * size - 0.5, y_ours * size - 0.5), (column_keras, row_keras), atol=1e-5
        )
