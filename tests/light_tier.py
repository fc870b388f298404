"""The light tier of the tests, `pytest --light`: those that load neither TensorFlow, Keras, Ray nor DALI."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from heavy_imports import is_heavy, refuse_heavy_imports
from import_graph import ROOT, find_containing_package, find_module, find_modules, parse_imports, read_imports

TESTS = ROOT / "tests"
HEAVY_MARKERS = ("e2e", "slow", "heavy")
HEAVY_FIXTURES = ("ray_cluster",)


class ImportClosure:
    """Finds the test files whose import alone loads a heavy library.

    Imports inside functions do not count: they run with a test, under the guard.
    """

    def __init__(self) -> None:
        self._paths = find_modules()
        for path in TESTS.rglob("*.py"):  # pytest puts the directories of test files on sys.path
            self._paths.setdefault(path.stem, path)
        self._imports: dict[Path, list[str]] = {}

    def is_heavy(self, path: Path) -> bool:
        """Tells whether importing a test file loads a heavy library, itself or through what it imports."""
        seen: set[Path] = set()
        waiting = [path]
        while waiting:
            file = waiting.pop()
            if file in seen:
                continue
            seen.add(file)
            names = self._read_imports(file)
            if any(map(is_heavy, names)):
                return True
            for name in names:
                waiting.extend(self._find_loaded(name))
        return False

    def _read_imports(self, path: Path) -> list[str]:
        """Returns the names that a file imports when it is imported itself."""
        if path not in self._imports:
            statements = read_imports(path, find_containing_package(path))
            self._imports[path] = [statement.name for statement in statements if not statement.is_deferred]
        return self._imports[path]

    def _find_loaded(self, name: str) -> list[Path]:
        """Returns the files of the project that importing a name runs, those of parent packages included."""
        module = find_module(name, self._paths)
        files = []
        while module:
            if module in self._paths:
                files.append(self._paths[module])
            module = module.rpartition(".")[0]
        return files


@cache
def get_import_closure() -> ImportClosure:
    """Returns the one of this process, which remembers what it has read."""
    return ImportClosure()


def is_heavy_test(item: pytest.Function) -> bool:
    """Tells whether a test loads a heavy library while it runs.

    Its markers say so, its fixtures do, or it imports one in its own body. A test that does so in any other
    way fails under the guard, and needs the marker `heavy`.
    """
    if any(item.get_closest_marker(name) for name in HEAVY_MARKERS):
        return True
    if any(name in item.fixturenames for name in HEAVY_FIXTURES):
        return True
    return _imports_heavy(inspect.unwrap(item.function))


@cache
def _imports_heavy(function: Callable[..., object]) -> bool:
    """Tells whether the body of a function imports a heavy library."""
    words = (*function.__code__.co_names, *function.__code__.co_consts)
    if not any(isinstance(word, str) and is_heavy(word) for word in words):
        return False  # reading the source of every test would take seconds
    source = textwrap.dedent(inspect.getsource(function))
    return any(is_heavy(statement.name) for statement in parse_imports(source))


def guard_session() -> None:
    """Refuses heavy imports in this process and in the Python processes that tests start."""
    refuse_heavy_imports()
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS / "light"), inherited]))
