"""`ray job submit`, as the README shows it, on a cluster with a token."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from fault_lab import BIN, PATIENCE, ROOT, find_free_port, kill_tree
from training_samples import noise_shards

from service.runs import Run

pytestmark = pytest.mark.e2e
T = TypeVar("T")
GAUGE_RANGES = {  # of a run that goes well
    "images_per_second": (1, 1e6),
    "input_wait": (0, 1),
    "step_seconds": (1e-5, 30),
    "loss": (1e-6, 1e3),
    "checkpoint_age_seconds": (0, 600),
    "restarts": (0, 0),
    "epoch": (1, 100_000),
}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder with a short path, because Ray puts sockets into it."""
    with tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[dict[str, str]]:
    """The environment variables of a client of a fresh cluster."""
    dashboard = find_free_port()
    metrics = find_free_port()
    client = os.environ | {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    client.pop("RAY_ADDRESS", None)
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--port={find_free_port()}",
        f"--dashboard-port={dashboard}",
        # The defaults are the same for all clusters of a host.
        f"--dashboard-agent-listen-port={find_free_port()}",
        f"--ray-client-server-port={find_free_port()}",
        f"--metrics-export-port={metrics}",
        f"--temp-dir={home}/r",
    ]
    with (home / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=client, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for_dashboard(address, client["RAY_AUTH_TOKEN"], head, home / "head.log")
        yield client | {"RAY_API_SERVER_ADDRESS": address, "METRICS": f"http://127.0.0.1:{metrics}/metrics"}
    finally:
        kill_tree(head.pid)
        head.wait()


def wait_for_dashboard(address: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"})

    def get_version() -> bool | None:
        assert head.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    wait_for(get_version, lambda: log.read_text()[-2000:])


def wait_for(find: Callable[[], T | None], describe: Callable[[], str] = str) -> T:
    """Waits until a function returns something other than None, and returns that."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = find()
        if value is not None:
            return value
        time.sleep(0.2)
    pytest.fail(f"not within {PATIENCE} s: {describe()}")


def ray(client: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), *map(str, words)]
    return subprocess.run(command, env=client, cwd=ROOT, capture_output=True, text=True)


def submit(
    client: dict[str, str], *words: str | Path, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    entrypoint = ("python", "service/train.py", *words)
    return ray(client, "job", "submit", *options, "--working-dir", ".", "--", *entrypoint)


def check_alive(client: dict[str, str], job: str) -> None:
    """Fails, with the logs of a job, if it has failed."""
    headers = {"Authorization": f"Bearer {client['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{client['RAY_API_SERVER_ADDRESS']}/api/jobs/{job}", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        status = json.load(response)["status"]
    assert status != "FAILED", ray(client, "job", "logs", job).stdout


def read_gauges(url: str) -> dict[str, float]:
    """Reads our gauges as Prometheus would."""
    with urllib.request.urlopen(url, timeout=60) as response:
        text = response.read().decode()
    gauges = {}
    for line in text.splitlines():
        if line.startswith("ray_glassbox_"):
            name = line.partition("{")[0].removeprefix("ray_glassbox_")
            gauges[name] = float(line.rpartition(" ")[2])
    return gauges


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_shards(tmp_path_factory.mktemp("data") / "shards", rows=40, held_out=16)


def test_a_job_is_watched_stopped_and_resumed(cluster: dict[str, str], shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = f"job-{tmp_path.name}"
    run = Run(out)
    words = ["--preset", "demo", "--data", shards, "--out", out, "--workers", "2", "epochs=100000"]
    assert submit(cluster, *words, options=["--no-wait", f"--submission-id={job}"]).returncode == 0

    def has_two_epochs() -> bool | None:
        check_alive(cluster, job)
        return len(run.metrics()) >= 2 or None

    wait_for(has_two_epochs)

    def read_all_gauges() -> dict[str, float] | None:
        gauges = read_gauges(cluster["METRICS"])
        return gauges if gauges.keys() >= GAUGE_RANGES.keys() else None

    gauges = wait_for(read_all_gauges)
    assert all(low <= gauges[name] <= high for name, (low, high) in GAUGE_RANGES.items()), gauges
    assert "epoch 1/100000" in ray(cluster, "job", "logs", job).stdout

    assert ray(cluster, "job", "stop", job).returncode == 0
    wait_for(lambda: run.status().get("state") == "interrupted" or None)
    before = run.metrics()
    epochs = len(before) + 2
    config = run.config_path.read_text()
    run.config_path.write_text(config.replace("epochs: 100000", f"epochs: {epochs}"))
    result = submit(cluster, "--resume", "--out", out)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"epoch {epochs}/{epochs}" in result.stdout
    assert run.metrics()[: len(before)] == before
    assert len(run.metrics()) == epochs
    assert (run.status()["state"], run.status()["world_size"]) == ("finished", 2)
    assert run.model_path.is_file()


def test_a_users_mistake_fails_the_job_in_one_sentence(cluster: dict[str, str], shards: Path) -> None:
    result = submit(cluster, "--preset", "demo", "--data", shards, "--out", "runs/lost", "epochs=1")
    assert result.returncode != 0
    assert "Expected an absolute path that outlives the job. Received: out=runs/lost." in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        ("", 401, "Authentication required: Unauthorized: Missing authentication token"),
        ("0" * 64, 403, "Authentication failed: Forbidden: Invalid authentication token"),
    ],
    ids=["none", "wrong"],
)
def test_without_the_token_nothing_is_accepted(
    cluster: dict[str, str], tmp_path: Path, token: str, status: int, message: str
) -> None:
    """Neither from the command that the README shows, nor from the requests behind it."""
    stranger = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    stranger["HOME"] = str(tmp_path)
    if token:
        stranger |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    refused = submit(stranger, "--preset", "demo", "--data", "/mnt/none", "--out", tmp_path / "run")
    assert refused.returncode == 1
    assert f"AuthenticationError: {message}" in refused.stderr
    body = json.dumps({"entrypoint": f"touch {tmp_path}/done"}).encode()
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    url = f"{cluster['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    request = urllib.request.Request(url, data=body, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=60)
    assert refusal.value.code == status
    assert not list(tmp_path.iterdir())
