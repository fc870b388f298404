"""The lease on a run in a store: it names the one process that may train the run, whatever the clocks say."""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from pipelines.errors import ConfigError, TrainingError
from pipelines.remote.errors import StoreError
from pipelines.remote.lease import LeaseObject, read_clock
from pipelines.remote.retry import limit_retries
from pipelines.remote.store import delete, stat, write_bytes
from pipelines.remote.uri import Uri
from pipelines.storage import parse_json

logger = logging.getLogger(__name__)

LEASE = ".lease"
SECONDS_VARIABLE = "GLASSBOX_LEASE_SECONDS"
LEASE_SECONDS = 60.0
RELEASE_SECONDS = 10.0  # for which the end of a run waits for the store; then the lease expires
# Stores round the times of objects to seconds.
TIME_RESOLUTION = 2.0


class LeaseHeldError(ConfigError):
    """Another process trains the run: exit code 2."""


class LeaseLostError(TrainingError):
    """Another process has taken over the run that this process trained: exit code 4."""


@dataclass(frozen=True)
class LeaseContent:
    """Content of the lease object.

    Attributes:
        holder: Random name of the process that holds the lease.
        session: Random name of the training, shared by its driver and its workers.
        generation: Number of processes that have held the lease so far, this one included.
        seconds: Time without renewal after which the lease has expired.
        host: Host of the holder, for messages.
        renewals: Number of renewals, so that every renewal changes the object.
        is_released: Whether the holder has ended and left the run to others.
    """

    holder: str
    session: str
    generation: int
    seconds: float
    host: str
    renewals: int = 0
    is_released: bool = False

    def to_json(self) -> bytes:
        """Returns the content of the object."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()


def parse_lease(data: bytes, uri: Uri) -> LeaseContent:
    """Returns the content of a lease object.

    Raises:
        ConfigError: The object is not a lease.
    """
    try:
        return LeaseContent(**parse_json(data))
    except (ValueError, TypeError):
        raise ConfigError(
            "a lease of this version of glassbox",
            f"lease={uri} (damaged)",
            "remove it if nobody trains the run",
        ) from None


def read_lease_seconds() -> float:
    """Returns after how many seconds a lease expires: `GLASSBOX_LEASE_SECONDS`, or 60.

    Raises:
        ConfigError: The variable is not a positive number.
    """
    text = os.environ.get(SECONDS_VARIABLE, str(LEASE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(
            "a positive number of seconds", f"{SECONDS_VARIABLE}={text}", "correct it, or unset it"
        )
    return seconds


class RunLease:
    """The lease on a run, which this process may acquire, renew in a thread, and release.

    A lease is only ever written on the condition that it is still the one that was read, so that of several
    processes one succeeds. Whether another's lease has expired is decided by the time of the store, or by
    watching it for as long as it lasts.

    Args:
        run: Address of the run.
        session: Session to join, whose lease can be taken over at once; None for a new one.
    """

    def __init__(self, run: Uri, session: str | None = None) -> None:
        self.run = run
        self.uri = run / LEASE
        self.seconds = read_lease_seconds()
        self._mine = LeaseContent(
            secrets.token_hex(8), session or secrets.token_hex(8), 0, self.seconds, platform.node()
        )
        self._object = LeaseObject(self.uri)
        self._renewed_at = 0.0
        self._lock = threading.RLock()
        self._lost: LeaseLostError | None = None
        self._is_done = threading.Event()
        self._may_hand_over = False
        self._is_handed_over = False

    @property
    def holder(self) -> str:
        """Random name of this process."""
        return self._mine.holder

    @property
    def host(self) -> str:
        """Name of this host, for messages."""
        return self._mine.host

    @property
    def session(self) -> str:
        """Random name of the training, for its workers."""
        return self._mine.session

    @property
    def generation(self) -> int:
        """Number of processes that have held the lease, this one included; 0 before it is acquired."""
        return self._mine.generation

    @property
    def is_handed_over(self) -> bool:
        """Whether another process of the session has acquired the lease, as allowed."""
        return self._is_handed_over

    def allow_handover(self) -> None:
        """Lets another process of the session acquire the lease, until this one acquires it again."""
        self._may_hand_over = True

    def acquire(
        self, is_dead: Callable[[LeaseContent], bool], notify: Callable[[str], None] = print
    ) -> LeaseContent | None:
        """Acquires the lease; waits for one whose holder may have died.

        Args:
            is_dead: Tells whether the holder is known to have ended.
            notify: Receives a sentence before a wait.

        Returns:
            The lease of the previous holder; None if there was none.

        Raises:
            LeaseHeldError: Another process holds the lease and renews it.
            StoreError: The store denies access or does not respond.
        """
        while True:
            found = self._read()
            if found is None:
                if self._try_write(replace(self._mine, generation=1), None):
                    return None
                continue
            current, etag = found
            is_free = current.is_released or current.session == self.session or is_dead(current)
            if not is_free:
                self._wait_for_expiry(current, etag, notify)
            self._may_hand_over = False
            self._is_handed_over = False
            if self._try_write(replace(self._mine, generation=current.generation + 1), etag):
                return current

    def renew(self) -> None:
        """Renews the lease.

        Raises:
            LeaseLostError: Another process has acquired it.
            StoreError: The store denies access or does not respond.
        """
        with self._lock:
            if self._lost:
                raise self._lost
            content = replace(self._mine, renewals=self._mine.renewals + 1)
            if self._try_write(content, self._object.etag):
                return
            try:
                found = self._read()
            except ConfigError:  # not a lease any more
                found = None
            if found and self._may_hand_over and found[0].session == self.session:
                self._is_handed_over = found[0].holder != self.holder
            if self._is_handed_over:
                return
            if found is None or found[0].holder != self.holder:
                self._lost = self.describe_loss(found[0] if found else None)
                raise self._lost
            # An earlier write of this process had arrived, although its response had not.
            self._mine, self._object.etag = found

    def check(self) -> None:
        """Checks that this process still holds the lease; asks the store if the last renewal was long ago.

        Raises:
            LeaseLostError: Another process has acquired it.
            StoreError: The store denies access or does not respond.
        """
        with self._lock:
            if self._lost:
                raise self._lost
            if read_clock() - self._renewed_at > self.seconds / 2:
                self.renew()

    def start_renewing(self, on_lost: Callable[[LeaseLostError], None]) -> None:
        """Renews the lease in a thread until `stop_renewing`.

        Args:
            on_lost: Called once from the thread when another process has acquired the lease.
        """
        self.stop_renewing()
        self._is_done = threading.Event()
        arguments = (on_lost, self._is_done)
        threading.Thread(target=self._renew_periodically, args=arguments, name="lease", daemon=True).start()

    def stop_renewing(self) -> None:
        """Ends the thread; the lease is held until it expires."""
        self._is_done.set()

    def release(self) -> None:
        """Leaves the run to other processes, if this process still holds the lease."""
        self.stop_renewing()
        with self._lock, limit_retries(RELEASE_SECONDS):
            if not self._lost and self.generation:
                self._try_write(replace(self._mine, is_released=True), self._object.etag)

    def read(self) -> LeaseContent | None:
        """Returns the lease as it is on the store; None if there is none."""
        found = self._read()
        return found[0] if found else None

    def _renew_periodically(
        self, on_lost: Callable[[LeaseLostError], None], is_done: threading.Event
    ) -> None:
        while not is_done.wait(self.seconds / 4):
            try:
                with limit_retries(self.seconds / 4):
                    self.renew()
            except LeaseLostError as error:
                if not is_done.is_set():
                    on_lost(error)
                return
            except StoreError as error:  # an outage: whether the lease is lost shows after it
                logger.info("the lease is not renewed: %s", error)
            if self._is_handed_over:
                return

    def _wait_for_expiry(self, current: LeaseContent, etag: str, notify: Callable[[str], None]) -> None:
        """Waits until another's lease has expired.

        Raises:
            LeaseHeldError: Its holder renews it.
        """
        remaining = current.seconds - self._measure_age() + TIME_RESOLUTION
        if remaining <= 0:
            return
        notify(
            f"{self.run} was trained by a process on {current.host}: waiting {remaining:.0f} s "
            "to see whether it has ended"
        )
        if self._object.watch(etag, remaining, min(1.0, current.seconds / 20)) == "replaced":
            raise LeaseHeldError(
                "a run that nobody is training",
                f"out={self.run} (trained by a process on {current.host})",
                "wait until it ends, or stop it",
            )

    def _measure_age(self) -> float:
        """Returns the seconds since the lease was written, by the clock of the store alone."""
        probe = self.run / f"{LEASE}-{self.holder}"
        write_bytes(probe, b"the time of the store\n")
        now = stat(probe)
        delete(probe)
        info = stat(self.uri)
        if now is None or info is None:
            return 0.0
        return max((now.modified - info.modified).total_seconds(), 0.0)

    def _read(self) -> tuple[LeaseContent, str] | None:
        found = self._object.read()
        return None if found is None else (parse_lease(found[0], self.uri), found[1])

    def _try_write(self, content: LeaseContent, replaced: str | None) -> bool:
        """Writes the lease in place of a version, None for no object; returns whether it was still there."""
        began = read_clock()
        if not self._object.try_write(content.to_json(), replaced):
            return False
        self._mine = content
        self._renewed_at = began
        return True

    def describe_loss(self, current: LeaseContent | None) -> LeaseLostError:
        """Returns the error for a run that another process has taken over.

        Args:
            current: The lease of that process; None if the lease was removed.
        """
        holder = f"a process on {current.host}" if current else "nobody: its lease was removed"
        return LeaseLostError(
            "a run that no other process continues",
            f"out={self.run} (now trained by {holder})",
            "let that process go on; this one stops and leaves the store as it is",
        )
