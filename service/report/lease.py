"""Claims: who makes something now, and until when that holds, so that starts which overlap do no work twice.

A claim is a small file. It is read and written under a kernel lock, which excludes others on the same machine and on file systems
that share locks. What it says has an end, so that the claim of a job that died, wherever that ran, does not hold for ever; one of
a process of this machine that is no more ends at once.
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

SECONDS = 60.0  # that a claim holds without being renewed; clocks of machines that share it must agree to within some seconds


class LeaseHeldError(ConfigError):
    """Somebody else is at it: exit code 2."""


class Lease:
    """One claim of this process.

    Args:
        path: Its file.
        seconds: How long it holds without being renewed.
    """

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self.path, self.seconds = path, seconds
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._words = ""

    def take(self) -> None:
        """Takes the claim.

        Raises:
            LeaseHeldError: Another holds it.
            ConfigError: Its file cannot be written.
        """
        self._write(may_take=True)

    def tell(self, words: str) -> None:
        """Renews the claim and leaves words for those who look on.

        Raises:
            LeaseHeldError: It was not renewed in time and another took it.
        """
        self._words = words
        self.renew()

    def renew(self) -> None:
        """Lets the claim hold for `seconds` from now.

        Raises:
            LeaseHeldError: It was not renewed in time and another took it.
        """
        self._write(may_take=False)

    def release(self) -> None:
        """Ends the claim if it is still ours."""
        with suppress(ConfigError):
            self._write(may_take=False, ends=True)

    def _write(self, may_take: bool, ends: bool = False) -> None:
        try:
            with self.path.open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                found = _read(file.read())
                is_free = not found or found["expires"] <= time.time() or _is_dead(found)
                if found.get("owner") != self.owner and not (may_take and is_free):
                    raise self._refusal(found)
                file.truncate(0)
                if not ends:
                    json.dump(
                        {"owner": self.owner, "expires": time.time() + self.seconds, "at": self._words}, file
                    )
        except OSError as error:
            raise ConfigError(
                "a directory that can be written", f"{self.path}: {error.strerror}", "see to its permissions"
            ) from None

    def _refusal(self, found: dict[str, Any]) -> LeaseHeldError:
        owner = found.get("owner", "nobody")
        fix = f"wait until that ends; a claim of a job that died ends within {self.seconds:.0f} seconds"
        return LeaseHeldError(
            "a report that nobody else is making", f"{self.path.parent} (in work by {owner})", fix
        )


@contextmanager
def hold_lease(path: Path, seconds: float = SECONDS, wait: float = 0.0) -> Iterator[Lease]:
    """Holds a claim for the length of a block and renews it all the while.

    Args:
        path: Its file.
        seconds: How long it holds should this process die.
        wait: How long to wait for another's to end, in seconds.

    Raises:
        LeaseHeldError: Another holds it.
        ConfigError: Its file cannot be written.
    """
    claim, deadline = Lease(path, seconds), time.monotonic() + wait
    while True:
        try:
            claim.take()
            break
        except LeaseHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(0.2, seconds / 10))
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(claim, ended), daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        ended.set()
        thread.join()
        claim.release()


def words_at(path: Path) -> str:
    """What the holder of a claim said last; empty where nobody holds it."""
    try:
        return str(_read(path.read_text()).get("at", ""))
    except OSError:
        return ""


def _keep(claim: Lease, ended: threading.Event) -> None:
    while not ended.wait(claim.seconds / 4):
        with suppress(ConfigError):  # a lost claim shows when its holder next tells something
            claim.renew()


def _is_dead(found: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    host, _, rest = str(found.get("owner", "")).partition(":")
    process = rest.partition(":")[0]
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _read(text: str) -> dict[str, Any]:
    """What a claim says; empty where it was never taken, was released, or is half-written."""
    try:
        found = json.loads(text)
        return dict(found) if isinstance(found["expires"], int | float) else {}
    except (ValueError, KeyError, TypeError):
        return {}
