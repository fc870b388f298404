"""The CPUs of a process: affinity, quota of the control group, and what Ray has assigned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines import cpus
from pipelines.cpus import count_process_cpus, read_cpu_quota


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that the affinity of this process is 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


def write_files(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "3200000 100000\n"}, 32),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "9000000 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "damaged"}, 64),
    ],
)
def test_cpus_are_limited_by_the_quota_of_the_container(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert count_process_cpus(tmp_path / "proc", write_files(tmp_path / "cgroup", files)) == expected


def test_the_smallest_quota_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    """As under systemd, where the process sees the control groups of the whole machine."""
    files = {"job.slice/cpu.max": "300000 100000", "job.slice/run.scope/cpu.max": "max 100000"}
    cgroup = write_files(tmp_path / "cgroup", files)
    proc = write_files(tmp_path / "proc", {"self/cgroup": "0::/job.slice/run.scope\n"})
    assert read_cpu_quota(proc, cgroup) == 3
    version_1 = {
        "cpu,cpuacct/user/cpu.cfs_quota_us": "500000",
        "cpu,cpuacct/user/cpu.cfs_period_us": "100000",
    }
    cgroup = write_files(tmp_path / "version_1", version_1)
    proc = write_files(tmp_path / "proc", {"self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/user\n"})
    assert read_cpu_quota(proc, cgroup) == 5
    assert read_cpu_quota(tmp_path / "none", cgroup) is None


def test_cpus_are_limited_by_what_ray_has_assigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = tmp_path / "nowhere"
    for assigned, expected in ((4.0, 4), (0.5, 1), (100.0, 64), (None, 64)):
        resources = {"GPU": 1.0} if assigned is None else {"CPU": assigned}
        monkeypatch.setattr(cpus, "find_assigned_resources", lambda value=resources: value)
        assert count_process_cpus(nowhere, nowhere) == expected
