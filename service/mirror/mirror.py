"""Uploads a run to a store in the background while it is trained, and survives outages of the store."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from textwrap import shorten

from pipelines.remote.errors import ConflictError, ObjectMissingError, StoreError, StoreUnavailableError
from pipelines.remote.retry import limit_retries
from pipelines.remote.store import delete, list_objects, read_bytes, stat, upload, write_bytes
from pipelines.remote.uri import Uri
from pipelines.text import print_lines
from service.mirror.folder import Record, Snapshot, UploadedFile, read_version, take_snapshot
from service.mirror.lease import LeaseLostError, RunLease
from service.mirror.plan import Action, RemoteFiles, Step, is_progress, is_record, plan_upload
from service.runs import CHECKPOINTS, METRICS, Run

logger = logging.getLogger(__name__)

STOP = ".stop"
POLL_SECONDS = 1.0  # between looks at the local folder
PROGRESS_SECONDS = 10.0  # between uploads of progress and events
STOP_CHECK_SECONDS = 5.0  # between checks for a stop request on the store
RETRY_SECONDS = 10.0  # of a request, before the next look at the folder
NOTICE_SECONDS = 60.0  # length of an outage after which the user is told
QUIET_SECONDS = 3.0  # after which the end of a run says what it waits for
FINAL_SECONDS = 120.0  # for which the end of a run waits for the store
# A condition can be put on an upload in one request only, which a store limits to 5 GB.
MAX_CONDITIONAL_BYTES = 4 << 30
MAX_STOP_BYTES = 10_000


class FolderChangedError(Exception):
    """A file was replaced or removed while it was uploaded; the next snapshot is whole again."""


@dataclass
class Outage:
    """Time in which the store did not take the files of the run.

    Attributes:
        began: Monotonic time of the first failure.
        reason: The last failure in one sentence.
        is_reported: Whether the user has been told.
    """

    began: float
    reason: str
    is_reported: bool = False


class Mirror:
    """The upload of one run, in a thread.

    Args:
        run: The local run directory.
        uri: Address of the run on the store.
        lease: Lease on the run, which this process holds.
        record: What is on the store already; kept up to date, and saved in the run directory.
    """

    def __init__(self, run: Run, uri: Uri, lease: RunLease, record: Record) -> None:
        self._run = run
        self._uri = uri
        self._lease = lease
        self._record = record
        self._outage: Outage | None = None
        self._loss: LeaseLostError | None = None
        self._bug: Exception | None = None
        self._failure: StoreError | None = None
        self._progress_at = 0.0
        self._stop_checked_at = 0.0
        self._should_finish = threading.Event()
        self._is_abandoned = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def loss(self) -> LeaseLostError | None:
        """The loss of the lease, after which nothing is uploaded; None while it is held."""
        return self._loss

    def start(self, read_stop: bool = True) -> None:
        """Starts the thread.

        Args:
            read_stop: Whether a stop request on the store is passed on to the run.
        """
        self._should_finish.clear()
        self._is_abandoned.clear()
        self._thread = threading.Thread(
            target=self._run_thread, args=(read_stop,), name="mirror", daemon=True
        )
        self._thread.start()

    def finish(self) -> StoreError | None:
        """Uploads what is left within `FINAL_SECONDS`, and ends the thread.

        Returns:
            The failure of the store; None if everything was uploaded, or the lease was lost.
        """
        thread = self._thread
        if thread is None:
            return self._failure
        self._thread = None
        self._should_finish.set()
        thread.join(min(QUIET_SECONDS, FINAL_SECONDS))
        if thread.is_alive():
            print_lines(f"uploading what is left of {self._uri}")
        thread.join(FINAL_SECONDS)
        self._is_abandoned.set()
        if self._bug:
            raise self._bug
        if self._loss or not thread.is_alive():
            return None
        reason = self._outage.reason if self._outage else f"no response within {FINAL_SECONDS:.0f} s"
        self._failure = StoreUnavailableError(
            "a store that takes the run", f"out={self._uri} ({reason})", "continue with --resume"
        )
        return self._failure

    def upload_all(self) -> None:
        """Uploads what has changed, in the order of its dependencies, and removes checkpoints of others.

        Raises:
            LeaseLostError: Another process has taken over the run.
            StoreError: The store denies access or does not respond.
        """
        self._adopt_checkpoints()
        while True:
            try:
                self._upload(take_snapshot(self._run), is_urgent=False)
                return
            except FolderChangedError:
                continue

    def _adopt_checkpoints(self) -> None:
        """Adds to the record what a process that has lost the run was writing when it was suspended.

        It stops before its next write, but the condition of that one, that the object is new, may have held.
        The run does not keep such a checkpoint, so that it is removed with those that are obsolete.
        """
        for info in list_objects(self._uri / CHECKPOINTS):
            self._record.files.setdefault(info.uri.relative_to(self._uri), UploadedFile(info.etag, None))

    def lose(self, error: LeaseLostError) -> None:
        """Ends all uploads, and asks the training to stop, because another process has taken over the run."""
        self._loss = error
        self._run.request_stop(str(error))

    def _run_thread(self, read_stop: bool) -> None:
        try:
            with limit_retries(RETRY_SECONDS):
                self._mirror_until_finished(read_stop)
        except LeaseLostError as error:
            self.lose(error)
        except Exception as error:  # noqa: BLE001 - raised again by `finish`, in the thread of the training
            self._bug = error

    def _mirror_until_finished(self, read_stop: bool) -> None:
        pause = 0.0
        while True:
            is_last = self._should_finish.wait(pause)
            if self._loss or self._is_abandoned.is_set():
                return
            try:
                if is_last:
                    self.upload_all()
                else:
                    self._upload_changes()
                    if read_stop:
                        self._read_stop()
                self._end_outage()
                pause = POLL_SECONDS
            except FolderChangedError:
                pause = 0.1
                continue
            except (StoreError, OSError) as error:  # a full disk ends the training, not the mirror
                self._record_failure(error.received if isinstance(error, StoreError) else str(error))
                pause = min(max(2 * pause, POLL_SECONDS), PROGRESS_SECONDS)
                if is_last and self._is_abandoned.wait(POLL_SECONDS):  # `finish` waits no longer
                    return
                continue
            if is_last:
                return

    def _upload_changes(self) -> None:
        """Uploads checkpoints, metrics and models at once, and progress and events at intervals."""
        now = time.monotonic()
        is_progress_due = now - self._progress_at >= PROGRESS_SECONDS
        self._upload(take_snapshot(self._run), is_urgent=not is_progress_due)
        if is_progress_due:
            self._progress_at = now

    def _upload(self, snapshot: Snapshot, is_urgent: bool) -> None:
        """Uploads the changes of a snapshot.

        Args:
            snapshot: The local run directory.
            is_urgent: Whether to leave out progress and events unless something else has changed.
        """
        steps = plan_upload(snapshot.files, RemoteFiles(self._record.versions, self._record.epochs))
        if is_urgent and all(is_progress(step.name) for step in steps):
            return
        for step in steps:
            self._lease.check()
            try:
                self._apply(step, snapshot)
            finally:
                # After every step, so that a process that is killed and resumed repeats one at most.
                self._record.save(self._run.path)

    def _apply(self, step: Step, snapshot: Snapshot) -> None:
        if step.action is Action.DELETE:
            delete(self._uri / step.name)
            self._record.files.pop(step.name, None)
            return
        content = snapshot.contents.get(step.name)
        if step.action is Action.SHORTEN:
            lines = (content or b"").splitlines(keepends=True)[: step.epochs]
            self._put(step.name, b"".join(lines), None)
            self._record.epochs = len(lines)
            return
        version = snapshot.files.versions[step.name]
        if content is None:
            self._put_file(step.name, version, snapshot)
            return
        self._put(step.name, content, version)
        if step.name == METRICS:
            self._record.epochs = snapshot.epochs

    def _put_file(self, name: str, version: str, snapshot: Snapshot) -> None:
        """Uploads a file.

        Raises:
            FolderChangedError: The file has changed since the snapshot; a record, also its state.
        """
        path = self._run.path / name
        try:
            is_large = path.stat().st_size > MAX_CONDITIONAL_BYTES
            if is_large:
                self._record.files[name] = UploadedFile(upload(path, self._uri / name), version)
                return
            content = path.read_bytes()
        except FileNotFoundError:
            raise FolderChangedError(name) from None
        if is_record(name):
            folder = name.rpartition("/")[0]
            for other, seen in snapshot.files.versions.items():
                if other.startswith(f"{folder}/") and read_version(self._run.path / other) != seen:
                    raise FolderChangedError(other)
        self._put(name, content, version)

    def _put(self, name: str, content: bytes, version: str | None) -> None:
        """Writes an object, on the condition that nobody else has written it."""
        uri = self._uri / name
        known = self._record.files.get(name)
        etag = known.etag if known else None
        try:
            etag = write_bytes(uri, content, if_absent=etag is None, if_match=etag)
        except ConflictError:
            # Another process has written it: one that has taken over the run, or one that was suspended. Or
            # this process has, and was killed or cut off before it learned of it.
            self._lease.renew()
            info = stat(uri)
            etag = info.etag if info else None
            etag = write_bytes(uri, content, if_absent=info is None, if_match=etag)
        self._record.files[name] = UploadedFile(etag, version)

    def _read_stop(self) -> None:
        """Passes a stop request on the store on to the run."""
        now = time.monotonic()
        if now - self._stop_checked_at < STOP_CHECK_SECONDS:
            return
        self._stop_checked_at = now
        try:
            reason = read_bytes(self._uri / STOP, MAX_STOP_BYTES).decode(errors="replace").strip()
        except ObjectMissingError:
            return
        if not self._run.stop_requested():
            self._run.request_stop(reason or "a request")

    def _record_failure(self, reason: str) -> None:
        now = time.monotonic()
        if self._outage is None:
            self._outage = Outage(now, reason)
            logger.info("%s: not uploaded: %s", self._uri, reason)
        self._outage.reason = reason
        if self._outage.is_reported or now - self._outage.began < NOTICE_SECONDS:
            return
        self._outage.is_reported = True
        local = self._run.path
        seconds = now - self._outage.began
        self._report(
            f"{self._uri} has not taken the run for {seconds:.0f} s ({shorten(reason, 160)}): "
            f"training continues, the run is saved at {local}, and is uploaded when the store responds",
            {"uri": str(self._uri), "state": "behind", "local": str(local)},
        )

    def _end_outage(self) -> None:
        outage = self._outage
        self._outage = None
        if outage and outage.is_reported:
            seconds = time.monotonic() - outage.began
            self._report(
                f"{self._uri} takes the run again, after {seconds:.0f} s: it is uploaded",
                {"uri": str(self._uri), "state": "mirrored"},
            )

    def _report(self, notice: str, state: dict[str, str]) -> None:
        """Adds a notice to the status, and how the store is doing."""
        with suppress(OSError):  # on a full disk, which ends the training
            self._run.notice(notice)
            self._run.update_status(mirror=state)
