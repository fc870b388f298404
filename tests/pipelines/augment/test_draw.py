"""The generator against its published vectors, the matrices against hand calculation and against Keras."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.augment.draw import AffineParameters, affine_matrices, draw_affine, draw_parameters, philox4x32, uniform
from pipelines.spec import AugmentSpec

FULL = AugmentSpec(rotation=40, shift=0.2, shear=15, zoom=0.3, flip=True)


def parameters(**changes: float) -> AffineParameters:
    """One image to which nothing happens but the changes."""
    neutral = {"theta": 0.0, "tx": 0.0, "ty": 0.0, "shear": 0.0, "zx": 1.0, "zy": 1.0, "flip": False}
    return AffineParameters(**{name: np.array([value]) for name, value in (neutral | changes).items()})


def matrix(aspect: float = 1.0, **changes: float) -> np.ndarray:
    return affine_matrices(parameters(**changes), aspect)[0]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers_of_the_generator(counter: list[int], key: list[int], expected: list[int]) -> None:
    """The vectors of philox4x32-10 in the Random123 library."""
    assert philox4x32(counter, key).tolist() == expected
    assert philox4x32([counter] * 3, key).tolist() == [expected] * 3


def test_seed_epoch_and_row_each_have_their_own_words() -> None:
    numbers = uniform(seed=5 << 32 | 7, epoch=3, rows=[9, 11 << 32 | 9])
    assert numbers.dtype == np.float64
    for row, high in enumerate((0, 11)):
        words = np.concatenate([philox4x32([9, high, 3, block], [7, 5]) for block in (0, 1)])
        assert numbers[row].tolist() == [word / 2**32 for word in words.tolist()]


def test_an_image_gets_the_same_in_any_batch() -> None:
    together = draw_affine(FULL, 1, 2, [5, 3, 9, 3])
    alone = [draw_affine(FULL, 1, 2, [row])[0] for row in (5, 3, 9, 3)]
    np.testing.assert_array_equal(together, alone)
    assert together.dtype == np.float32


@pytest.mark.parametrize("other", [(2, 2, [3]), (1, 3, [3]), (1, 2, [4]), (1 + 2**32, 2, [3]), (1, 2, [3 + 2**32])])
def test_another_seed_epoch_or_row_gets_something_else(other: tuple[int, int, list[int]]) -> None:
    assert not np.allclose(draw_affine(FULL, *other), draw_affine(FULL, 1, 2, [3]))


def test_the_draw_of_a_seed_never_changes() -> None:
    np.testing.assert_allclose(
        draw_affine(FULL, 42, 3, [7])[0], [[0.7748377, 0.0700844, 0.1369047], [-0.112256, 0.7541354, 0.0002641]], rtol=0, atol=1e-6
    )


def test_padding_stays_as_it_is() -> None:
    drawn = draw_affine(FULL, 1, 2, [-1, 4, -1])
    identity = [[1, 0, 0], [0, 1, 0]]
    assert drawn[0].tolist() == identity
    assert drawn[2].tolist() == identity
    np.testing.assert_array_equal(drawn[1], draw_affine(FULL, 1, 2, [4])[0])


def test_no_ranges_give_exactly_the_identity() -> None:
    assert (draw_affine(AugmentSpec(), 1, 2, range(100), aspect=1.7) == np.eye(2, 3)).all()


RANGES = {"theta": (-40, 40), "tx": (-0.2, 0.2), "ty": (-0.2, 0.2), "shear": (-15, 15), "zx": (0.7, 1.3), "zy": (0.7, 1.3)}


@pytest.mark.parametrize("name", RANGES)
def test_every_parameter_is_uniform_over_its_range(name: str) -> None:
    low, high = RANGES[name]
    drawn = np.sort(getattr(draw_parameters(FULL, 1, 0, range(4000)), name))
    expected = np.linspace(low, high, 4000)
    assert np.abs(drawn - expected).max() < 0.031 * (high - low)  # Kolmogorov-Smirnov at 0.1 %: 1.95 / sqrt(4000)
    assert low <= drawn[0] <= drawn[-1] <= high


def test_every_second_image_is_flipped_where_flips_are_on() -> None:
    assert 1900 < draw_parameters(FULL, 1, 0, range(4000)).flip.sum() < 2100
    assert not draw_parameters(FULL.model_copy(update={"flip": False}), 1, 0, range(4000)).flip.any()


def test_the_parameters_of_an_image_are_independent() -> None:
    correlation = np.corrcoef(np.stack(draw_parameters(FULL, 1, 0, range(4000))).astype(float))
    assert np.abs(correlation - np.eye(7)).max() < 0.07


def test_widening_one_range_moves_no_other_parameter() -> None:
    one = draw_parameters(AugmentSpec(shear=5, flip=True), 1, 2, range(20))
    other = draw_parameters(AugmentSpec(rotation=90, shift=0.5, shear=5, zoom=0.5, flip=True), 1, 2, range(20))
    np.testing.assert_array_equal(one.shear, other.shear)
    np.testing.assert_array_equal(one.flip, other.flip)
    np.testing.assert_array_equal(draw_parameters(AugmentSpec(shear=10), 1, 2, range(20)).shear, 2 * one.shear)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tx": 0.25}, [[1, 0, 0.25], [0, 1, 0]]),
        ({"ty": 0.25}, [[1, 0, 0], [0, 1, 0.25]]),
        ({"zx": 0.5}, [[0.5, 0, 0.25], [0, 1, 0]]),
        ({"zy": 2.0}, [[1, 0, 0], [0, 2, -0.5]]),
        ({"flip": True}, [[-1, 0, 1], [0, 1, 0]]),
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
        ({"theta": 90}, [[0, -0.5, 0.75], [2, 0, -0.5]]),  # half as high as wide: a column of the output shows half a row
        ({"shear": 30}, [[1, -0.25, 0.125], [0, np.sqrt(0.75), 0.5 - np.sqrt(0.75) / 2]]),
        ({"tx": 0.25, "ty": 0.5}, [[1, 0, 0.25], [0, 1, 0.5]]),  # shifts are fractions of their own side
        ({"theta": 90, "tx": 0.25}, [[0, -0.5, 0.75], [2, 0, 0]]),  # a quarter of the width is half of the height
        ({"flip": True}, [[-1, 0, 1], [0, 1, 0]]),
    ],
)
def test_matrices_of_an_image_twice_as_wide_as_high(changes: dict[str, float], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(matrix(aspect=2.0, **changes), expected, atol=1e-7)


def test_a_batch_of_matrices_is_made_one_by_one() -> None:
    drawn = draw_parameters(FULL, 3, 1, range(6))
    for index, expected in enumerate(affine_matrices(drawn, 1.5)):
        one = AffineParameters(*(values[index : index + 1] for values in drawn))
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
    drawn = draw_parameters(FULL, 9, 0, [row])
    values = {name: float(value[0]) for name, value in drawn._asdict().items()}
    mirrored = bool(values.pop("flip"))
    settings = values | {"tx": values["tx"] * size, "ty": values["ty"] * size, "flip_horizontal": mirrored}
    image.ImageDataGenerator(data_format="channels_last").apply_transform(np.zeros((size, size, 3)), settings)

    for y, x in [(0, 0), (9, 0), (3, 7), (9, 9)]:
        before_flip = size - 1 - x if mirrored else x
        row_keras, column_keras = seen["matrix"] @ (y, before_flip, 1)  # pixels, row before column
        x_ours, y_ours = affine_matrices(drawn)[0] @ ((x + 0.5) / size, (y + 0.5) / size, 1)
        np.testing.assert_allclose((x_ours * size - 0.5, y_ours * size - 0.5), (column_keras, row_keras), atol=1e-5)
