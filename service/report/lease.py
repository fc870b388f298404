"""Leases: small files that name the process that renders a report, so that overlapping jobs share the work.

A lease is read and written under a kernel lock, which excludes other processes on the same machine and on
file systems that share locks. The lease of a job that died expires; on the same machine, it is free at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.processes import is_running
from pipelines.storage import parse_json

# Time until a lease expires without renewal. The clocks of machines that share a lease must agree to seconds.
LEASE_SECONDS = 60.0
POLL_SECONDS = 0.2  # wait between attempts to acquire a lease that another process holds


class LeaseHeldError(ConfigError):
    """Another process holds the lease: exit code 2."""


class Lease:
    """A lease that this process may acquire.

    Args:
        path: File of the lease.
        seconds: Time until it expires without renewal.
    """

    def __init__(self, path: Path, seconds: float = LEASE_SECONDS) -> None:
        self.path = path
        self.seconds = seconds
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._progress = ""

    def acquire(self) -> None:
        """Acquires the lease.

        Raises:
            LeaseHeldError: Another process holds it.
            ConfigError: Its file cannot be written.
        """
        self._write(may_acquire=True)

    def renew(self, progress: str | None = None) -> None:
        """Extends the lease to `seconds` from now.

        Args:
            progress: Progress to publish, see `read_progress`; None keeps the last one.

        Raises:
            LeaseHeldError: It expired before, and another process acquired it.
        """
        if progress is not None:
            self._progress = progress
        self._write(may_acquire=False)

    def release(self) -> None:
        """Releases the lease if this process still holds it."""
        with suppress(ConfigError):
            self._write(may_acquire=False, release=True)

    def _write(self, may_acquire: bool, release: bool = False) -> None:
        try:
            with self.path.open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                current = _parse(file.read())
                if current.get("owner") != self.holder and not (may_acquire and _is_free(current)):
                    raise self._refusal(current)
                file.truncate(0)
                if not release:
                    # The keys are those of earlier versions, whose jobs may run at the same time.
                    content = {
                        "owner": self.holder,
                        "expires": time.time() + self.seconds,
                        "at": self._progress,
                    }
                    json.dump(content, file)
        except OSError as error:
            raise ConfigError(
                "a directory that can be written", f"{self.path}: {error.strerror}", "check its permissions"
            ) from None

    def _refusal(self, current: dict[str, Any]) -> LeaseHeldError:
        return LeaseHeldError(
            "a report that no other process is rendering",
            f"{self.path.parent} (rendered by {current.get('owner', 'nobody')})",
            f"wait until it is finished; the lease of a dead job expires within {self.seconds:.0f} seconds",
        )


@contextmanager
def hold_lease(path: Path, seconds: float = LEASE_SECONDS, wait: float = 0.0) -> Iterator[Lease]:
    """Holds a lease for the length of a block, and renews it in a thread.

    Args:
        path: File of the lease.
        seconds: Time until it expires should this process die.
        wait: Time to wait for another process to release it, in seconds.

    Yields:
        The lease, through which the block can publish its progress.

    Raises:
        LeaseHeldError: Another process holds it.
        ConfigError: Its file cannot be written.
    """
    lease = Lease(path, seconds)
    _acquire(lease, wait)
    is_done = threading.Event()
    thread = threading.Thread(target=_renew_periodically, args=(lease, is_done), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        is_done.set()
        thread.join()
        lease.release()


def read_progress(path: Path) -> str:
    """Returns the progress that the holder of a lease published last; empty if nobody holds it."""
    try:
        return str(_parse(path.read_text()).get("at", ""))
    except OSError:
        return ""


def _acquire(lease: Lease, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            lease.acquire()
        except LeaseHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(POLL_SECONDS, lease.seconds / 10))
        else:
            return


def _renew_periodically(lease: Lease, is_done: threading.Event) -> None:
    while not is_done.wait(lease.seconds / 4):
        with suppress(ConfigError):  # the block gets the error of a lost lease at its own next renewal
            lease.renew()


def _is_free(current: dict[str, Any]) -> bool:
    return not current or current["expires"] <= time.time() or _has_holder_died(current)


def _has_holder_died(current: dict[str, Any]) -> bool:
    """Tells whether the holder was a process of this machine that no longer exists."""
    host, _, rest = str(current.get("owner", "")).partition(":")
    process = rest.partition(":")[0]
    if host != socket.gethostname() or not process.isdigit():
        return False
    return not is_running(int(process))


def _parse(text: str) -> dict[str, Any]:
    """Parses the content of a lease; empty if it was never acquired, was released, or is half-written."""
    try:
        content = parse_json(text)
        has_expiry = isinstance(content["expires"], int | float)
    except (ValueError, KeyError, TypeError):
        return {}
    return dict(content) if has_expiry else {}
