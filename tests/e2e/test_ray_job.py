"""`ray job submit`, as the README shows it, against a cluster of the test's own with a token."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from service.runs import Run

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_SECONDS = 90
T = TypeVar("T")
BOUNDS = {  # of every gauge, for a run that goes well
    "images_per_second": (1, 1e6),
    "input_wait": (0, 1),
    "step_seconds": (1e-5, 30),
    "loss": (1e-6, 5),
    "checkpoint_age_seconds": (0, 600),
    "restarts": (0, 0),
    "epoch": (1, 100_000),
}


def free_port() -> int:
    """A free port outside the range that Ray's workers take (10002 to 19999)."""
    while True:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            if (port := server.getsockname()[1]) > 20000:
                return int(port)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a fresh cluster."""
    home = tmp_path_factory.mktemp("h")
    port, metrics = free_port(), free_port()
    client = os.environ | {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    client.pop("RAY_ADDRESS", None)
    command = [
        "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--port={free_port()}",
        f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",  # the default is one port for all clusters of a host
        f"--metrics-export-port={metrics}",
        f"--temp-dir={home}/r",
    ]
    with (home / "head.log").open("w") as log:
        head = subprocess.Popen([str(BIN / command[0]), *command[1:]], env=client, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, client["RAY_AUTH_TOKEN"], home / "head.log")
        yield client | {"RAY_API_SERVER_ADDRESS": address, "METRICS": f"http://127.0.0.1:{metrics}/metrics"}
    finally:
        head.terminate()
        head.wait(timeout=60)


def wait_for(address: str, token: str, log: Path) -> None:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"})
    for _ in range(START_SECONDS):
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    pytest.fail(f"no dashboard after {START_SECONDS} s: {log.read_text()[-2000:]}")


def ray(client: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ray"), *map(str, words)],
        env=client,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def submit(
    client: dict[str, str], *words: str | Path, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return ray(
        client, "job", "submit", *options, "--working-dir", ".", "--", "python", "service/train.py", *words
    )


def until(found: Callable[[], T | None], seconds: int = 180) -> T:
    """What is found in the end."""
    for _ in range(2 * seconds):
        if (value := found()) is not None:
            return value
        time.sleep(0.5)
    pytest.fail(f"nothing after {seconds} s")


def gauges(url: str) -> dict[str, float]:
    """What Prometheus would read."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_glassbox_")]
    return {
        line.partition("{")[0].removeprefix("ray_glassbox_"): float(line.rpartition(" ")[2]) for line in lines
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("job") / "shards"
    source = "synthetic:evidence,train=40,validation=16,size=64"
    subprocess.run(
        [str(BIN / "glassbox"), "shards", "build", source, str(out)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return out


def test_job_trains_and_its_exit_is_the_runs(cluster: dict[str, str], shards: Path, tmp_path: Path) -> None:
    result = submit(cluster, "--preset", "demo", "--data", shards, "--out", tmp_path / "run", "epochs=1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "epoch 1/1" in result.stdout
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert (tmp_path / "run" / "model.keras").is_file()


def test_a_job_is_watched_and_stopped_and_goes_on(
    cluster: dict[str, str], shards: Path, tmp_path: Path
) -> None:
    out, job = tmp_path / "run", f"job-{tmp_path.name}"
    run = Run(out)
    words = ["--preset", "demo", "--data", shards, "--out", out, "--workers", "2", "epochs=100000"]
    assert submit(cluster, *words, options=["--no-wait", f"--submission-id={job}"]).returncode == 0
    until(lambda: len(run.metrics()) >= 2 or None)
    told = until(lambda: found if BOUNDS.keys() <= (found := gauges(cluster["METRICS"])).keys() else None)
    assert all(least <= told[name] <= most for name, (least, most) in BOUNDS.items()), told
    assert "epoch 1/100000" in ray(cluster, "job", "logs", job).stdout
    assert ray(cluster, "job", "stop", job).returncode == 0
    until(lambda: run.status().get("state") == "interrupted" or None)
    stopped = run.metrics()
    run.config_path.write_text(
        run.config_path.read_text().replace("epochs: 100000", f"epochs: {len(stopped) + 2}")
    )
    result = submit(cluster, "--resume", "--out", out)
    assert result.returncode == 0, result.stdout + result.stderr
    assert run.metrics()[: len(stopped)] == stopped
    assert len(run.metrics()) == len(stopped) + 2
    assert run.status()["world_size"] == 2


def test_a_users_mistake_fails_the_job_in_one_sentence(cluster: dict[str, str], shards: Path) -> None:
    result = submit(cluster, "--preset", "demo", "--data", shards, "--out", "runs/lost", "epochs=1")
    assert result.returncode != 0
    assert "Expected an absolute path that outlives the job. Received: out=runs/lost." in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize(
    ("token", "answer", "words"),
    [
        ("", 401, "Authentication required: Unauthorized: Missing authentication token"),
        ("0" * 64, 403, "Authentication failed: Forbidden: Invalid authentication token"),
    ],
    ids=["none", "wrong"],
)
def test_without_the_token_nothing_is_accepted(
    cluster: dict[str, str], tmp_path: Path, token: str, answer: int, words: str
) -> None:
    """Neither by what the README shows, nor by the requests behind it."""
    stranger = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")} | {
        "HOME": str(tmp_path)
    }
    stranger |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    refused = submit(stranger, "--preset", "demo", "--data", "/mnt/none", "--out", tmp_path / "run")
    assert refused.returncode == 1
    assert f"AuthenticationError: {words}" in refused.stderr
    body = json.dumps({"entrypoint": f"touch {tmp_path}/done"}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(
        f"{cluster['RAY_API_SERVER_ADDRESS']}/api/jobs/", data=body, headers=headers
    )
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=30)
    assert refusal.value.code == answer
    assert not list(tmp_path.iterdir())
