"""Fixtures that every test may use, and the option `--light`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from light_tier import get_import_closure, guard_session, is_heavy_test

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

pytest_plugins = ("stores",)  # fixtures: s3_server, bucket, proxy

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
# What `make test-processors` runs with the kernels of other processors
NUMERIC_DIRECTORIES = (
    "pipelines/augment",
    "pipelines/input",
    "service/diagnosis",
    "service/inference",
    "service/models",
    "service/report/analysis",
    "service/report/sections",
    "service/training",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--light",
        action="store_true",
        help="run only tests that load neither TensorFlow, Keras, Ray nor DALI, and fail those that do",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and child processes inherit that: Ray could not
    # interrupt its tasks.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("light"):
        guard_session()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out test files, and directories whose conftest.py, that load a heavy library when imported."""
    if not config.getoption("light"):
        return None
    path = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    is_test_code = path.suffix == ".py" and path.is_file()
    return True if is_test_code and get_import_closure().is_heavy(path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Marks the numeric tests; under `--light`, deselects the tests that load a heavy library."""
    for item in items:
        is_numeric = any(item.path.is_relative_to(TESTS / directory) for directory in NUMERIC_DIRECTORIES)
        if is_numeric and not any(map(item.get_closest_marker, ("e2e", "slow"))):
            item.add_marker("numeric")

    if not config.getoption("light"):
        return
    heavy = [item for item in items if is_heavy_test(item)]
    config.hook.pytest_deselected(items=heavy)
    items[:] = [item for item in items if item not in heavy]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Returns the folder of real photos and digits next to the repository; skips the test without one."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real data sets in {folder}")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Starts Ray for this session."""
    from pipelines.cluster import ray_session

    with ray_session():
        yield
