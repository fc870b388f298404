"""Every operation of training, evaluation and prediction has a kernel for GPUs: checked without a GPU.

TensorFlow places an operation without such a kernel on the CPU, silently, and copies its data to the host and
back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cuda_build import ROOT, UnavailableError, provide_cuda_build, read_requirement

SCRIPT = Path(__file__).with_name("kernel_script.py")
MIN_OPERATIONS = 150  # of the smallest scenario; far fewer are recorded if the recording itself fails
# What the script plants, to show that it would be found: eagerly, in a branch of a function, and in XLA.
PLANTED = ("Split(T=uint8) in ", "Split(T=int64) in ", "Split(T=int8) in cond", "DecodeJpeg() in XLA in ")


@pytest.fixture(scope="module")
def search_path() -> str:
    """Returns a `PYTHONPATH` with TensorFlow's build for CUDA; skips the tests where it is not available."""
    try:
        folders = provide_cuda_build()
    except UnavailableError as error:
        pytest.skip(str(error))
    return os.pathsep.join(map(str, [*folders, ROOT, ROOT / "tests"]))


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_operation_has_a_kernel_for_gpus(search_path: str, tmp_path: Path, replicas: int) -> None:
    report = run_script(search_path, replicas, tmp_path)
    planted = report.pop("planted")["missing"]
    assert all(any(line.startswith(start) for line in planted) for start in PLANTED), planted
    assert {name: entry["missing"] for name, entry in report.items() if entry["missing"]} == {}
    assert min(entry["operations"] for entry in report.values()) > MIN_OPERATIONS


def run_script(search_path: str, replicas: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), str(replicas), str(folder)]
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": search_path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)


def test_requirement_has_the_version_and_all_hashes() -> None:
    lock = "a==1 \\\n    --hash=sha256:00\n    # via b\n"
    lock += "b==2 ; x \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\nc==3\n"
    assert read_requirement(lock, "a") == "a==1 \\\n    --hash=sha256:00"
    assert read_requirement(lock, "b") == "b==2 ; x \\\n    --hash=sha256:11 \\\n    --hash=sha256:22"
