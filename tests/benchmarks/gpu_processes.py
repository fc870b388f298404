"""Starts `gpu_run.py` on chosen devices, for the checks of several replicas and of determinism."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu_context import CheckContext, OutOfTimeError, list_gpu_names

SCRIPT = Path(__file__).with_name("gpu_run.py")
MAX_ERROR = 300  # characters of the last line of a failed process
LOGICAL_DEVICES = "GLASSBOX_LOGICAL_DEVICES"


def run_processes(
    context: CheckContext, groups: list[list[int]], settings: Mapping[str, Any], log: str
) -> list[dict[str, Any]]:
    """Runs a process for each group of devices, which train together.

    Args:
        context: Context of the check.
        groups: Indices of the devices of each process.
        settings: Settings of `gpu_run.py`, without rank and addresses.
        log: Name of the file in the scratch directory that receives what the processes print.

    Returns:
        What each process reports.

    Raises:
        OutOfTimeError: The time of the part is over.
        RuntimeError: A process failed.
    """
    addresses = [f"127.0.0.1:{_find_free_port()}" for _ in groups]
    path = Path(context.scratch, log)
    processes = []
    try:
        for rank, devices in enumerate(groups):
            own = {**settings, "rank": rank, "addresses": addresses}
            processes.append(start_process(context, devices, own, path))
        outputs = [_wait(process, context) for process in processes]
    except OutOfTimeError:
        sys.stderr.write(path.read_text(errors="replace"))
        raise
    finally:
        for process in processes:
            kill_process(process)
    for process in processes:
        if process.returncode:
            text = path.read_text(errors="replace")
            sys.stderr.write(text)
            lines = text.strip().splitlines() or ["no output"]
            raise RuntimeError(f"exit {process.returncode}: {lines[-1][:MAX_ERROR]}")
    return [json.loads(output) for output in outputs]


def start_process(
    context: CheckContext, devices: list[int], settings: Mapping[str, Any], log: Path
) -> subprocess.Popen[str]:
    """Starts `gpu_run.py` with some devices visible, in the process group of this part."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "NCCL_DEBUG": "INFO"}
    environment |= select_devices(context, devices)
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(settings)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def select_devices(context: CheckContext, devices: list[int]) -> dict[str, str]:
    """Returns the environment variables that make some devices visible: GPUs, or else logical CPUs."""
    if context.has_gpu:
        names = list_gpu_names(context.devices)
        return {"CUDA_VISIBLE_DEVICES": ",".join(names[device] for device in devices)}
    return {LOGICAL_DEVICES: str(len(devices))}


def kill_process(process: subprocess.Popen[str]) -> None:
    """Kills a process if it runs."""
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], context: CheckContext) -> bool:
    """Waits for a condition; returns False if the process ends first.

    Raises:
        OutOfTimeError: The time of the part is over.
    """
    while not condition():
        if process.poll() is not None:
            return condition()
        if context.remaining_seconds <= 0:
            raise OutOfTimeError
        time.sleep(0.05)
    return True


def _wait(process: subprocess.Popen[str], context: CheckContext) -> str:
    try:
        return process.communicate(timeout=max(context.remaining_seconds, 0.1))[0]
    except subprocess.TimeoutExpired:
        raise OutOfTimeError from None


def _find_free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
