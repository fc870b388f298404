"""Hypothesis fails no test because a machine is slow."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

DEFAULT_DEADLINE = 0.2  # seconds per example, without the profile of `conftest.py`


@settings(max_examples=2, database=None)
@given(st.booleans())
def test_a_slow_example_is_no_failure(value: bool) -> None:
    time.sleep(1.5 * DEFAULT_DEADLINE)
    assert value in (False, True)
