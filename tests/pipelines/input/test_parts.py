"""Batches of large images are decoded in parts that fit into the budget."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.input.parts import IN_FLIGHT, plan_parts
from pipelines.settings import check
from pipelines.spec import DataSpec

SHAPES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.sampled_from([1, 3])), max_size=40)


def plan(shapes, budget, channels=3):
    return plan_parts(np.array(shapes, np.int32).reshape(-1, 3), channels, budget)


@given(shapes=SHAPES, budget=st.integers(1, 4_000_000))
def test_parts_cover_the_batch_and_fit_unless_they_are_single_images(shapes, budget):
    parts = plan(shapes, budget)
    assert [i for part in parts for i in range(len(shapes))[part]] == list(range(len(shapes)))
    for part in parts:
        size = sum(height * width * (channels + 3) for height, width, channels in shapes[part])
        assert IN_FLIGHT * size <= budget or part.stop - part.start == 1
    for first, second in pairwise(parts):  # none could have held one more
        height, width, channels = shapes[second.start]
        size = sum(h * w * (c + 3) for h, w, c in shapes[first]) + height * width * (channels + 3)
        assert IN_FLIGHT * size > budget


def test_photos_of_imagenet_are_one_part_and_photos_of_12_megapixels_are_not():
    budget = DataSpec().decode_gb * 1e9
    assert plan([(375, 500, 3)] * 256, budget) == [slice(0, 256)]
    sizes = [part.stop - part.start for part in plan([(3000, 4000, 3)] * 256, budget)]
    assert set(sizes[:-1]) == {13}  # of 36 MB, and 36 MB for the file at most
    assert sum(sizes) == 256


def test_no_images_are_one_part():
    assert plan([], 1) == [slice(0, 0)]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="decode_gb"):
        check(DataSpec, {"decode_gb": 0.0}, "data")
