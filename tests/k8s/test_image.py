"""Checks the Dockerfile without building it; `make image-test` builds and runs the image."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from kube_render import K8S, ROOT
from lint_versions import image_tag

TEXT = re.sub(r"\\\n", " ", (K8S / "image/Dockerfile").read_text())
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
STAGES = [index for index, line in enumerate(LINES) if line.startswith("FROM ")]
BASE_STAGE = LINES[: STAGES[1]]
LAST_STAGE = LINES[STAGES[-1] :]
COMPILERS = ("gcc", "g++", "clang", "build-essential", "python3-dev")


def find_arguments(instruction: str, lines: list[str] = LINES) -> list[str]:
    return [line.partition(" ")[2].strip() for line in lines if line.startswith(f"{instruction} ")]


def read_list(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_base_image_and_accelerator_are_arguments() -> None:
    assert find_arguments("ARG")[0].startswith("BASE_IMAGE=")
    assert LINES[0].startswith("ARG BASE_IMAGE")  # before the first FROM, which uses it
    assert find_arguments("FROM") == ["${BASE_IMAGE} AS base", "base AS build", "base"]
    sources = [words.split()[0] for words in find_arguments("COPY")]
    assert ".lock/${ACCELERATOR}.txt" in sources
    for accelerator in ("cpu", "gpu"):
        assert (ROOT / f".lock/{accelerator}.txt").is_file()


def test_packages_are_installed_from_the_lock_file_with_hashes() -> None:
    installs = [line for line in find_arguments("RUN") if re.search(r"\bpip .*install", line)]
    packages, project, bill_of_materials = installs
    assert "--require-hashes" in bill_of_materials
    for option in ("--no-deps", "--require-hashes", "--no-build-isolation"):
        assert option in packages
    assert project.endswith("--no-deps --no-build-isolation .")


def test_last_stage_has_a_user_and_no_compiler() -> None:
    assert find_arguments("USER", LAST_STAGE) == ["1000:1000"]
    assert any("useradd --uid 1000" in line for line in find_arguments("RUN", LAST_STAGE))
    assert find_arguments("COPY", LAST_STAGE) == [
        "--from=build /opt/glassbox /opt/glassbox",
        "--from=build /source/sbom.json /usr/share/doc/glassbox/sbom.json",
    ]
    # The manifests define the probes, since they depend on what a container runs.
    assert find_arguments("HEALTHCHECK", LAST_STAGE) == ["NONE"]
    environment = " ".join(find_arguments("ENV", LAST_STAGE)).split()
    assert "HOME=/tmp" in environment  # the only writable directory with a read-only root filesystem
    assert any(setting.startswith("PATH=/opt/glassbox/bin:") for setting in environment)
    shipped = [*BASE_STAGE, *LAST_STAGE]
    assert not [name for name in COMPILERS for line in shipped if name in line]
    # A login shell resets PATH.
    (profile,) = (line for line in find_arguments("RUN", LAST_STAGE) if "/etc/profile.d/" in line)
    assert profile == "echo 'export PATH=/opt/glassbox/bin:$PATH' > /etc/profile.d/glassbox.sh"
    # KubeRay starts containers with bash.
    assert any(re.search(r"install .*\bbash\b", line) for line in BASE_STAGE)


def test_gpu_image_can_decode_jpeg_in_hardware_and_use_infiniband() -> None:
    environment = " ".join(find_arguments("ENV", LAST_STAGE)).split()
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in environment
    assert f"CUDA_CACHE_MAXSIZE={4 * 2**30}" in environment
    assert "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1" in environment  # tasks without a GPU see none
    (install,) = (line for line in find_arguments("RUN", LAST_STAGE) if "apt-get install" in line)
    assert install.startswith('if [ "${ACCELERATOR}" = gpu ]; then')
    assert {"libibverbs1", "ibverbs-providers"} <= set(install.split())
    readme = (K8S / "README.md").read_text()
    described = {setting.partition("=")[0] for setting in environment}
    assert [name for name in sorted(described) if f"`{name}" not in readme] == []


def test_image_has_the_standard_labels() -> None:
    (labels,) = find_arguments("LABEL", LAST_STAGE)
    for name in ("title", "description", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_build_context_contains_only_what_is_copied() -> None:
    lines = read_list(ROOT / ".dockerignore")
    assert lines[0] == "*"
    included = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    copies = [words.split()[:-1] for words in find_arguments("COPY") if not words.startswith("--from")]
    sources = {source.replace("${ACCELERATOR}", "*") for words in copies for source in words}
    assert {source for source in sources if not any(fnmatch(source, name) for name in included)} == set()
    assert {name for name in included if not any(fnmatch(source, name) for source in sources)} == set()
    assert "**/__pycache__" in lines


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_make_tags_the_image_as_the_manifests_do(accelerator: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    command = ["make", "--dry-run", "image", "ENGINE=buildah", f"EXTRA={accelerator}"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"--tag glassbox:{image_tag(accelerator)} " in output
    assert f"--build-arg ACCELERATOR={accelerator} " in output
