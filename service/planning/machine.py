"""Describes this machine, and the machines of the table, as the site of a training."""

from __future__ import annotations

import subprocess

from pipelines.cpus import count_process_cpus
from pipelines.input.memory import measure_available_gpu_memory, measure_available_ram
from pipelines.remote.folder import find_cache_folder, read_budget
from service.planning.rates import ACCELERATORS, find_accelerator, find_storage
from service.planning.workload import Site

DEFAULT_GPU = "h100"


def list_local_gpus() -> list[str]:
    """Lists the names of the GPUs that the driver shows, such as `NVIDIA H100 80GB HBM3`."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return output.splitlines()


def match_accelerator(name: str) -> str | None:
    """Finds the entry of the table for the name that a driver gives a GPU; None if there is none.

    Args:
        name: Such as `NVIDIA A100-SXM4-80GB`.
    """
    words = name.upper().replace("-", " ").split()
    if "A100" in words and "40GB" in words:
        return "a100-40gb"
    return next((key for key in ACCELERATORS if key.upper() in words), None)


def describe_this_machine(hosts: int, storage: str) -> Site:
    """Describes hosts that are all like this machine.

    Args:
        hosts: Number of hosts.
        storage: Where the shards are, see `rates.STORAGE`.

    Raises:
        ConfigError: The storage is not known, or the cache folder is not on a disk.
    """
    gpus = list_local_gpus()
    folder = find_cache_folder()
    while not folder.exists():
        folder = folder.parent
    return Site(
        hosts=hosts,
        gpus=len(gpus),
        accelerator=match_accelerator(gpus[0]) if gpus else None,
        cores=count_process_cpus(),
        ram_bytes=measure_available_ram(),
        gpu_memory_bytes=measure_available_gpu_memory() if gpus else 0,
        disk_bytes=read_budget(None, folder, 0).bytes if find_storage(storage).is_remote else 0,
        storage=storage,
        is_this_machine=True,
    )


def describe_machines(gpu: str, gpus: int, hosts: int, storage: str) -> Site:
    """Describes hosts with GPUs of the table, each with the cores, RAM and disk that come with its GPUs.

    Args:
        gpu: Name of the GPU in `rates.ACCELERATORS`.
        gpus: GPUs of each host.
        hosts: Number of hosts.
        storage: Where the shards are, see `rates.STORAGE`.

    Raises:
        ConfigError: The GPU or the storage is not known.
    """
    chip = find_accelerator(gpu)
    find_storage(storage)
    return Site(
        hosts=hosts,
        gpus=gpus,
        accelerator=gpu,
        cores=gpus * chip.cores,
        ram_bytes=int(gpus * chip.ram_bytes),
        gpu_memory_bytes=int(chip.memory_bytes),
        disk_bytes=int(gpus * chip.disk_bytes),
        storage=storage,
    )
