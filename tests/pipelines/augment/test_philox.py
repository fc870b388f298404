"""The generator against its published vectors, and which number means what."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.augment.philox import BLOCKS, Number, philox4x32, uniform


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
    many = np.tile(np.array(counter)[:, None, None], (1, 2, 3))
    assert (philox4x32(many, key) == np.array(expected)[:, None, None]).all()


def test_seed_epoch_and_row_each_have_their_own_words() -> None:
    numbers = uniform(seed=5 << 32 | 7, epoch=3, rows=[9, 11 << 32 | 9])
    assert (numbers.dtype, numbers.shape) == (np.float64, (4 * BLOCKS, 2))
    for row, high in enumerate((0, 11)):
        words = np.concatenate([philox4x32([9, high, 3, block], [7, 5]) for block in range(BLOCKS)])
        assert numbers[:, row].tolist() == [word / 2**32 for word in words.tolist()]


def test_every_decision_has_a_number_of_its_own() -> None:
    assert len({int(number) for number in Number}) == len(Number) == 26
    correlation = np.corrcoef(uniform(1, 0, np.arange(4000)))
    assert np.abs(correlation - np.eye(4 * BLOCKS)).max() < 0.07
