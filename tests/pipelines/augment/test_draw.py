"""The parameters of a batch: which ones are drawn, and that they depend on seed, epoch and row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.augment.draw import check_batch, draw, signature
from pipelines.errors import ConfigError
from pipelines.spec import AugmentSpec, DataSpec

DATA = DataSpec(image_size=(100, 150))
GREY = DataSpec(image_size=(28, 28), channels=1)
AFFINE = AugmentSpec(rotation=40, shift=0.2, shear=15, zoom=0.3, flip=True)
EVERYTHING = AugmentSpec(
    rotation=40,
    shift=0.2,
    shear=15,
    zoom=0.3,
    flip=True,
    flip_vertical=True,
    crop=(0.3, 0.9),
    brightness=0.2,
    contrast=0.3,
    saturation=0.5,
    hue=30,
    erase=0.9,
    mixup=0.4,
    cutmix=1.0,
)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, ""),
        ({"fill": "constant", "fill_value": 9.0}, ""),
        ({"flip_vertical": True}, "affine"),
        ({"crop": (0.5, 1.0)}, "affine"),
        ({"size": (4, 4)}, "affine"),
        ({"hue": 10}, "colour"),
        ({"brightness": 0.1}, "colour"),
        ({"erase": 0.1}, "erase"),
        ({"mixup": 0.1}, "mix"),
        ({"cutmix": 0.1}, "cut"),
        (EVERYTHING.model_dump(), "affine colour erase mix cut"),
    ],
)
def test_exactly_what_is_on_is_drawn_as_the_signature_says(changes: dict[str, Any], keys: str) -> None:
    for data in (DATA, GREY):
        spec = AugmentSpec(**changes)
        drawn = draw(spec, 1, 2, range(6), data)
        types = signature(spec, data)
        is_colourless = data is GREY and keys == "colour" and not spec.brightness
        assert list(drawn) == list(types) == ([] if is_colourless else keys.split())
        for name, (shape, dtype) in types.items():
            assert (drawn[name].shape, drawn[name].dtype) == ((6, *shape), dtype)


@pytest.mark.parametrize(
    ("seed", "epoch", "row", "size", "expected"),
    [
        (42, 3, 7, (9, 9), [[0.7748377, 0.0700844, 0.1369047], [-0.112256, 0.7541354, 0.0002641]]),
        (42, 3, 0, (9, 9), [[0.8317727, 0.6830063, -0.2214004], [-0.6216871, 1.0190760, 0.3857858]]),
        (42, 3, 2**33 + 5, (9, 9), [[-1.0720837, 0.6002609, 0.9662422], [0.6682517, 0.9472060, -0.2379816]]),
        (2**63 + 1, 1, 12, (10, 15), [[0.6988192, -0.335372, 0.2083758], [0.3485989, 1.0227548, -0.0926643]]),
    ],
)
def test_the_matrix_of_a_seed_never_changes(
    seed: int, epoch: int, row: int, size: tuple[int, int], expected: Any
) -> None:
    """Drawn by the first version of this project."""
    drawn = draw(AFFINE, seed, epoch, [row], DataSpec(image_size=size))
    np.testing.assert_allclose(drawn["affine"][0], expected, rtol=0, atol=1e-6)


def test_the_draw_of_a_seed_never_changes() -> None:
    drawn = draw(EVERYTHING, 42, 3, [7, 4, 3, 2], DATA)
    expected: dict[str, Any] = {
        "affine": [[0.6462969, 0.0389719, 0.2030934], [-0.168384, 0.7541354, 0.0222784]],
        "colour": [
            [0.9498376, 0.3379278, 0.1780106, -33.3032723],
            [0.311248, 1.1572556, -0.0027277, -33.3032723],
            [0.1305096, 0.5186662, 0.8166002, -33.3032723],
        ],
        "erase": [0.3204136, 0.365237, 0.975257, 0.6623697],
        "mix": 0.6510021,
        "cut": [0, 0, 0, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(drawn[name][0], values, rtol=2e-7, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(drawn["mix"], [0.6510021, 0.0143607, 1, 1], atol=1e-6)
    np.testing.assert_allclose(drawn["cut"][3], [0.3675026, 0, 0.9999294, 0.6147502], atol=1e-6)


def test_an_image_gets_the_same_parameters_in_any_batch() -> None:
    together = draw(EVERYTHING, 1, 2, [5, 3, 9, 4], DATA)
    for place, row in enumerate((5, 3, 9, 4)):
        alone = draw(EVERYTHING, 1, 2, [77, row], DATA)
        for name, values in together.items():
            np.testing.assert_array_equal(values[place], alone[name][1])


@pytest.mark.parametrize("other", [(2, 2, 3), (1, 3, 3), (1, 2, 4), (1 + 2**32, 2, 3), (1, 2, 3 + 2**32)])
def test_another_seed_epoch_or_row_gets_other_parameters(other: tuple[int, int, int]) -> None:
    seed, epoch, row = other
    spec = EVERYTHING.model_copy(update={"cutmix": 0.0})  # so that every image has a share
    before = draw(spec, 1, 2, [3, 0], DATA)
    after = draw(spec, seed, epoch, [row, 0], DATA)
    for name in ("affine", "colour", "mix"):
        assert not np.allclose(before[name][0], after[name][0])


def test_padding_is_neither_changed_nor_mixed_with() -> None:
    drawn = draw(EVERYTHING, 1, 2, [8, 9, 5, -1, -1, -1], DATA)
    assert (drawn["affine"][3:] == np.eye(2, 3)).all()
    assert (drawn["colour"][3:] == np.eye(3, 4)).all()
    assert (drawn["erase"][3:] == 0).all()
    assert (drawn["mix"][2:] == 1).all()
    assert (drawn["cut"][2:] == 0).all()
    assert (drawn["affine"][:3] != np.eye(2, 3)).any(axis=(1, 2)).all()
    assert ((drawn["mix"][:2] < 1) ^ (drawn["cut"][:2] != 0).any(axis=1)).all()


CHANGES = {
    "affine": [
        {"rotation": 90},
        {"shift": 0.4},
        {"shear": 30},
        {"zoom": 0.5},
        {"flip": False},
        {"flip_vertical": False},
        {"crop": (0.5, 0.6)},
        {"crop": None},
        {"crop_ratio": (1.0, 2.0)},
    ],
    "colour": [{"brightness": 0.4}, {"contrast": 0.1}, {"saturation": 0.9}, {"hue": 90}],
    "erase": [{"erase": 0.5}],
    "mix": [{"mixup": 0.9}],
    "cut": [{"cutmix": 0.5}],
}


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, changes in CHANGES.items() for change in changes]
)
def test_changing_one_range_moves_no_other_kind_of_parameter(name: str, change: dict[str, Any]) -> None:
    before = draw(EVERYTHING, 1, 2, range(40), DATA)
    after = draw(EVERYTHING.model_copy(update=change), 1, 2, range(40), DATA)
    assert [key for key in before if not np.array_equal(before[key], after[key])] == [name]


@pytest.mark.parametrize("spec", [AugmentSpec(mixup=0.2), AugmentSpec(cutmix=1.0)])
def test_an_odd_batch_cannot_be_mixed(spec: AugmentSpec) -> None:
    message = r"even batch on every replica.*batch=5\. Fix: use 4 or 6"
    with pytest.raises(ConfigError, match=message):
        check_batch(spec, 5)
    with pytest.raises(ConfigError, match=message):
        draw(spec, 0, 0, range(5), DATA)
    with pytest.raises(ConfigError, match="use 2"):
        check_batch(spec, 1)
    check_batch(spec, 6)
    check_batch(AFFINE, 5)
