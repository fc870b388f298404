"""`glassbox shards build`, killed with -9 again and again: nothing half-made, nothing made twice, the same bytes at the end."""

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
from fault_lab import HEARING

from pipelines.storage import hash_file
from service.cli import main

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "synthetic:evidence,train={},validation=96,size=32"
OPTIONS = ("--format", "tfrecord", "--shard-rows", "32")

pytestmark = pytest.mark.e2e


def start(source: str, out: Path, on_own_cluster: bool = False) -> subprocess.Popen[bytes]:
    """Starts a build, on the cluster of the tests or with a Ray of its own."""
    import ray

    words = [sys.executable, "-c", HEARING, "shards", "build", source, str(out), *OPTIONS]
    address = {} if on_own_cluster else {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, env=os.environ | address, start_new_session=True, **pipes)


def contents(out: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in out.iterdir()}


def finished(out: Path) -> dict[str, int]:
    """When each shard that has its marker was written."""
    names = [path.name.removesuffix(".done") for path in out.glob(".building/*/[tv]*.done")]
    return {name: (out / name).stat().st_mtime_ns for name in names}


def kill(build: subprocess.Popen[bytes], out: Path, chance: random.Random) -> None:
    """Kills a build at a random moment: anywhere in its life, or soon after it finished one more shard."""
    before = len(finished(out))
    if chance.random() < 0.3:
        time.sleep(chance.uniform(0.0, 8.0))
    else:
        while build.poll() is None and len(finished(out)) == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.3))
    with suppress(ProcessLookupError):
        (os.killpg if chance.random() < 0.5 else os.kill)(
            build.pid, signal.SIGKILL
        )  # the whole group, or the driver alone
    build.wait()


def check_kills(folder: Path, images: int, kills: int) -> None:
    source, out, chance, kept, killed = SOURCE.format(images), folder / "set", random.Random(3), {}, 0
    assert main(["shards", "build", source, str(folder / "whole"), *OPTIONS]) == 0
    while killed < kills:
        build = start(source, out, on_own_cluster=kills > 1 and chance.random() < 0.5)
        kill(build, out, chance)
        if build.returncode != -signal.SIGKILL:  # it was faster
            assert (build.returncode, contents(out)) == (0, contents(folder / "whole")), build.stderr.read()
            out.rename(folder / f"set-{killed}")
            kept = {}
            continue
        killed += 1
        if (out / "manifest.json").exists():  # committed, but for the cleaning up
            assert (
                contents(folder / "whole").items()
                <= {p.name: hash_file(p) for p in out.iterdir() if p.is_file()}.items()
            )
            continue
        assert not list(out.glob(".tmp-*"))
        now = finished(out)
        assert now.items() >= kept.items()
        kept = now
    last = start(source, out)
    assert (last.wait(), last.stderr.read()) == (0, b"")
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    time.sleep(3)  # what outlived its driver has ended by now
    assert contents(out) == contents(folder / "whole")


def test_a_build_that_is_killed_goes_on(tmp_path: Path, ray_cluster: None) -> None:
    check_kills(tmp_path, images=640, kills=1)


@pytest.mark.slow
def test_a_build_that_is_killed_twenty_times_goes_on(tmp_path: Path, ray_cluster: None) -> None:
    check_kills(tmp_path, images=6400, kills=24)


def test_a_second_builder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    first = start(SOURCE.format(12800), tmp_path / "set")
    while not (tmp_path / "set/.building/build.json").exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    began = time.monotonic()
    assert main(["shards", "build", SOURCE.format(12800), str(tmp_path / "set"), *OPTIONS]) == 2
    assert time.monotonic() - began < 2
    assert "another builder is at work" in capsys.readouterr().err
    first.send_signal(signal.SIGINT)
    code, said = first.wait(60), first.stderr.read()
    assert (code, said) == (130, b"glassbox: interrupted\n")
    assert not (tmp_path / "set/manifest.json").exists()
