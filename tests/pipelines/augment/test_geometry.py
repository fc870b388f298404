"""Geometric augmentations and crops; their composed matrices against hand calculation and against Keras."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawing import SQUARE, WIDE, draw_by_name
from scipy import stats

from pipelines.augment.base import GeometricAugmentation, ImageShape
from pipelines.augment.boxes import Boxes, place_boxes
from pipelines.augment.draw import draw
from pipelines.augment.flips import Mirrored
from pipelines.augment.geometry import compose_matrices
from pipelines.augment.registry import AUGMENTATIONS
from pipelines.augment.shift import Offsets
from pipelines.augment.zoom import Steps
from pipelines.spec import AugmentSpec, DataSpec

FULL = AugmentSpec(rotation=40, shift=0.2, shear=15, zoom=0.3, flip=True, flip_vertical=True)
MANY = np.arange(4000)
DATA = DataSpec(image_size=(100, 100))


def compute_matrix(aspect: float = 1.0, **values: Any) -> np.ndarray:
    """Composes the matrix of one image from the values of some augmentations, in the order of the project."""
    image = ImageShape(100, round(100 * aspect), 3)
    centered = []
    windows = []
    for augmentation in AUGMENTATIONS:
        if augmentation.name in values and issubclass(augmentation, GeometricAugmentation):
            transform = augmentation(AugmentSpec()).transform(values[augmentation.name], image)
            (windows if augmentation.in_unit_square else centered).append(transform)
    return compose_matrices(centered, windows, 1, aspect)[0]


def make_values(kind: type, *values: float) -> Any:
    """Returns drawn values of one image."""
    return kind(*(np.array([value]) for value in values))


def shift(x: float, y: float) -> Any:
    return make_values(Offsets, x, y)


def zoom(x: float, y: float) -> Any:
    return make_values(Steps, x, y)


def flip(horizontally: bool, vertically: bool) -> Any:
    return make_values(Mirrored, horizontally, vertically)


def angle(degrees: float) -> np.ndarray:
    return np.array([degrees], float)


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
    matrices = draw(AugmentSpec(**change), 1, 0, MANY[:8], DATA)["affine"]
    assert (matrices != np.eye(2, 3)).any()


def test_padding_is_left_unchanged() -> None:
    spec = FULL.model_copy(update={"crop": (0.2, 0.5)})
    matrices = draw(spec, 1, 0, [-1, 4, -1], DATA)["affine"]
    assert (matrices[[0, 2]] == np.eye(2, 3)).all()
    np.testing.assert_array_equal(matrices[1], draw(spec, 1, 0, [4], DATA)["affine"][0])


RANGES = {
    "rotation": (lambda drawn: drawn["rotation"], -40, 40),
    "shift along x": (lambda drawn: drawn["shift"].x, -0.2, 0.2),
    "shift along y": (lambda drawn: drawn["shift"].y, -0.2, 0.2),
    "shear": (lambda drawn: drawn["shear"], -15, 15),
    "zoom along x": (lambda drawn: drawn["zoom"].x, 0.7, 1.3),
    "zoom along y": (lambda drawn: drawn["zoom"].y, 0.7, 1.3),
}


@pytest.mark.parametrize("name", RANGES)
def test_every_parameter_is_uniform_over_its_range(name: str) -> None:
    read, low, high = RANGES[name]
    values = read(draw_by_name(FULL, MANY))
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.001


@pytest.mark.parametrize(("name", "field"), [("flip", "horizontally"), ("flip_vertical", "vertically")])
def test_every_second_image_is_flipped_if_flips_are_on(name: str, field: str) -> None:
    assert 1900 < getattr(draw_by_name(FULL, MANY)["flip"], field).sum() < 2100
    without = FULL.model_copy(update={name: False})
    assert not getattr(draw_by_name(without, MANY)["flip"], field).any()


def test_the_parameters_of_an_image_are_independent() -> None:
    drawn = draw_by_name(FULL.model_copy(update={"crop": (0.2, 0.5)}), MANY)
    crop = drawn["crop"]
    values = [drawn["rotation"], *drawn["shift"], drawn["shear"], *drawn["zoom"], *drawn["flip"]]
    correlation = np.corrcoef(np.stack([*values, crop.top, crop.left]).astype(float))
    assert np.abs(correlation - np.eye(10)).max() < 0.07


@pytest.mark.parametrize("image", [SQUARE, WIDE])
def test_a_crop_has_the_requested_area_and_shape_and_lies_inside(image: ImageShape) -> None:
    spec = AugmentSpec(crop=(0.2, 0.5), crop_ratio=(0.75, 4 / 3))
    boxes = draw_by_name(spec, MANY, image=image)["crop"]
    assert stats.kstest(boxes.height * boxes.width, stats.uniform(0.2, 0.3).cdf).pvalue > 0.001
    ratio = boxes.width * image.aspect / boxes.height  # in pixels
    assert stats.kstest(np.log(ratio), stats.uniform(np.log(0.75), np.log(16 / 9)).cdf).pvalue > 0.001
    assert stats.kstest(boxes.top / (1 - boxes.height), "uniform").pvalue > 0.001
    assert stats.kstest(boxes.left / (1 - boxes.width), "uniform").pvalue > 0.001


def test_a_box_too_long_for_the_image_is_cut_to_fit() -> None:
    one = np.ones(1)
    box = place_boxes(0.5 * one, 4 * one, 0.5 * one, one)
    height = np.sqrt(0.125)
    assert [float(side[0]) for side in box] == [0.5 - height / 2, 0.0, height, 1.0]


CROP = make_values(Boxes, 0.5, 0.125, 0.5, 0.25)  # top, left, height, width


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [[0.25, 0, 0.125], [0, 0.5, 0.5]]),
        ({"flip": flip(True, False)}, [[-0.25, 0, 0.375], [0, 0.5, 0.5]]),
        # half of the crop, so that its surroundings come into view
        ({"shift": shift(0.5, 0)}, [[0.25, 0, 0.25], [0, 0.5, 0.5]]),
        # the crop is rotated, not the window
        ({"rotation": angle(90)}, [[0, -0.25, 0.375], [0.5, 0, 0.5]]),
    ],
)
def test_all_other_changes_apply_to_the_crop(values: dict[str, Any], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(compute_matrix(crop=CROP, **values), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"shift": shift(0.25, 0)}, [[1, 0, 0.25], [0, 1, 0]]),
        ({"shift": shift(0, 0.25)}, [[1, 0, 0], [0, 1, 0.25]]),
        ({"zoom": zoom(0.5, 1)}, [[0.5, 0, 0.25], [0, 1, 0]]),
        ({"zoom": zoom(1, 2)}, [[1, 0, 0], [0, 2, -0.5]]),
        ({"flip": flip(True, False)}, [[-1, 0, 1], [0, 1, 0]]),
        ({"flip": flip(False, True)}, [[1, 0, 0], [0, -1, 1]]),
        ({"flip": flip(False, True), "shift": shift(0, 0.25)}, [[1, 0, 0], [0, -1, 1.25]]),
        ({"rotation": angle(90)}, [[0, -1, 1], [1, 0, 0]]),
        ({"rotation": angle(180)}, [[-1, 0, 1], [0, -1, 1]]),
        ({"shear": angle(30)}, [[1, -0.5, 0.25], [0, np.sqrt(0.75), 0.5 - np.sqrt(0.75) / 2]]),
        # the shift is rotated with the image
        ({"rotation": angle(90), "shift": shift(0.25, 0)}, [[0, -1, 1], [1, 0, 0.25]]),
        # the result is mirrored, not the shift
        ({"flip": flip(True, False), "shift": shift(0.25, 0)}, [[-1, 0, 1.25], [0, 1, 0]]),
        # the shift is not zoomed
        ({"zoom": zoom(0.5, 1), "shift": shift(0.25, 0)}, [[0.5, 0, 0.5], [0, 1, 0]]),
    ],
)
def test_matrices_worked_out_by_hand(values: dict[str, Any], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(compute_matrix(**values), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # half as high as wide: a column of the output shows half a row
        ({"rotation": angle(90)}, [[0, -0.5, 0.75], [2, 0, -0.5]]),
        ({"shear": angle(30)}, [[1, -0.25, 0.125], [0, np.sqrt(0.75), 0.5 - np.sqrt(0.75) / 2]]),
        # shifts are fractions of their own side
        ({"shift": shift(0.25, 0.5)}, [[1, 0, 0.25], [0, 1, 0.5]]),
        # a quarter of the width is half of the height
        ({"rotation": angle(90), "shift": shift(0.25, 0)}, [[0, -0.5, 0.75], [2, 0, 0]]),
        ({"flip": flip(True, False)}, [[-1, 0, 1], [0, 1, 0]]),
    ],
)
def test_matrices_of_an_image_twice_as_wide_as_high(
    values: dict[str, Any], expected: list[list[float]]
) -> None:
    np.testing.assert_allclose(compute_matrix(aspect=2.0, **values), expected, atol=1e-7)


@pytest.mark.parametrize("row", range(12))
def test_the_matrix_is_the_one_keras_gives_to_scipy(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras' own code composes the matrix; only the resampling is replaced, by one that records it."""
    from keras.src.legacy.preprocessing import image

    size = 10
    recorded = {}

    def affine_transform(channel: np.ndarray, linear: np.ndarray, offset: np.ndarray, **_: Any) -> np.ndarray:
        recorded["matrix"] = np.column_stack([linear, offset])
        return channel

    interpolation = SimpleNamespace(affine_transform=affine_transform)
    monkeypatch.setattr(image, "scipy", SimpleNamespace(ndimage=SimpleNamespace(interpolation=interpolation)))
    drawn = draw_by_name(FULL, [row], seed=9)
    is_mirrored = bool(drawn["flip"].horizontally[0])
    is_upside_down = bool(drawn["flip"].vertically[0])
    settings = {
        "theta": float(drawn["rotation"][0]),
        "tx": float(drawn["shift"].x[0]) * size,
        "ty": float(drawn["shift"].y[0]) * size,
        "shear": float(drawn["shear"][0]),
        "zx": float(drawn["zoom"].x[0]),
        "zy": float(drawn["zoom"].y[0]),
        "flip_horizontal": is_mirrored,
        "flip_vertical": is_upside_down,
    }
    image.ImageDataGenerator(data_format="channels_last").apply_transform(np.zeros((size, size, 3)), settings)

    matrix = draw(FULL, 9, 0, [row], DATA)["affine"][0]
    for y, x in [(0, 0), (9, 0), (3, 7), (9, 9)]:
        before_flips = (size - 1 - y if is_upside_down else y, size - 1 - x if is_mirrored else x)
        row_keras, column_keras = recorded["matrix"] @ (*before_flips, 1)  # pixels, row before column
        x_ours, y_ours = matrix @ ((x + 0.5) / size, (y + 0.5) / size, 1)
        np.testing.assert_allclose(
            (x_ours * size - 0.5, y_ours * size - 0.5), (column_keras, row_keras), atol=1e-5
        )
