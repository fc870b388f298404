"""What can be said about the image without building it; `make image-test` builds and runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from kube_render import K8S, ROOT
from lint_versions import tag

TEXT = re.sub(r"\\\n", " ", (K8S / "image/Dockerfile").read_text())
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
LAST_STAGE = LINES[max(n for n, line in enumerate(LINES) if line.startswith("FROM ")) :]
COMPILERS = ("gcc", "g++", "clang", "build-essential", "python3-dev")


def arguments(instruction: str, lines: list[str] = LINES) -> list[str]:
    return [line.partition(" ")[2].strip() for line in lines if line.startswith(f"{instruction} ")]


def test_any_base_and_both_accelerators_go_in() -> None:
    assert arguments("ARG")[0].startswith("BASE_IMAGE=")
    assert LINES[0].startswith("ARG BASE_IMAGE")  # before the first FROM, which uses it
    assert arguments("FROM") == ["${BASE_IMAGE} AS base", "base AS build", "base"]
    copied = [words.split()[0] for words in arguments("COPY")]
    assert ".lock/${ACCELERATOR}.txt" in copied
    for accelerator in ("cpu", "gpu"):
        assert (ROOT / f".lock/{accelerator}.txt").is_file()


def test_packages_come_from_the_lock_file_with_hashes() -> None:
    installs = [line for line in arguments("RUN") if re.search(r"\bpip .*install", line)]
    assert len(installs) == 2
    packages, own = installs
    for option in ("--no-deps", "--require-hashes", "--no-build-isolation"):
        assert option in packages
    assert own.endswith("--no-deps --no-build-isolation .")


def test_the_last_stage_has_a_user_and_no_compiler() -> None:
    assert arguments("USER", LAST_STAGE) == ["1000:1000"]
    assert any("useradd --uid 1000" in line for line in arguments("RUN", LAST_STAGE))
    assert arguments("COPY", LAST_STAGE) == ["--from=build /opt/glassbox /opt/glassbox"]
    assert arguments("HEALTHCHECK", LAST_STAGE) == [
        "NONE"
    ]  # the manifests' probes know what a container runs
    environment = " ".join(arguments("ENV", LAST_STAGE)).split()
    assert "HOME=/tmp" in environment  # all that a read-only root leaves to write to
    assert any(setting.startswith("PATH=/opt/glassbox/bin:") for setting in environment)
    base = [line for line in LINES if line not in LAST_STAGE][
        : next(n for n, line in enumerate(LINES) if line.endswith("AS build"))
    ]
    assert not [name for name in COMPILERS for line in [*base, *LAST_STAGE] if name in line]
    assert any(re.search(r"install .*\bbash\b", line) for line in base)  # KubeRay starts containers with it


def test_it_says_what_it_is() -> None:
    (labels,) = arguments("LABEL", LAST_STAGE)
    for name in ("title", "description", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_only_what_is_copied_is_sent_to_the_engine() -> None:
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    allowed = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    copied = {
        word for words in arguments("COPY") if not words.startswith("--from") for word in words.split()[:-1]
    }
    assert {word.replace("${ACCELERATOR}", "*") for word in copied} == allowed
    assert "**/__pycache__" in lines


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_make_names_it_as_the_manifests_do(accelerator: str, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    words = ["make", "--dry-run", "image", "ENGINE=buildah", f"EXTRA={accelerator}"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"--tag glassbox:{tag(accelerator)} " in said
    assert f"--build-arg ACCELERATOR={accelerator} " in said
