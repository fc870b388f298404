"""The bill of materials of the image lists every locked package, with the hashes that pip verifies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from kube_render import K8S, ROOT

DOCKERFILE = re.sub(r"\\\n", " ", (K8S / "image/Dockerfile").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
TOOL = "cyclonedx-py"
LOCKED = re.compile(r"^([\w.-]+)(?:\[[\w,-]+])?==([^\s;]+)(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")

Packages = dict[tuple[str, str], set[str]]


def read_options() -> list[str]:
    """Returns the options with which the image makes its bill of materials."""
    (line,) = (line for line in DOCKERFILE.splitlines() if f"bin/{TOOL}" in line)
    words = line.partition(TOOL)[2].split()
    assert words[-3:] == ["--output-file", "sbom.json", "requirements.txt"]
    return words[:-3]


def find_tool() -> str:
    directory = Path(sys.prefix) / "sbom/bin"
    path = shutil.which(TOOL, path=f"{directory}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip("no cyclonedx-py: `make test` installs it")
    return path


def parse_lock(text: str) -> Packages:
    """Returns names and versions of a lock file, each with its hashes."""
    return {(match[1], match[2]): set(HASH.findall(match[3])) for match in LOCKED.finditer(text)}


def parse_sbom(document: dict[str, Any]) -> Packages:
    """Returns names and versions of a bill of materials, each with its hashes."""
    packages: Packages = {}
    for component in document["components"]:
        files = component.get("externalReferences") or []
        hashes = {entry["content"] for file in files for entry in file.get("hashes") or []}
        packages[(component["name"], component["version"])] = hashes
    return packages


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_every_locked_package_is_listed(accelerator: str, tmp_path: Path) -> None:
    lock = ROOT / f".lock/{accelerator}.txt"
    out = tmp_path / "sbom.json"
    # Validation takes longer than the rest; the build validates.
    command = [find_tool(), *read_options(), "--no-validate", "--output-file", str(out), str(lock)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    document = json.loads(out.read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["name"] == PROJECT
    locked = parse_lock(lock.read_text())
    assert len(locked) == len(re.findall(r"^[\w.-]+.*==", lock.read_text(), re.MULTILINE))
    assert parse_sbom(document) == locked


def test_tool_is_locked_and_no_part_of_the_runtime() -> None:
    tool = {name for name, _ in parse_lock((ROOT / ".lock/sbom.txt").read_text())}
    assert {"cyclonedx-bom", "cyclonedx-python-lib"} <= tool
    for accelerator in ("cpu", "gpu"):
        runtime = {name for name, _ in parse_lock((ROOT / f".lock/{accelerator}.txt").read_text())}
        assert not {name for name in runtime if name.startswith("cyclonedx")}
    build, _, last = DOCKERFILE.rpartition("\nFROM ")
    assert "/opt/sbom/bin/python install --quiet --no-deps --require-hashes -r sbom.txt" in build
    assert "/opt/sbom" not in last
    path = "/usr/share/doc/glassbox/sbom.json"
    assert f"COPY --from=build /source/sbom.json {path}\n" in last
    assert f"`{path}`" in (K8S / "README.md").read_text()


def test_make_uses_the_options_of_the_image() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    result = subprocess.run(
        ["make", "--dry-run", "sbom"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"{TOOL} {' '.join(read_options())} --output-file build/sbom-" in result.stdout
