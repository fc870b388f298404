"""The part of a stored image that is decoded: its distribution, and what it depends on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from pipelines.augment.decoded_crop import describe_window, draw_windows
from pipelines.augment.draw import draw
from pipelines.errors import ConfigError
from pipelines.settings import check
from pipelines.spec import AugmentSpec, DataSpec
from service.config import RunConfig

IMAGENET = AugmentSpec(crop=(0.08, 1.0), crop_at="decode")
COUNT = 4000
# Samples of the same distribution differ by more than this in one of 100,000 cases; all draws are fixed.
LARGEST_DISTANCE = 2.47 * math.sqrt(2 / COUNT)


def draw_many(height, width, spec=IMAGENET, seed=5, epoch=2, count=COUNT):
    return draw_windows(
        spec, seed, epoch, np.arange(count), np.tile(np.int32([height, width, 3]), (count, 1))
    )


def draw_by_formula(generator, height, width, scale, ratio):
    """One window by the formula as published, number by number."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return generator.integers(0, height - h + 1), generator.integers(0, width - w + 1), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def measure(windows, height, width):
    """Area, logarithm of the proportions, and position within the room that is left."""
    top, left, h, w = np.asarray(windows, float).T
    return {
        "area": h * w / (height * width),
        "aspect": np.log(w / h),
        "y": (top + 0.5) / (height - h + 1),
        "x": (left + 0.5) / (width - w + 1),
        "height": h,
    }


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (300, 300), (200, 640)])
@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.35, 1.0), (3 / 4, 4 / 3)), ((0.1, 0.6), (0.8, 2.0))],
)
def test_windows_have_the_published_distribution(size, scale, ratio):
    generator = np.random.default_rng(3)
    expected = [draw_by_formula(generator, *size, scale, ratio) for _ in range(COUNT)]
    found = draw_many(*size, AugmentSpec(crop=scale, crop_ratio=ratio, crop_at="decode"))
    for name, values in measure(expected, *size).items():
        distance = ks_2samp(values, measure(found, *size)[name]).statistic
        assert distance < LARGEST_DISTANCE, name


def test_area_proportions_and_position_are_independent():
    values = measure(draw_many(1000, 1000, AugmentSpec(crop=(0.1, 0.5), crop_at="decode")), 1000, 1000)
    correlations = np.corrcoef([values[name] for name in ("area", "aspect", "y", "x")])
    assert np.abs(correlations - np.eye(4)).max() < 5 / math.sqrt(COUNT)


def test_an_image_that_no_attempt_fits_shows_its_middle():
    window = draw_many(100, 1000, AugmentSpec(crop=(0.9, 1.0), crop_at="decode"), count=50)
    assert (window == [0, 433, 100, 133]).all()
    window = draw_many(1000, 100, AugmentSpec(crop=(0.9, 1.0), crop_at="decode"), count=50)
    assert (window == [433, 0, 133, 100]).all()


@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    smallest=st.floats(0.001, 1.0),
    ratio=st.tuples(st.floats(0.1, 1.0), st.floats(1.0, 10.0)),
    seed=st.integers(0, 2**64 - 1),
)
def test_windows_lie_inside_the_image(height, width, smallest, ratio, seed):
    spec = AugmentSpec(crop=(smallest, 1.0), crop_ratio=ratio, crop_at="decode")
    top, left, h, w = draw_many(height, width, spec, seed, count=20).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_a_window_depends_on_seed_epoch_and_row_alone():
    rows = np.array([9, 2, 700])
    shapes = np.int32([[375, 500, 3], [300, 400, 1], [640, 480, 3]])
    together = draw_windows(IMAGENET, 1, 4, rows, shapes)
    for index in range(3):
        alone = draw_windows(IMAGENET, 1, 4, rows[index : index + 1], shapes[index : index + 1])
        assert alone[0].tolist() == together[index].tolist()
    for seed, epoch in ((2, 4), (1, 5)):
        assert (draw_windows(IMAGENET, seed, epoch, rows, shapes) != together).any(axis=1).all()


def test_the_windows_of_a_seed_never_change():
    expected = [[60, 208, 124, 121], [147, 160, 224, 190], [10, 195, 354, 273]]
    assert draw_many(375, 500, seed=42, epoch=3, count=3).tolist() == expected


def test_padding_is_one_pixel():
    window = draw_windows(IMAGENET, 1, 4, [-1, 3], np.int32([[0, 0, 0], [375, 500, 3]]))
    assert window[0].tolist() == [0, 0, 1, 1]


def test_the_crop_leaves_the_warp_but_not_the_other_changes():
    shapes = np.tile(np.int32([375, 500, 3]), (4, 1))
    spec = AugmentSpec(crop=(0.08, 1.0), crop_at="decode", flip=True)
    drawn = draw(spec, 1, 2, range(4), DataSpec(), shapes)
    assert list(drawn) == ["window", "affine"]
    flips = draw(AugmentSpec(flip=True), 1, 2, range(4), DataSpec())
    assert (drawn["affine"] == flips["affine"]).all()
    with pytest.raises(ValueError, match="shapes"):
        draw(spec, 1, 2, range(4), DataSpec())


def test_a_window_is_described_in_pixels():
    fact = describe_window(np.int32([10, 20, 100, 150]), np.int32([300, 500, 3]))
    assert (fact.name, fact.value) == ("crop", "10%: 150\N{MULTIPLICATION SIGN}100 pixels at x 20 y 10")


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"augment\.crop=\[0\.08, 1\.0\]"):
        check(AugmentSpec, {"crop_at": "decode"}, "augment")
    settings = {"preset": "demo", "shards": "data", "model": "demo", "augment": IMAGENET.model_dump()}
    for cache in ("auto", "none"):
        check(RunConfig, {**settings, "data": {"cache": cache}}, "config.yaml")
    for cache in ("host", "device"):
        with pytest.raises(ConfigError, match=r"use data\.cache=none, or augment\.crop_at=device"):
            check(RunConfig, {**settings, "data": {"cache": cache}}, "config.yaml")
