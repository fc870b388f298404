"""Leases in object stores: objects that one process holds and renews, by conditional puts.

Clocks of hosts do not matter: whoever finds a lease watches it. A lease whose object changes is in use; one
that does not change for a time was left by a process that died, and is taken over.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import GlassboxError
from pipelines.processes import is_running
from pipelines.remote.store import (
    ConflictError,
    ObjectMissingError,
    delete,
    read_version,
    stat,
    write_bytes,
)
from pipelines.remote.uri import Uri
from pipelines.storage import parse_json

RENEWAL_SECONDS = 5.0
EXPIRY_SECONDS = 30.0
POLL_SECONDS = 0.5
MAX_BYTES = 10_000  # of a lease; anything larger is not one

Watched = Literal["unchanged", "replaced", "removed"]


def read_clock() -> float:
    """Returns seconds that go on while this process, or the whole machine, is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LeaseObject:
    """The object of a lease, which is only ever written in place of the version that was read.

    Of several processes that write it, one succeeds. The content must name its writer.

    Args:
        uri: Address of the object.

    Attributes:
        uri: Address of the object.
        etag: Version that this process wrote last; None if it has written none.
    """

    def __init__(self, uri: Uri) -> None:
        self.uri = uri
        self.etag: str | None = None

    def read(self) -> tuple[bytes, str] | None:
        """Returns content and version of the object; None if there is none.

        Raises:
            StoreError: The bucket is missing, or the store denies access or does not respond.
        """
        try:
            return read_version(self.uri, MAX_BYTES)
        except ObjectMissingError:
            if stat(self.uri) is None:  # raises if the bucket is missing
                return None
            raise

    def try_write(self, content: bytes, replaced: str | None) -> bool:
        """Writes the object; returns whether nobody else has written it before.

        Args:
            content: Content that names this process.
            replaced: Version that is replaced; None if there must be no object.
        """
        try:
            self.etag = write_bytes(self.uri, content, if_absent=replaced is None, if_match=replaced)
        except (ConflictError, ObjectMissingError):
            return False
        return True

    def watch(
        self, etag: str, seconds: float, pause: float, is_dead: Callable[[], bool] = lambda: False
    ) -> Watched:
        """Watches a version of the object, until it changes or the time is over.

        Args:
            etag: Version that was read last; any other one ends the watch.
            seconds: Time after which the lease has expired.
            pause: Seconds between two looks.
            is_dead: Tells whether its holder is known to have ended, so that there is nothing to wait for.
        """
        deadline = read_clock() + seconds
        while read_clock() < deadline and not is_dead():
            time.sleep(pause)
            info = stat(self.uri)
            if info is None:
                return "removed"
            if info.etag != etag:
                return "replaced"
        return "unchanged"


class Lease:
    """A lease that this process holds and renews in a thread.

    Args:
        held: Object of the lease, as this process wrote it.
        content: Content of the object, without the number of the renewal.

    Attributes:
        uri: Address of the object.
    """

    def __init__(self, held: LeaseObject, content: dict[str, Any]) -> None:
        self.uri = held.uri
        self._object = held
        self._content = content
        self._is_lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="lease", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether another process has taken the lease over, because it was not renewed for too long."""
        return self._is_lost

    def release(self) -> None:
        """Ends the renewal, and removes the object unless another process has taken it over."""
        self._stop.set()
        self._thread.join()
        if not self._is_lost and self._find_own_version():
            delete(self.uri)

    def _renew_until_stopped(self) -> None:
        number = 0
        while not self._stop.wait(RENEWAL_SECONDS):
            number += 1
            try:
                if self._object.try_write(_encode(self._content, number), self._object.etag):
                    continue
                # If this process wrote the version, a renewal arrived, although its response did not.
                self._object.etag = self._find_own_version()
            except GlassboxError:
                continue  # an outage: tried again with the next renewal
            if self._object.etag is None:
                self._is_lost = True
                return

    def _find_own_version(self) -> str | None:
        """Returns the version of the object if this process wrote it, else None."""
        found = self._object.read()
        if found is None or _decode(found[0]).get("token") != self._content["token"]:
            return None
        return found[1]


@contextmanager
def hold_lease(uri: Uri, refusal: GlassboxError) -> Iterator[Lease]:
    """Holds a lease for the length of a block.

    Args:
        uri: Object of the lease.
        refusal: Error to raise if another process holds it.

    Raises:
        GlassboxError: The refusal, or the store cannot be reached.
    """
    content = {"token": secrets.token_hex(16), **_describe_process()}
    held = LeaseObject(uri)
    if not held.try_write(_encode(content, 0), None):
        _take_over(held, content, refusal)
    lease = Lease(held, content)
    try:
        yield lease
    finally:
        lease.release()


def _take_over(held: LeaseObject, content: dict[str, Any], refusal: GlassboxError) -> None:
    """Waits until a lease has expired, and replaces it.

    Raises:
        GlassboxError: The refusal, as soon as the lease is renewed or replaced by another process.
    """
    found = held.read()
    etag = None
    if found is not None:
        owner = _decode(found[0])
        seen = held.watch(found[1], EXPIRY_SECONDS, POLL_SECONDS, lambda: _is_owner_dead(owner))
        if seen == "replaced":
            raise refusal
        etag = found[1] if seen == "unchanged" else None
    if not held.try_write(_encode(content, 0), etag):
        raise refusal


def _encode(content: dict[str, Any], number: int) -> bytes:
    return json.dumps({**content, "renewal": number}).encode()


def _decode(data: bytes) -> dict[str, Any]:
    try:
        content = parse_json(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _describe_process() -> dict[str, Any]:
    """Returns what identifies this process; on Linux, also the system and the space of process ids."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "space": _find_process_space()}


def _find_process_space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _is_owner_dead(content: dict[str, Any]) -> bool:
    """Tells whether the owner ran where this process could see it, and is gone."""
    space = _find_process_space()
    if not space or content.get("space") != space or not isinstance(content.get("pid"), int):
        return False
    return not is_running(content["pid"])
