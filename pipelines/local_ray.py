"""Starts a Ray that nobody else can reach: on 127.0.0.1, with a token, in a folder of its user alone."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.locks import create_lock, try_lock
from pipelines.storage import remove_folder

LOGS = "GLASSBOX_RAY_LOGS"  # environment variable: where the logs of Ray are kept
FOLDER_PREFIX = "gb-ray-"
LOCK = "lock"  # file whose lock the owner of a folder holds
SESSIONS = "r"  # folder that Ray uses, which it opens to everybody
# The longest path of a Ray socket below its folder. Linux allows paths of 107 bytes, macOS of 103.
SOCKET = f"/{SESSIONS}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
MAX_ROOT_BYTES = (103 if sys.platform == "darwin" else 107) - len(SOCKET) - len(f"/{FOLDER_PREFIX}12345678")
OBJECT_STORE_BYTES = 256 * 2**20  # a local Ray passes work descriptions around, not images


def require_token() -> None:
    """Sets a random token for the Ray of this process, unless the user has set how Ray authenticates.

    Call it before Ray is imported: Ray reads the mode at that time. If it is imported already, `ray.init`
    turns the token on itself, and prints so; without the token set here, it would take the one in
    `~/.ray/auth_token`, which other users may be able to read.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"


@contextmanager
def open_private_folder() -> Iterator[Path]:
    """Creates the folder of a Ray, for the length of a block, and removes those of killed processes.

    It is created in `RAY_TMPDIR`, else in the folder for temporary files. Only its user can enter it; Ray
    makes all of its own folders and sockets accessible to everybody.

    Yields:
        Path of the folder, short enough for Ray's sockets.

    Raises:
        ConfigError: The folder, or the one that `GLASSBOX_RAY_LOGS` names, cannot be created.
    """
    root = _choose_root()
    logs = os.environ.get(LOGS)
    with _explain(LOGS, logs):
        if logs:
            Path(logs).mkdir(parents=True, exist_ok=True)
    with _explain("RAY_TMPDIR", str(root)):
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        folder, lock = _create_folder(root)
    try:
        yield folder
    finally:
        if logs:
            _keep_logs(folder, Path(logs))
        remove_folder(folder)  # Ray's agents end a little later, and write until then
        os.close(lock)


def remove_leftovers(root: Path) -> None:
    """Removes the folders of Rays of this user whose processes were killed: nobody holds their locks.

    Args:
        root: Folder that the folders are in.
    """
    for folder in root.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):  # others may remove the folder at the same time
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = try_lock(folder / LOCK)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def start_ray(folder: Path) -> None:
    """Starts a Ray that listens on 127.0.0.1 only.

    Its metrics are off, unless `RAY_enable_metrics_collection` is set, because their port has no token.

    Args:
        folder: Folder for the sockets, logs and spilled objects.
    """
    import ray

    settings: dict[str, Any] = {}
    if "RAY_enable_metrics_collection" not in os.environ:
        settings["enable_metrics_collection"] = False
    with _use_loopback():
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
            log_to_driver=False,
            _temp_dir=str(folder / SESSIONS),
            _system_config=settings,
        )


@contextmanager
def _use_loopback() -> Iterator[None]:
    """Makes 127.0.0.1 the address of this machine for a Ray that starts within the block.

    Everything that Ray starts listens on the address of its node. As `_node_ip_address`, Ray 2.60 replaces
    127.0.0.1 by the address of a network interface, except where it does not support clusters of several
    machines: on macOS, on Windows, and wherever this switch is off. It is an environment variable as well
    (`RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER`), which has no effect once Ray is imported. Afterwards, the switch is
    as before, so that a cluster elsewhere can be connected to.
    """
    from ray._private import ray_constants

    is_enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_enabled


def _choose_root() -> Path:
    """Returns the folder for the folders of Rays.

    Raises:
        ConfigError: `RAY_TMPDIR` is too long for the paths of sockets.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen:
        root = Path(chosen).absolute()
        if len(os.fsencode(root)) > MAX_ROOT_BYTES:
            raise ConfigError(
                f"a RAY_TMPDIR of at most {MAX_ROOT_BYTES} bytes, because Ray's sockets are below it",
                f"RAY_TMPDIR={chosen}",
                "choose a shorter path, or unset RAY_TMPDIR",
            )
        return root
    root = Path(tempfile.gettempdir())
    return root if len(os.fsencode(root)) <= MAX_ROOT_BYTES else Path("/tmp")


def _create_folder(root: Path) -> tuple[Path, int]:
    """Creates a folder with a lock; returns both.

    A process that removes leftovers may take the lock first. It then removes the folder, and another one is
    created.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=root))
        with suppress(FileNotFoundError):
            lock = create_lock(folder / LOCK)
            if (folder / LOCK).exists():
                return folder, lock
            os.close(lock)


def _keep_logs(folder: Path, target: Path) -> None:
    """Copies the logs of a Ray; what cannot be copied is left out."""
    for logs in folder.glob(f"{SESSIONS}/session_*/logs"):
        if not logs.parent.is_symlink():
            with suppress(OSError):
                shutil.copytree(logs, target / logs.parent.name, dirs_exist_ok=True)


@contextmanager
def _explain(name: str, value: str | None) -> Iterator[None]:
    """Turns errors of the file system into one that names a setting."""
    try:
        yield
    except OSError as error:
        reason = f"{name}={value} ({error.strerror or error})"
        raise ConfigError(
            "a folder that can be written to", reason, f"set {name} to another folder"
        ) from None
