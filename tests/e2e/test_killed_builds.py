"""`glassbox shards build` killed with SIGKILL: nothing half-written, nothing built twice, the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fault_lab import GLASSBOX, ROOT, describe_ray

from pipelines.storage import hash_file
from service.cli import main

SOURCE = "synthetic:evidence,train={},validation=96,size=32"
OPTIONS = ("--format", "tfrecord", "--shard-rows", "32")

pytestmark = pytest.mark.e2e


def start_build(source: str, out: Path, on_own_cluster: bool = False) -> subprocess.Popen[bytes]:
    """Starts a build, on the cluster of the tests or with its own Ray."""
    command = [sys.executable, "-c", GLASSBOX, "shards", "build", source, str(out), *OPTIONS]
    address = {} if on_own_cluster else describe_ray()
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | address,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def hash_files(out: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in out.iterdir() if path.is_file()}


def find_finished_shards(out: Path) -> dict[str, int]:
    """Returns the modification times of the shards that have a done-marker."""
    names = [path.name.removesuffix(".done") for path in out.glob(".building/*/[tv]*.done")]
    return {name: (out / name).stat().st_mtime_ns for name in names}


def kill(build: subprocess.Popen[bytes], out: Path, chance: random.Random) -> None:
    """Kills a build at a random moment: at any time, or soon after one more shard is finished."""
    before = len(find_finished_shards(out))
    if chance.random() < 0.3:
        time.sleep(chance.uniform(0.0, 8.0))
    else:
        while build.poll() is None and len(find_finished_shards(out)) == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.3))
    kill_process = os.killpg if chance.random() < 0.5 else os.kill  # the process group, or the driver alone
    with suppress(ProcessLookupError):
        kill_process(build.pid, signal.SIGKILL)
    build.wait()


def wait_for_idle_cluster() -> None:
    """Waits until the tasks of killed drivers have ended, which could still write."""
    import ray

    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        time.sleep(0.1)


def check_kills(folder: Path, images: int, kills: int) -> None:
    """Kills builds of one shard set so often, and checks what each kill leaves and what the last build makes.

    A kill may come after the shard set is complete; then the next build starts a new one.
    """
    source = SOURCE.format(images)
    out = folder / "set"
    chance = random.Random(3)
    finished: dict[str, int] = {}
    killed = 0
    assert main(["shards", "build", source, str(folder / "whole"), *OPTIONS]) == 0
    expected = hash_files(folder / "whole")
    for attempt in range(20 * kills):
        on_own_cluster = kills > 1 and chance.random() < 0.5
        build = start_build(source, out, on_own_cluster)
        kill(build, out, chance)
        killed += build.returncode == -signal.SIGKILL
        if (out / "manifest.json").exists():
            assert build.returncode in (0, -signal.SIGKILL), build.stderr.read()
            assert hash_files(out) == expected
            out.rename(folder / f"set-{attempt}")
            finished = {}
        else:
            assert build.returncode == -signal.SIGKILL, build.stderr.read()
            assert not list(out.glob(".tmp-*"))
            now = find_finished_shards(out)
            assert now.items() >= finished.items()
            finished = now
        if killed >= kills and finished:
            break

    last = start_build(source, out)
    assert (last.wait(), last.stderr.read()) == (0, b"")
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    wait_for_idle_cluster()
    assert {path.name for path in out.iterdir()} == set(expected)
    assert hash_files(out) == expected


def test_a_killed_build_is_continued(tmp_path: Path, ray_cluster: None) -> None:
    check_kills(tmp_path, images=640, kills=1)


@pytest.mark.slow
def test_a_build_killed_24_times_is_continued(tmp_path: Path, ray_cluster: None) -> None:
    check_kills(tmp_path, images=6400, kills=24)


def test_a_second_builder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    source = SOURCE.format(12800)
    first = start_build(source, tmp_path / "set")
    while not (tmp_path / "set/.building/build.json").exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    assert main(["shards", "build", source, str(tmp_path / "set"), *OPTIONS]) == 2
    assert first.poll() is None, "the second builder waited for the first"
    assert "another builder is at work" in capsys.readouterr().err
    first.send_signal(signal.SIGINT)
    code = first.wait()
    assert (code, first.stderr.read()) == (130, b"glassbox: interrupted\n")
    assert not (tmp_path / "set/manifest.json").exists()
