"""The assembled settings: the fields, their defaults and their documentation."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipelines.errors import ConfigError
from pipelines.spec import AugmentSpec, DataSpec, check

DEFAULTS = {
    "rotation": 0.0,
    "shift": 0.0,
    "shear": 0.0,
    "zoom": 0.0,
    "flip": False,
    "flip_vertical": False,
    "crop": None,
    "crop_ratio": (0.75, 4 / 3),
    "crop_at": "device",
    "fill": "nearest",
    "fill_value": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "randaugment": None,
    "randaugment_std": 0.5,
    "erase": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "size": None,
}


def test_fields_keep_their_order_and_defaults() -> None:
    """Digests and saved configurations depend on them."""
    assert list(AugmentSpec().model_dump().items()) == list(DEFAULTS.items())


def test_every_field_is_documented() -> None:
    for name in DEFAULTS:
        assert AugmentSpec.model_fields[name].description
        assert f"\n        {name}: {AugmentSpec.model_fields[name].description}" in str(AugmentSpec.__doc__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotation", 180.1),
        ("rotation", "40"),
        ("shift", 1.1),
        ("shear", 90.0),
        ("zoom", 1.0),
        ("flip", 0.5),
        ("crop", (0.0, 0.5)),
        ("crop", 0.5),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_at", "read"),
        ("fill", "mirror"),
        ("fill_value", 256.0),
        ("randaugment", 10.5),
        ("randaugment", True),
        ("brightness", 1.0),
        ("contrast", -0.1),
        ("saturation", 1.1),
        ("hue", 181.0),
        ("erase", 1.1),
        ("mixup", 1.1),
        ("cutmix", -0.1),
        ("size", (0, 4)),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*: .*Received: {name}.*="):
        check(AugmentSpec, {name: value}, "config.yaml")
    with pytest.raises(ValidationError):
        AugmentSpec(**{name: value})


def test_an_unknown_key_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"a known key\. Received: rotatoin=4\. Fix: use rotation or crop_ratio or crop_at\.$",
    ):
        check(AugmentSpec, {"rotatoin": 4}, "config.yaml")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        AugmentSpec(rotatoin=4)


def test_equal_settings_have_equal_hashes() -> None:
    assert hash(AugmentSpec(crop=(0.5, 1.0))) == hash(AugmentSpec(crop=(0.5, 1.0)))
    assert AugmentSpec(crop=(0.5, 1.0)) != AugmentSpec(crop=(0.4, 1.0))


@pytest.mark.parametrize("value", [96, "96", "96x96", "96X96", " 96 x 96 ", [96, 96], (96, 96)])
def test_sizes_are_written_in_several_ways(value: object) -> None:
    assert DataSpec(image_size=value).model_dump(mode="json")["image_size"] == [96, 96]
    assert AugmentSpec(size=value).model_dump(mode="json")["size"] == [96, 96]


def test_height_comes_before_width() -> None:
    assert DataSpec(image_size="96x64").image_size == (96, 64)


@pytest.mark.parametrize(
    "value", ["", "96x", "x96", "96x96x3", "ninety", -96, "-96", 0, "0x96", True, 96.5, [96]]
)
def test_other_sizes_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        check(DataSpec, {"image_size": value}, "config.yaml")
    with pytest.raises(ConfigError, match="size"):
        check(AugmentSpec, {"size": value}, "config.yaml")
