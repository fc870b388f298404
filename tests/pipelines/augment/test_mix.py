"""Random erasing, mixup and cutmix: how often, how much and where."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipelines.augment.mix import cutmix_boxes, erased_boxes, mixup_shares, symmetric_beta
from pipelines.augment.philox import Number, uniform
from pipelines.spec import AugmentSpec

MANY = np.arange(4000)
NUMBERS = uniform(1, 0, MANY)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4, 0.5, 0.8, 1.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    """SciPy's quantiles, and its distribution over the very numbers that are drawn."""
    numbers = np.array([1e-9, 1e-4, 0.01, 0.1, 0.3, 0.49, 0.5, 0.6, 0.77, 0.95, 0.9999])
    np.testing.assert_allclose(
        symmetric_beta(alpha, numbers), stats.beta(alpha, alpha).ppf(numbers), atol=1e-4
    )
    if alpha > 0.1:  # below, so many shares round to exactly 1 that the test would count them as one
        assert (
            stats.kstest(symmetric_beta(alpha, NUMBERS[Number.MIXUP]), stats.beta(alpha, alpha).cdf).pvalue
            > 0.001
        )


@pytest.mark.parametrize("aspect", [1.0, 1.5])
def test_boxes_are_erased_as_often_as_asked_for_with_area_shape_and_place(aspect: float) -> None:
    boxes = erased_boxes(AugmentSpec(erase=0.7), NUMBERS, MANY, aspect).astype(np.float64)
    erased = boxes[boxes.any(axis=1)]
    assert abs(len(erased) / 4000 - 0.7) < 0.03
    top, left, bottom, right = erased.T
    height, width = bottom - top, right - left
    whole = (height < 0.999) & (width < 0.999)  # 0.33 of the area at a ratio of 3.3 does not quite fit
    assert whole.mean() > (0.99 if aspect == 1 else 0.95)
    area, ratio = (height * width)[whole], (width / height * aspect)[whole]
    assert stats.kstest(area, stats.uniform(0.02, 0.31).cdf).statistic < 0.05
    assert stats.kstest(np.log(ratio), stats.uniform(np.log(0.3), np.log(11)).cdf).statistic < 0.05
    assert stats.kstest(top[whole] / (1 - height[whole]), "uniform").pvalue > 0.001
    assert stats.kstest(left[whole] / (1 - width[whole]), "uniform").pvalue > 0.001
    assert (erased.min(), erased.max()) >= (0, 0.9)
    assert erased.max() <= 1


def test_every_image_is_mixed_where_one_kind_alone_is_on() -> None:
    shares = mixup_shares(AugmentSpec(mixup=1.0), NUMBERS, MANY)
    assert stats.kstest(shares, "uniform").pvalue > 0.001
    assert (cutmix_boxes(AugmentSpec(cutmix=0.5), NUMBERS, MANY)[:, 2:] > 0).all()


def test_each_image_gets_one_of_the_two_where_both_are_on() -> None:
    spec = AugmentSpec(mixup=1.0, cutmix=1.0)
    mixed, cut = mixup_shares(spec, NUMBERS, MANY) < 1, cutmix_boxes(spec, NUMBERS, MANY).any(axis=1)
    assert (mixed ^ cut).all()
    assert 1900 < mixed.sum() < 2100


def test_neighbours_decide_for_themselves() -> None:
    spec = AugmentSpec(mixup=1.0, cutmix=1.0)
    mixed = mixup_shares(spec, NUMBERS, MANY) < 1
    assert 900 < (mixed[0::2] == mixed[1::2]).sum() < 1100
    shares = mixup_shares(AugmentSpec(mixup=1.0), NUMBERS, MANY)
    assert abs(np.corrcoef(shares[0::2], shares[1::2])[0, 1]) < 0.07


def test_a_cutmix_box_has_its_centre_anywhere_and_is_cut_off_at_the_edges() -> None:
    boxes = cutmix_boxes(AugmentSpec(cutmix=1.0), NUMBERS, MANY).astype(np.float64)
    top, left, bottom, right = boxes.T
    assert boxes.min() == 0
    assert boxes.max() == 1
    inside = (boxes > 0).all(axis=1) & (boxes < 1).all(axis=1)
    assert inside.sum() > 300
    np.testing.assert_allclose(
        (bottom - top)[inside], (right - left)[inside], atol=1e-6
    )  # the shape of the image
    side = np.sqrt(1 - symmetric_beta(1.0, NUMBERS[Number.CUTMIX]))
    np.testing.assert_allclose((bottom - top)[inside], side[inside], atol=1e-6)
    np.testing.assert_allclose(((top + bottom) / 2)[inside], NUMBERS[Number.CUT_Y, inside], atol=1e-6)
    np.testing.assert_allclose(((left + right) / 2)[inside], NUMBERS[Number.CUT_X, inside], atol=1e-6)
    np.testing.assert_allclose(bottom, np.minimum(NUMBERS[Number.CUT_Y] + side / 2, 1), atol=1e-6)
    np.testing.assert_allclose(left, np.maximum(NUMBERS[Number.CUT_X] - side / 2, 0), atol=1e-6)
