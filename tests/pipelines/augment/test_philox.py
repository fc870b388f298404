"""The generator against its published vectors, and the numbers that each augmentation draws."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.augment.draw import MIXING_CHOICE
from pipelines.augment.philox import fold_in, philox4x32, uniform
from pipelines.augment.registry import AUGMENTATIONS


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
def test_known_vectors_of_the_generator(counter: list[int], key: list[int], expected: list[int]) -> None:
    """The vectors of philox4x32-10 in the Random123 library."""
    assert philox4x32(counter, key).tolist() == expected
    many = np.tile(np.array(counter)[:, None, None], (1, 2, 3))
    assert (philox4x32(many, key) == np.array(expected)[:, None, None]).all()


@pytest.mark.parametrize("count", [26, 28])
def test_seed_epoch_and_row_each_have_their_own_words(count: int) -> None:
    numbers = uniform(seed=5 << 32 | 7, epoch=3, rows=[9, 11 << 32 | 9], count=count)
    assert (numbers.dtype, numbers.shape) == (np.float64, (28, 2))
    for row, high in enumerate((0, 11)):
        words = np.concatenate([philox4x32([9, high, 3, block], [7, 5]) for block in range(7)])
        assert numbers[:, row].tolist() == [word / 2**32 for word in words.tolist()]


def test_a_number_does_not_depend_on_how_many_are_drawn() -> None:
    many = uniform(1, 2, range(5), 26)
    for count in (0, 1, 4, 5, 12):
        few = uniform(1, 2, range(5), count)
        np.testing.assert_array_equal(few, many[: len(few)])
        assert count <= len(few) < count + 4


def test_every_decision_has_a_number_of_its_own_which_never_changes() -> None:
    indices = {
        f"{augmentation.name} {name}": index
        for augmentation in AUGMENTATIONS
        for name, index in augmentation.streams.items()
    }
    assert indices == {
        "rotation angle": 0,
        "shift x": 1,
        "shift y": 2,
        "shear angle": 3,
        "zoom x": 4,
        "zoom y": 5,
        "flip horizontal": 6,
        "flip vertical": 7,
        "crop area": 8,
        "crop ratio": 9,
        "crop y": 10,
        "crop x": 11,
        "brightness factor": 12,
        "contrast factor": 13,
        "saturation factor": 14,
        "hue angle": 15,
        **{
            f"randaugment{kind} {name}{layer}": 26 + 5 * layer + index
            for kind in (" geometry", "")  # both read the same numbers
            for layer in (0, 1)
            for index, name in enumerate(("is_made", "operation", "radius", "angle", "sign"))
        },
        "erase is_erased": 16,
        "erase area": 17,
        "erase ratio": 18,
        "erase y": 19,
        "erase x": 20,
        "mixup share": 22,
        "cutmix area": 23,
        "cutmix y": 24,
        "cutmix x": 25,
    }
    assert MIXING_CHOICE == 21
    correlation = np.corrcoef(uniform(1, 0, np.arange(4000), 26))
    assert np.abs(correlation - np.eye(28)).max() < 0.07


def test_names_have_seeds_of_their_own() -> None:
    seeds = [fold_in(seed, name) for seed in (1, 2**63 + 5) for name in ("a", "b", "Solarize")]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert fold_in(42, "Solarize") == fold_in(42, "Solarize")
    streams = np.stack([uniform(seed, 0, np.arange(4000), 1)[0] for seed in (1, *seeds)])
    assert np.abs(np.corrcoef(streams) - np.eye(7)).max() < 0.07
