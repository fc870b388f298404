"""The libraries that take seconds to import, and a guard that makes importing one of them an error.

`pytest --light` runs the tests that need none of them (see `light_tier.py`) under this guard.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HEAVY = ("tensorflow", "keras", "tf_keras", "tf_keras_vis", "ray", "nvidia.dali")


class HeavyImportError(Exception):
    """A test of the light tier imports a heavy library. Not an ImportError, which optional imports catch."""


class _RefusingLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        raise HeavyImportError(
            f"Expected a test without heavy imports. Received: import={module.__name__}. "
            "Fix: mark the test with pytest.mark.heavy, or import it where it is used."
        )


class _Guard(MetaPathFinder):
    """Finds heavy libraries, so that code can ask whether they are installed, but refuses to load them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in HEAVY:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None:
            spec.loader = _RefusingLoader()
        return spec


def refuse_heavy_imports() -> None:
    """Makes every later import of a heavy library in this process raise HeavyImportError."""
    sys.meta_path.insert(0, _Guard())


def is_heavy(name: str) -> bool:
    """Tells whether an imported name is a heavy library or inside one."""
    return any(name == library or name.startswith(f"{library}.") for library in HEAVY)
