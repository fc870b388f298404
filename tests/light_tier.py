"""The light tier of the tests, `pytest --light`: those that load neither TensorFlow, Keras, Ray nor DALI."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from heavy_imports import is_heavy, refuse_heavy_imports
from import_graph import ROOT, Module, build_graph, find_module, load_modules, parse_imports, read_imports

TESTS = ROOT / "tests"
HEAVY_MARKERS = ("e2e", "slow", "heavy")
HEAVY_FIXTURES = ("ray_cluster",)


class ImportClosure:
    """Finds the test files whose import alone loads a heavy library.

    Imports inside functions do not count: they run with a test, under the guard.
    """

    def __init__(self) -> None:
        modules = load_modules()
        for path in TESTS.rglob("*.py"):  # pytest puts the directories of test files on sys.path
            modules.setdefault(path.stem, Module(path.stem, path, read_imports(path)))
        self._modules: Mapping[str, Module] = modules
        self._graph = build_graph(modules, with_deferred=False)

    def is_heavy(self, path: Path) -> bool:
        """Tells whether importing a test file loads a heavy library, itself or through what it imports."""
        pending = [statement.name for statement in read_imports(path) if not statement.is_deferred]
        if any(map(is_heavy, pending)):
            return True
        return any(self._imports_heavy(name) for name in self._find_loaded(pending))

    def _find_loaded(self, names: Iterable[str]) -> set[str]:
        """Returns the modules of the project that importing some names loads, parent packages included."""
        loaded: set[str] = set()
        waiting = [found for name in names if (found := find_module(name, self._modules))]
        while waiting:
            name = waiting.pop()
            if name in loaded:
                continue
            loaded.add(name)
            waiting.extend(self._graph[name])
            parent = name.rpartition(".")[0]
            if parent in self._modules:
                waiting.append(parent)
        return loaded

    def _imports_heavy(self, name: str) -> bool:
        statements = self._modules[name].imports
        return any(is_heavy(statement.name) for statement in statements if not statement.is_deferred)


def is_heavy_test(item: pytest.Function) -> bool:
    """Tells whether a test loads a heavy library while it runs.

    Its markers say so, its fixtures do, or it imports one in its own body. A test that does so in any other
    way fails under the guard, and needs the marker `heavy`.
    """
    if any(item.get_closest_marker(name) for name in HEAVY_MARKERS):
        return True
    if any(name in item.fixturenames for name in HEAVY_FIXTURES):
        return True
    source = textwrap.dedent(inspect.getsource(item.function))
    return any(is_heavy(statement.name) for statement in parse_imports(source))


def guard_session() -> None:
    """Refuses heavy imports in this process and in the Python processes that tests start."""
    refuse_heavy_imports()
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS / "light"), inherited]))
