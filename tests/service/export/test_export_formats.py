"""The table of export formats: names, entries, and packages that may be missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.errors import ConfigError
from service.export.formats import ANY_SIZE, FITTED, FORMATS, get_format


def test_an_unknown_format_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="format=onx") as caught:
        get_format("onx")
    assert caught.value.fix == "use onnx"


@pytest.mark.parametrize(("name", "entries"), [("savedmodel", 2), ("tflite", 2), ("onnx", 1)])
def test_entries_for_images_of_any_size_come_first(name: str, entries: int) -> None:
    assert get_format(name).list_entries(is_fitted=False) == (ANY_SIZE, FITTED)[:entries]
    assert get_format(name).list_entries(is_fitted=True) == (FITTED,)


def test_a_missing_package_is_an_error_that_names_the_extra() -> None:
    FORMATS["savedmodel"].check_installed()
    lacking = replace(FORMATS["onnx"], packages=("json", "no_such_package"))
    with pytest.raises(ConfigError, match=r"format=onnx \(no_such_package not installed\)") as caught:
        lacking.check_installed()
    assert "pip install 'glassbox-train[onnx]'" in caught.value.fix
