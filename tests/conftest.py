"""Fixtures that every test may use, and the options `--light` and `--heavy`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from light_tier import get_import_closure, guard_session, is_heavy_test

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# A busy machine is slow: an example that takes long, or is generated slowly, is no failure.
settings.register_profile("no time limits", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no time limits")

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
# Files in there whose tests are not about numbers
OTHER_FILES = (
    "test_local.py",
    "test_setting_pairs.py",
    "test_store_runs.py",
    "test_store_training.py",
    "test_user_models.py",
    "test_watchdog.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--light",
        action="store_true",
        help="run only tests that load neither TensorFlow, Keras, Ray nor DALI, and fail those that do",
    )
    parser.addoption("--heavy", action="store_true", help="run only the tests that --light leaves out")
    parser.addoption(
        "--fuzz-minutes",
        type=float,
        default=1.0,
        help="duration of the longer test of all parsers with damaged inputs, which is slow (default: 1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and child processes inherit that: Ray could not
    # interrupt its tasks.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("light"):
        guard_session()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out test files, and directories whose conftest.py, that load a heavy library when imported."""
    return True if config.getoption("light") and is_heavy_path(collection_path) else None


@cache
def is_heavy_path(path: Path) -> bool:
    """Tells whether collecting a test file, or a directory, loads a heavy library."""
    file = path / "conftest.py" if path.is_dir() else path
    return file.suffix == ".py" and file.is_file() and get_import_closure().is_heavy(file)


def get_tier(item: pytest.Function) -> str:
    """Returns `light` for a test that `--light` runs, `heavy` for any other."""
    directories = [TESTS / path for path in item.path.relative_to(TESTS).parents]
    is_heavy = any(map(is_heavy_path, [item.path, *directories])) or is_heavy_test(item)
    return "heavy" if is_heavy else "light"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Marks the numeric tests, and deselects those of the other tier."""
    for item in items:
        is_numeric = any(item.path.is_relative_to(TESTS / directory) for directory in NUMERIC_DIRECTORIES)
        has_other_subject = item.path.name in OTHER_FILES or any(
            map(item.get_closest_marker, ("e2e", "slow"))
        )
        if is_numeric and not has_other_subject:
            item.add_marker("numeric")

    for tier in ("light", "heavy"):
        if config.getoption(tier):
            config.hook.pytest_deselected(items=[item for item in items if get_tier(item) != tier])
            items[:] = [item for item in items if get_tier(item) == tier]


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
