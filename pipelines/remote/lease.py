"""A lease on a part of an object store: an object that one process holds and renews, by conditional puts.

Clocks do not matter: whoever finds a lease watches it. A lease whose object changes is in use; one that does
not change for `EXPIRY_SECONDS` was left by a process that died, and is taken over.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import GlassboxError
from pipelines.remote.store import ConflictError, ObjectMissingError, delete, read_bytes, stat, write_bytes
from pipelines.remote.uri import Uri

RENEWAL_SECONDS = 5.0
EXPIRY_SECONDS = 30.0
POLL_SECONDS = 0.5


class Lease:
    """A lease that this process holds and renews in a thread.

    Args:
        uri: Object of the lease.
        etag: Version of the object that this process wrote.
        content: Content of the object, without the number of the renewal.
    """

    def __init__(self, uri: Uri, etag: str, content: dict[str, Any]) -> None:
        self.uri = uri
        self._etag = etag
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
        if not self._is_lost and _is_written_by(self.uri, self._content["token"]):
            delete(self.uri)

    def _renew_until_stopped(self) -> None:
        number = 0
        while not self._stop.wait(RENEWAL_SECONDS):
            number += 1
            try:
                self._etag = write_bytes(self.uri, _encode(self._content, number), if_match=self._etag)
            except (ConflictError, ObjectMissingError):
                info = stat(self.uri)
                if info is None or not _is_written_by(self.uri, self._content["token"]):
                    self._is_lost = True
                    return
                self._etag = info.etag  # a renewal arrived, although its response did not
            except GlassboxError:
                continue  # an outage: tried again with the next renewal


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
    try:
        etag = write_bytes(uri, _encode(content, 0), if_absent=True)
    except ConflictError:
        etag = _take_over(uri, content, refusal)
    lease = Lease(uri, etag, content)
    try:
        yield lease
    finally:
        lease.release()


def _take_over(uri: Uri, content: dict[str, Any], refusal: GlassboxError) -> str:
    """Waits until a lease has expired, and replaces it; returns the new version.

    Raises:
        GlassboxError: The refusal, as soon as the lease is renewed or replaced by another process.
    """
    first = stat(uri)
    deadline = time.monotonic() + EXPIRY_SECONDS
    if first is not None and _read_content(uri).get("token") == content["token"]:
        return first.etag  # the first put arrived, although its response did not
    while first is not None and time.monotonic() < deadline and not _is_owner_dead(_read_content(uri)):
        time.sleep(POLL_SECONDS)
        latest = stat(uri)
        if latest is None:
            first = None
        elif latest.etag != first.etag:
            raise refusal
    try:
        if first is None:
            return write_bytes(uri, _encode(content, 0), if_absent=True)
        return write_bytes(uri, _encode(content, 0), if_match=first.etag)
    except (ConflictError, ObjectMissingError):
        raise refusal from None


def _encode(content: dict[str, Any], number: int) -> bytes:
    return json.dumps({**content, "renewal": number}).encode()


def _read_content(uri: Uri) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(uri))
    except (ObjectMissingError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_written_by(uri: Uri, token: str) -> bool:
    return _read_content(uri).get("token") == token


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
    try:
        os.kill(content["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
