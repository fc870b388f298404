"""Packages as pip would install them, for tests of code from outside this one."""

from __future__ import annotations

from pathlib import Path


def write_package(site: Path, name: str, modules: dict[str, str], entry_points: str = "") -> None:
    """Writes a package and its metadata to a directory on the import path.

    Args:
        site: Directory on the import path.
        name: Name of the package and of its distribution.
        modules: Code of each module by its name.
        entry_points: Content of `entry_points.txt`.
    """
    package = site / name
    package.mkdir()
    for module, code in {"__init__": "", **modules}.items():
        (package / f"{module}.py").write_text(code)
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)
