"""Counts the CPUs that this process may use, which bounds its threads and child processes."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def count_process_cpus(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Returns the number of CPUs that this process may use, at least 1.

    That is the smallest of three limits: the CPUs that its affinity allows, the quota of its container or
    control group, rounded up, and the CPUs that Ray has assigned to its task or worker, if it is one.

    Args:
        proc: Mount point of procfs.
        cgroup: Mount point of the control groups.
    """
    assigned = (find_assigned_resources() or {}).get("CPU") or None
    limits = [float(_count_affinity()), read_cpu_quota(proc, cgroup), assigned]
    return max(math.ceil(min(limit for limit in limits if limit is not None)), 1)


def read_cpu_quota(proc: Path = PROC, cgroup: Path = CGROUP) -> float | None:
    """Reads the CPU quota of this process, in CPUs; None if it has none.

    The quotas of all control groups from that of the process up to the root hold at the same time, so the
    smallest one counts. Reads `cpu.max` (cgroup v2), and `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1).

    Args:
        proc: Mount point of procfs.
        cgroup: Mount point of the control groups.
    """
    quotas = []
    for folder in _list_cpu_groups(proc, cgroup):
        for read in (_read_quota_v2, _read_quota_v1):
            with suppress(OSError, ValueError):  # no such file, or "max": no quota
                quota, period = read(folder)
                if quota > 0 and period > 0:  # -1 stands for no quota in v1
                    quotas.append(quota / period)
    return min(quotas, default=None)


def find_assigned_resources() -> dict[str, float] | None:
    """Returns what Ray has assigned to this task or worker, such as `CPU` and `GPU`; None outside of one.

    Does not import Ray, which a process of Ray has imported already.
    """
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "get_runtime_context") or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:  # the driver
        return None
    return dict(context.get_assigned_resources())


def _count_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _list_cpu_groups(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Yields the folders of the control groups that may limit the CPUs of this process."""
    yield from (cgroup, cgroup / "cpu", cgroup / "cpu,cpuacct")
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:  # "0::/a/b" in v2, "4:cpu,cpuacct:/a/b" in v1
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = (cgroup / "cpu", cgroup / controllers) if controllers else (cgroup, cgroup / "unified")
        for mount in mounts:
            folder = mount
            for name in filter(None, path.split("/")):
                folder = folder / name
                yield folder


def _read_quota_v2(folder: Path) -> tuple[int, int]:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota), int(period)


def _read_quota_v1(folder: Path) -> tuple[int, int]:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    return quota, int((folder / "cpu.cfs_period_us").read_text())
