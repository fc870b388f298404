"""Devices of a process: logical CPUs, hidden GPUs, the driver of GPUs and its compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from service.devices import (
    LOGICAL_DEVICES,
    check_driver,
    is_cuda_cache_empty,
    needs_ptx,
    read_driver_version,
    read_logical_devices,
)

ROOT = Path(__file__).resolve().parents[2]
BUILT_FOR = ("sm_60", "sm_70", "sm_80", "sm_89", "compute_90")  # TensorFlow 2.21
PROPRIETARY = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U16-I1)
GCC version:  gcc version 12.3.0
"""


def test_no_number_of_logical_devices_is_no_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGICAL_DEVICES, raising=False)
    assert read_logical_devices() is None
    monkeypatch.setenv(LOGICAL_DEVICES, " ")
    assert read_logical_devices() is None


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²"])
def test_a_bad_number_of_logical_devices_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(LOGICAL_DEVICES, value)
    with pytest.raises(ConfigError, match=f"{LOGICAL_DEVICES}={value}"):
        read_logical_devices()


@pytest.fixture
def no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))


def write_driver_file(folder: Path, text: str) -> Path:
    path = folder / "version"
    path.write_text(text)
    return path


@pytest.mark.usefixtures("no_nvidia_smi")
@pytest.mark.parametrize("text", [PROPRIETARY, OPEN])
@pytest.mark.parametrize("version", ["535.104.05", "560.35.03", "575.51"])
def test_the_driver_describes_itself(tmp_path: Path, text: str, version: str) -> None:
    assert read_driver_version(write_driver_file(tmp_path, text.format(version))) == version


def test_nvidia_smi_is_asked_where_the_driver_has_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '550.54.15\\n550.54.15\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert read_driver_version(tmp_path / "nothing") == "550.54.15"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert read_driver_version(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([], False),
        ([(6, 1)], False),
        ([(7, 5)], False),
        ([(8, 0)], False),
        ([(8, 6)], False),
        ([(8, 9)], False),
        ([(9, 0)], True),
        ([(12, 0)], True),
        ([(8, 0), (9, 0)], True),
        ([(5, 0)], True),
    ],
)
def test_gpus_without_binaries_run_compiled_ptx(capabilities: list[tuple[int, int]], expected: bool) -> None:
    assert needs_ptx(capabilities, BUILT_FOR) == expected
    assert not needs_ptx(capabilities, ())  # a build without a list, such as that for CPUs


@pytest.mark.usefixtures("no_nvidia_smi")
@pytest.mark.parametrize(
    ("version", "is_compiling", "minimum"),
    [
        ("535.104.05", True, 555),
        ("550.54.15", True, 555),
        ("555.42.02", True, None),
        ("580.65.06", True, None),
        ("535.104.05", False, None),
        ("470.42.01", False, 525),
        ("470.42.01", True, 555),
    ],
)
def test_an_old_driver_is_refused(
    tmp_path: Path, version: str, is_compiling: bool, minimum: int | None
) -> None:
    file = write_driver_file(tmp_path, PROPRIETARY.format(version))
    if minimum is None:
        check_driver(is_compiling, file, lambda: 12020)
        return
    with pytest.raises(ConfigError, match=rf"version {minimum} or newer.*driver={version}"):
        check_driver(is_compiling, file, lambda: 12020)
    with pytest.raises(ConfigError):
        check_driver(is_compiling, file, lambda: None)
    check_driver(is_compiling, file, lambda: 12050)  # with NVIDIA's forward compatibility package


@pytest.mark.usefixtures("no_nvidia_smi")
@pytest.mark.parametrize("text", ["", "NVRM version: unknown\n", "\x00"])
def test_a_driver_that_cannot_be_read_is_not_checked(tmp_path: Path, text: str) -> None:
    check_driver(True, write_driver_file(tmp_path, text), lambda: None)
    check_driver(True, tmp_path / "nothing", lambda: None)


def test_an_empty_cache_of_compiled_kernels_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("named", ".nv/ComputeCache"):
        monkeypatch.delenv("CUDA_CACHE_PATH", raising=False)
        if name == "named":
            monkeypatch.setenv("CUDA_CACHE_PATH", str(tmp_path / name))
        assert is_cuda_cache_empty()
        (tmp_path / name).mkdir(parents=True)
        assert is_cuda_cache_empty()
        (tmp_path / name / "index").touch()
        assert not is_cuda_cache_empty()


def run_python(*arguments: str, **environment: str) -> list[str]:
    """Runs Python with this checkout, and returns the lines that it printed."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths} | environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


DESCRIBE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from service.devices import configure_devices, enable_determinism
configure_devices(deterministic=True)
assert not os.environ.get("XLA_FLAGS", "").count("deterministic")  # a process without GPUs has no need of it
enable_determinism()
enable_determinism()
import tensorflow as tf
print(tf.config.threading.get_intra_op_parallelism_threads())
print(tf.config.threading.get_inter_op_parallelism_threads())
print(len(tf.config.list_logical_devices("CPU")))
print(os.environ["XLA_FLAGS"])
print(tf.config.experimental.tensor_float_32_execution_enabled())
os.environ["GLASSBOX_LOGICAL_DEVICES"] = "2"
try:
    configure_devices()
except Exception as error:
    print(error)
"""


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be kept to one core here")
def test_a_process_has_the_devices_and_threads_that_it_may_use() -> None:
    """On a single thread the step runs while the next batch is requested, and counts as waiting for input."""
    flags = "--xla_cpu_max_isa=AVX2"
    intra, inter, devices, xla_flags, tf32, error = run_python(
        "-c", DESCRIBE, GLASSBOX_LOGICAL_DEVICES="3", XLA_FLAGS=flags
    )
    assert (intra, inter, devices) == ("1", "2", "3")
    assert xla_flags == f"{flags} --xla_gpu_deterministic_ops=true"
    assert tf32 == "False"
    assert "TensorFlow has not computed yet. Received: GLASSBOX_LOGICAL_DEVICES=2" in error


@pytest.mark.heavy
def test_every_entry_lets_the_memory_of_gpus_grow_first(tmp_path: Path) -> None:
    from report_samples import brightness_model, dim_and_bright, make_run, metrics

    from service.config import load_config
    from service.runs import Run

    shards = dim_and_bright(tmp_path / "shards")
    make_run(tmp_path / "runs" / "one", shards, brightness_model(), metrics(1))
    Run(tmp_path / "runs" / "new").create(load_config("demo", shards).model_dump(mode="json"))
    (tmp_path / "own.py").write_text("def build(task):\n    raise RuntimeError\n")
    lines = run_python(str(ROOT / "tests/service/devices_script.py"), str(tmp_path))
    outcomes = dict(line.split(": ", 1) for line in lines)
    expected = "/physical_device:GPU:0 True before TensorFlow started"
    assert {name: outcome for name, outcome in outcomes.items() if outcome != expected} == {}
    assert len(outcomes) == 16


def test_the_memory_of_gpus_is_configured_in_one_place() -> None:
    files = [path for name in ("pipelines", "service") for path in (ROOT / name).rglob("*.py")]
    assert [path.name for path in files if "set_memory_growth" in path.read_text()] == ["devices.py"]
