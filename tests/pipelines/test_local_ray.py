"""A local Ray: who can connect to it, who can read its files, and what remains of it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest

from pipelines.errors import ConfigError
from pipelines.local_ray import FOLDER_PREFIX, MAX_ROOT_BYTES, open_private_folder, require_token
from pipelines.locks import create_lock

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef" * 4
NOBODY = 65534
DRIVER = """
import http.client
import json
import sys
from pipelines.cluster import ray_session

with ray_session():
    import ray
    from ray._private.worker import _global_node
    from ray._private import ray_constants

    @ray.remote
    def work():
        return 1

    ray.get([work.remote() for _ in range(4)])
    state = {
        "sessions": _global_node.get_temp_dir_path(),
        "can_join_clusters": ray_constants.ENABLE_RAY_CLUSTER,
    }
    print(json.dumps(state), flush=True)
    sys.stdin.read()
"""
# A method of every gRPC service of Ray; without a token, each must be refused.
METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "ReporterService/GetTraceback",
)
# Processes with a port for Prometheus that Ray neither protects nor lets turn off: numbers about Ray itself
OPEN_METRICS = {"monitor.py", "dashboard.py"}
# They try for a minute to report the end of a Ray whose other processes were killed.
SLOW_TO_END = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
END_SECONDS = 60  # within which the others end, on a busy machine


@dataclass(frozen=True)
class Listener:
    """A port that a process of a Ray listens on.

    Attributes:
        process: Name of the process, or of its script.
        address: Local address, in the notation of IPv4 where it is one.
        port: Number of the port.
    """

    process: str
    address: str
    port: int


@dataclass(frozen=True)
class Driver:
    """A process with a local Ray.

    Attributes:
        process: The process.
        root: Folder in which it creates the folder of its Ray.
        folder: Folder of its Ray.
        can_join_clusters: Whether the process could connect to a cluster elsewhere afterwards.
        family: The process and its descendants.
    """

    process: subprocess.Popen[str]
    root: Path
    folder: Path
    can_join_clusters: bool
    family: tuple[psutil.Process, ...]


def name_process(process: psutil.Process) -> str:
    """Returns the name of a process, or of the Python script that it runs."""
    scripts = [Path(part).name for part in process.cmdline()[1:] if part.endswith(".py")]
    return scripts[0] if scripts and not process.name().startswith("ray::") else process.name()


def simplify_address(text: str) -> str:
    """Returns an address of IPv4 also where a socket of IPv6 is bound to it."""
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(address)


def list_listeners(family: tuple[psutil.Process, ...]) -> list[Listener]:
    """Lists the ports that some processes listen on."""
    return [
        Listener(name_process(process), simplify_address(socket.laddr.ip), socket.laddr.port)
        for process in family
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    ]


def list_own_addresses() -> list[str]:
    """Lists the addresses of IPv4 under which others reach this machine."""
    return [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not ip_address(entry.address).is_loopback
    ]


def list_shared_memory(family: tuple[psutil.Process, ...]) -> set[Path]:
    """Lists the files of shared memory that some processes have mapped, by the names that they had."""
    maps = [entry.path for process in family for entry in process.memory_maps()]
    return {Path(path) for path in maps if path.startswith("/dev/shm/")}


@pytest.fixture
def root() -> Iterator[Path]:
    """Creates a folder for the folders of Rays that everybody may enter; the paths of sockets are short."""
    folder = Path(tempfile.mkdtemp(prefix="gb", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    """Starts a process with a local Ray; kills it at the end, unless a test has done so."""
    with tempfile.TemporaryDirectory(prefix="gb", dir="/tmp") as name:
        root = Path(name)
        root.chmod(0o755)
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        # Two ports that are the same for all Rays of a machine; only one Ray could open them.
        env |= {"AUTOSCALER_METRIC_PORT": "0", "DASHBOARD_METRIC_PORT": "0", "RAY_TMPDIR": name}
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", DRIVER], cwd=ROOT, env=env, **pipes) as process:
            try:
                state = json.loads(process.stdout.readline())
                owner = psutil.Process(process.pid)
                family = (owner, *owner.children(recursive=True))
                yield Driver(
                    process, root, Path(state["sessions"]).parent, state["can_join_clusters"], family
                )
            finally:
                process.kill()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()


@pytest.mark.heavy
def test_no_port_of_a_local_ray_can_be_reached_from_elsewhere(driver: Driver) -> None:
    listeners = list_listeners(driver.family)
    assert {listener.process for listener in listeners} >= {"gcs_server", "raylet", "ray::DashboardAgent"}
    outside = [listener for listener in listeners if not ip_address(listener.address).is_loopback]
    assert outside == []
    for address in list_own_addresses():
        for listener in listeners:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, listener.port), timeout=5).close()
    assert driver.can_join_clusters


def find_answers(port: int) -> set[str]:
    """Sends requests without a token to a port; returns the names or numbers of the results."""
    import grpc

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=10) as response:
            return {str(response.status)}
    except urllib.error.HTTPError as error:
        return {str(error.code)}
    except (OSError, http.client.HTTPException):  # no HTTP/1
        pass
    answers: set[str] = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10)
                answers.add("OK")
            except grpc.RpcError as error:
                answers.add(error.code().name)
    return answers - {"UNIMPLEMENTED"}


@pytest.mark.heavy
def test_all_ports_but_those_about_ray_itself_need_a_token(driver: Driver) -> None:
    answers = {listener: find_answers(listener.port) for listener in list_listeners(driver.family)}
    is_open = {listener.process for listener, answer in answers.items() if answer == {"200"}}
    assert is_open == OPEN_METRICS
    others = [answer for listener, answer in answers.items() if listener.process not in OPEN_METRICS]
    assert all(answer in ({"UNAUTHENTICATED"}, {"401"}) for answer in others), answers
    assert len(others) >= 7  # GCS, two of the raylet, two agents, driver, worker


@pytest.mark.heavy
def test_the_token_is_in_no_command_line_and_no_file(driver: Driver) -> None:
    assert not any(TOKEN in " ".join(process.cmdline()) for process in driver.family)
    files = [path for path in driver.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


@pytest.mark.heavy
def test_other_users_cannot_enter_the_folder_of_a_local_ray(driver: Driver) -> None:
    assert driver.folder.parent == driver.root
    assert stat.S_IMODE(driver.folder.stat().st_mode) == 0o700
    if os.getuid() == 0:
        result = subprocess.run(["ls", driver.folder], user=NOBODY, capture_output=True, text=True)
        assert "Permission denied" in result.stderr


@pytest.mark.heavy
def test_the_next_start_removes_what_a_killed_process_left(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of the driver: it is killed."""
    monkeypatch.setenv("RAY_TMPDIR", str(driver.root))
    with open_private_folder() as folder:
        assert driver.folder.is_dir()  # its owner lives
    assert not folder.exists()
    shared = list_shared_memory(driver.family)
    assert shared
    others = [process for process in driver.family if process.name() not in SLOW_TO_END]
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    _, alive = psutil.wait_procs(others, timeout=END_SECONDS)
    assert alive == []
    assert driver.folder.is_dir()
    with open_private_folder() as folder:
        assert list(driver.root.iterdir()) == [folder]
    assert list(driver.root.iterdir()) == []
    assert not any(path.exists() for path in shared)


def test_a_folder_is_private_and_removed_at_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(root))
    before = os.umask(0)
    with suppress(KeyError), open_private_folder() as folder:
        os.umask(before)
        (folder / "session_1").mkdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        raise KeyError
    assert list(root.iterdir()) == []


def test_a_folder_is_removed_although_a_process_still_writes_into_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's agents outlive the others for a moment, and may write while their folder is removed."""
    monkeypatch.setenv("RAY_TMPDIR", str(root))
    with open_private_folder() as folder:
        (folder / "r/session_1/logs").mkdir(parents=True)
        write = ": > r/session_1/logs/$i || exit; [ $i -ne 1000 ] || echo"
        script = f"i=0; while [ $i -lt 10000 ]; do i=$((i+1)); {write}; done"
        writer = subprocess.Popen(
            ["sh", "-c", script], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        writer.stdout.readline()
    writer.communicate()
    assert list(root.iterdir()) == []


def test_folders_of_living_processes_other_users_and_other_programs_stay(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(root))
    for name in ("living", "dead", "foreign"):
        (root / f"{FOLDER_PREFIX}{name}").mkdir()
    lock = create_lock(root / f"{FOLDER_PREFIX}living/lock")
    (root / "session_1").mkdir()
    (root / "target").mkdir()
    (root / f"{FOLDER_PREFIX}link").symlink_to(root / "target")
    (root / f"{FOLDER_PREFIX}file").touch()
    expected = {"living", "link", "file"}
    if os.getuid() == 0:
        os.chown(root / f"{FOLDER_PREFIX}foreign", NOBODY, NOBODY)
        expected |= {"foreign"}
    with open_private_folder():
        pass
    os.close(lock)
    left = {path.name for path in root.iterdir()}
    assert left == {f"{FOLDER_PREFIX}{name}" for name in expected} | {"session_1", "target"}
    assert list((root / "target").iterdir()) == []


def test_a_folder_that_is_removed_before_it_is_locked_is_created_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start may take the lock of a new folder first, because nobody holds it yet."""
    removed: list[Path] = []

    def remove_first(path: Path, create: Callable[[Path], int] = create_lock) -> int:
        if removed:
            return create(path)
        lock = create(path)
        removed.append(path.parent)
        shutil.rmtree(path.parent)
        return lock

    monkeypatch.setenv("RAY_TMPDIR", str(root))
    monkeypatch.setattr("pipelines.local_ray.create_lock", remove_first)
    with open_private_folder() as folder:
        assert folder.is_dir()
        assert folder not in removed


def test_logs_are_kept_where_they_are_wanted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(root))
    monkeypatch.setenv("GLASSBOX_RAY_LOGS", str(tmp_path / "logs"))
    with open_private_folder() as folder:
        (folder / "r/session_1/logs").mkdir(parents=True)
        (folder / "r/session_1/logs/raylet.out").write_text("text")
        (folder / "r/session_latest").symlink_to(folder / "r/session_1")
    kept = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert kept == [Path("logs/session_1/raylet.out")]
    assert list(root.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_an_error_that_names_the_setting(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").touch()
    for name in ("RAY_TMPDIR", "GLASSBOX_RAY_LOGS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(root / "file"))
            with pytest.raises(ConfigError, match=f"{name}={root}/file"), open_private_folder():
                pass
    monkeypatch.setenv("RAY_TMPDIR", f"{root}/{'x' * MAX_ROOT_BYTES}")
    with pytest.raises(ConfigError, match=r"at most \d+ bytes"), open_private_folder():
        pass


def test_a_long_folder_for_temporary_files_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * MAX_ROOT_BYTES)))
    with open_private_folder() as folder:
        assert folder.parent == Path("/tmp")


@pytest.mark.parametrize(
    ("before", "modules", "mode"),
    [
        ({}, set(), "token"),
        ({}, {"ray"}, None),  # Ray turns it on by itself
        ({"RAY_AUTH_MODE": "disabled"}, set(), "disabled"),
        ({"RAY_AUTH_TOKEN": TOKEN}, set(), "token"),
    ],
)
def test_a_local_ray_has_a_token_unless_the_user_decides(
    before: dict[str, str], modules: set[str], mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = dict(before)
    with monkeypatch.context() as patch:  # pytest needs the true ones to report a failure
        patch.setattr(sys, "modules", dict.fromkeys(modules))
        patch.setattr(os, "environ", variables)
        require_token()
    assert variables.get("RAY_AUTH_MODE") == mode
    token = variables.get("RAY_AUTH_TOKEN", "")
    assert len(token) == (0 if mode == "disabled" else 64)
    assert token == before.get("RAY_AUTH_TOKEN", token)
