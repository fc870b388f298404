"""The wheel: what it contains, and that it works without the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = ("pyproject.toml", "README.md", "pipelines", "service")


def test_packages_are_the_folders_of_the_tree() -> None:
    """`service/api` is shipped once, as `glassbox`."""
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("pipelines", "service")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders - {"service.api"} | {"glassbox"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip from a copy, so that nothing left over in the checkout gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder / "dist"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder)], check=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.e2e
def test_the_wheel_has_three_top_level_packages_and_all_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"glassbox", "pipelines", "service"}
    assert not [name for name in names if name.startswith("service/api/")]
    assert {"glassbox/tour.ipynb", "glassbox/py.typed", "service/presets/demo.yaml"} <= names
    assert {f"service/report/html/{path.name}" for path in (ROOT / "service/report/html").iterdir()} <= names


@pytest.mark.e2e
def test_the_installed_wheel_is_imported_instead_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    options = ("--no-deps", "--quiet", "--no-compile", "--target", str(target))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    code = (
        "import glassbox, service.cli, pipelines;"
        "print(glassbox.__file__); print(service.cli.__file__); print(pipelines.__file__);"
        "print(glassbox.load_config('demo', 'nowhere').model);"
        "service.cli.main(['--version'])"
    )
    arguments = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(target), "PATH": ""}
    result = subprocess.run(
        arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    *files, model, version = result.stdout.split("\n", 4)
    assert all(file.startswith(str(target)) for file in files), result
    assert model == "small_cnn"
    assert version.split() == ["glassbox", PROJECT["project"]["version"]]
