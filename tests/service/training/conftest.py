"""Fixtures of the tests of the training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _tiny_models() -> Iterator[None]:
    """The networks of `tiny_models` have names while these tests run."""
    from tiny_models import registered

    with registered():
        yield
