"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _tiny_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Registers the models of `tiny_models`, except for the light tier, which loads no Keras."""
    if request.config.getoption("light"):
        yield
        return
    from tiny_models import register_tiny_models

    with register_tiny_models():
        yield
