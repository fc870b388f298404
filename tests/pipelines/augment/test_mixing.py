"""Random erasing, mixup and cutmix: how often, how much and where."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import SQUARE, WIDE, draw_by_name
from scipy import stats

from pipelines.augment.base import ImageShape
from pipelines.augment.beta import symmetric_beta
from pipelines.augment.cutmix import Cutmix
from pipelines.augment.mixup import Mixup
from pipelines.augment.philox import uniform
from pipelines.spec import AugmentSpec

MANY = np.arange(4000)
NUMBERS = uniform(1, 0, MANY, 26)
BOTH = AugmentSpec(mixup=1.0, cutmix=1.0)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4, 0.5, 0.8, 1.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    """Checks quantiles against SciPy's, and the distribution over the numbers that are drawn."""
    numbers = np.array([1e-9, 1e-4, 0.01, 0.1, 0.3, 0.49, 0.5, 0.6, 0.77, 0.95, 0.9999])
    distribution = stats.beta(alpha, alpha)
    np.testing.assert_allclose(symmetric_beta(alpha, numbers), distribution.ppf(numbers), atol=1e-4)
    if alpha > 0.1:  # for smaller values, so many shares round to exactly 1 that they would distort the test
        shares = symmetric_beta(alpha, NUMBERS[Mixup.streams["share"]])
        assert stats.kstest(shares, distribution.cdf).pvalue > 0.001


@pytest.mark.parametrize("image", [SQUARE, WIDE])
def test_boxes_are_erased_with_the_requested_frequency_area_shape_and_position(image: ImageShape) -> None:
    boxes = draw_by_name(AugmentSpec(erase=0.7), MANY, image=image)["erase"].astype(np.float64)
    boxes = boxes[boxes.any(axis=1)]
    assert abs(len(boxes) / 4000 - 0.7) < 0.03
    top, left, bottom, right = boxes.T
    height = bottom - top
    width = right - left
    is_whole = (height < 0.999) & (width < 0.999)  # 0.33 of the area at a ratio of 3.3 does not quite fit
    assert is_whole.mean() > (0.99 if image.aspect == 1 else 0.95)
    area = (height * width)[is_whole]
    ratio = (width / height * image.aspect)[is_whole]
    assert stats.kstest(area, stats.uniform(0.02, 0.31).cdf).statistic < 0.05
    assert stats.kstest(np.log(ratio), stats.uniform(np.log(0.3), np.log(11)).cdf).statistic < 0.05
    assert stats.kstest(top[is_whole] / (1 - height[is_whole]), "uniform").pvalue > 0.001
    assert stats.kstest(left[is_whole] / (1 - width[is_whole]), "uniform").pvalue > 0.001
    assert boxes.min() >= 0
    assert 0.9 < boxes.max() <= 1


def test_every_image_is_mixed_if_one_kind_alone_is_on() -> None:
    shares = draw_by_name(AugmentSpec(mixup=1.0), MANY)["mixup"]
    assert stats.kstest(shares, "uniform").pvalue > 0.001
    assert (draw_by_name(AugmentSpec(cutmix=0.5), MANY)["cutmix"][:, 2:] > 0).all()


def test_each_image_gets_one_of_the_two_if_both_are_on() -> None:
    drawn = draw_by_name(BOTH, MANY)
    is_blended = drawn["mixup"] < 1
    is_cut = drawn["cutmix"].any(axis=1)
    assert (is_blended ^ is_cut).all()
    assert 1900 < is_blended.sum() < 2100


def test_neighbours_draw_independently() -> None:
    is_blended = draw_by_name(BOTH, MANY)["mixup"] < 1
    assert 900 < (is_blended[0::2] == is_blended[1::2]).sum() < 1100
    shares = draw_by_name(AugmentSpec(mixup=1.0), MANY)["mixup"]
    assert abs(np.corrcoef(shares[0::2], shares[1::2])[0, 1]) < 0.07


def test_a_cutmix_box_has_its_center_anywhere_and_is_clipped_at_the_edges() -> None:
    boxes = draw_by_name(AugmentSpec(cutmix=1.0), MANY)["cutmix"].astype(np.float64)
    top, left, bottom, right = boxes.T
    area, y, x = (NUMBERS[Cutmix.streams[name]] for name in ("area", "y", "x"))
    side = np.sqrt(1 - symmetric_beta(1.0, area))
    assert boxes.min() == 0
    assert boxes.max() == 1
    is_inside = (boxes > 0).all(axis=1) & (boxes < 1).all(axis=1)
    assert is_inside.sum() > 300
    # the box has the shape of the image
    np.testing.assert_allclose((bottom - top)[is_inside], side[is_inside], atol=1e-6)
    np.testing.assert_allclose((right - left)[is_inside], side[is_inside], atol=1e-6)
    np.testing.assert_allclose(((top + bottom) / 2)[is_inside], y[is_inside], atol=1e-6)
    np.testing.assert_allclose(((left + right) / 2)[is_inside], x[is_inside], atol=1e-6)
    np.testing.assert_allclose(bottom, np.minimum(y + side / 2, 1), atol=1e-6)
    np.testing.assert_allclose(left, np.maximum(x - side / 2, 0), atol=1e-6)
