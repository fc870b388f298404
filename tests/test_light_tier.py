"""`pytest --light` leaves out every file that loads a heavy library, no other, and refuses to load one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from light_tier import TESTS, ImportClosure, get_import_closure


@pytest.fixture(scope="module")
def closure() -> ImportClosure:
    return get_import_closure()


@pytest.mark.parametrize(
    "path",
    [
        "pipelines/augment/test_draw.py",
        "pipelines/input/test_order.py",
        "pipelines/shards/test_plan.py",
        "property/test_order_properties.py",
        "service/test_config.py",
        "service/test_runs.py",
        "test_architecture.py",
    ],
)
def test_pure_files_are_in_the_tier(closure: ImportClosure, path: str) -> None:
    assert not closure.is_heavy(TESTS / path)


@pytest.mark.parametrize(
    "source",
    [
        "import keras",
        "from tensorflow.data import Dataset",
        "import pytest\nkeras = pytest.importorskip('keras')",
        "import pipelines.input.tfdata",  # loads TensorFlow
        "from tiny_models import TINY",  # a helper of the tests that loads Keras
    ],
)
def test_files_that_load_a_heavy_library_are_not(closure: ImportClosure, tmp_path: Path, source: str) -> None:
    (tmp_path / "test_planted.py").write_text(source)
    assert closure.is_heavy(tmp_path / "test_planted.py")


def test_imports_inside_functions_and_for_type_checkers_do_not_count(
    closure: ImportClosure, tmp_path: Path
) -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import keras\ndef f():\n    import ray"
    (tmp_path / "test_planted.py").write_text(source)
    assert not closure.is_heavy(tmp_path / "test_planted.py")


@pytest.mark.parametrize("library", ["tensorflow", "keras", "ray"])
def test_child_processes_cannot_load_a_heavy_library_but_can_ask_for_it(library: str) -> None:
    code = f"import importlib.util; assert importlib.util.find_spec('{library}'); import {library}"
    environment = os.environ | {"PYTHONPATH": str(TESTS / "light")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (
        f"HeavyImportError: Expected a test without heavy imports. Received: import={library}."
        in result.stderr
    )
