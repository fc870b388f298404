"""The lines of the design that code can check: which way imports run, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path.relative_to(ROOT) for room in ("pipelines", "service") for path in (ROOT / room).rglob("*.py")
)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names of the modules a file imports."""
    tree = ast.parse((ROOT / path).read_text())
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def touches(names: set[str], package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_data_flows_one_way(path: Path) -> None:
    names = imports(path)
    room = ".".join(path.with_suffix("").parts)
    if room.startswith("pipelines"):
        assert not touches(names, "service")
    if room.startswith("pipelines.sources"):
        assert not touches(names, "pipelines.shards")
        assert not touches(names, "pipelines.input")
    if room.startswith("pipelines.shards"):
        assert not touches(names, "pipelines.input")
    if room.startswith("service.report"):
        assert not touches(names, "service.training")
        assert not touches(names, "pipelines.sources")
    if room.startswith("service.training"):
        assert not touches(names, "service.report")
        assert not touches(names, "pipelines.sources")


@pytest.mark.parametrize(
    "module",
    [
        "pipelines.spec",
        "pipelines.shards.plan",
        "pipelines.input.order",
        "pipelines.augment.draw",
        "service.config",
        "service.cli",
    ],
)
def test_pure_modules_stay_light(module: str) -> None:
    heavy = "{'tensorflow', 'keras', 'ray', 'nvidia'}"
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_help_answers_within_a_second() -> None:
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", "from service.cli import main; main(['--help'])"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "usage: glassbox" in result.stdout
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = (ROOT / path).read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documented = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
            first = node.body[1].lineno if documented and len(node.body) > 1 else node.lineno
            assert node.end_lineno is not None
            assert node.end_lineno - first < 40, f"{path}:{node.lineno} {node.name}"
