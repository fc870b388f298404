"""Where a run is trained: in a local folder, or in one that is mirrored to a store under a lease."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, TrainingError
from pipelines.remote.errors import ObjectMissingError, StoreError
from pipelines.remote.store import ObjectInfo, delete, read_bytes, stat, write_bytes
from pipelines.remote.uri import Location, Uri
from pipelines.storage import lock_file, write_atomically
from pipelines.text import print_lines
from service.checkpoint_record import sort_checkpoints
from service.mirror.fetch import check_exists, list_remote_files, pull_run, refresh_record
from service.mirror.folder import Record, find_local_folder, set_aside, take_snapshot
from service.mirror.lease import LeaseContent, LeaseLostError, RunLease
from service.mirror.mirror import STOP, Mirror
from service.mirror.plan import is_progress, list_complete
from service.runs import CONFIG, METRICS, STATUS, Run

FOLLOW_SECONDS = 2.0  # between looks at a run that is trained on another host
Settings = dict[str, Any]


class RunOutput:
    """A run in a local folder, which all workers share.

    Args:
        run: The run directory.
        name: Its name in messages and commands.

    Attributes:
        run: The local run directory.
        name: Its name in messages and commands.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name

    @property
    def loss(self) -> LeaseLostError | None:
        """The error if another process has taken over the run; None if not."""
        return None

    def start(self) -> None:
        """Starts the upload of the run that has been created or opened."""

    def hand_over(self, attempt: int) -> Settings | None:
        """Leaves the run to the workers; returns what they need to open it, None for the local folder alone.

        Args:
            attempt: Number of groups of workers before this one.
        """
        return None

    def take_back(self) -> None:
        """Takes the run back after the workers have ended."""

    def discard(self) -> None:
        """Removes a run that could not start."""
        self.run.remove()


class StoreOutput(RunOutput):
    """A run on a store, which is trained in a local folder of the cache.

    Args:
        uri: Address of the run.
    """

    def __init__(self, uri: Uri) -> None:
        super().__init__(Run(find_local_folder(uri)), str(uri))
        self.uri = uri
        self._record = Record.load(self.run.path)
        self._lease = RunLease(uri)
        self._mirror = Mirror(self.run, uri, self._lease, self._record)
        self._follower: Follower | None = None
        self._lost: LeaseLostError | None = None
        self._unreachable: StoreError | None = None  # why the run could not be taken back

    @property
    def loss(self) -> LeaseLostError | None:
        """The error if another process has taken over the run; None if not."""
        return self._lost or self._mirror.loss

    def open_new(self) -> None:
        """Acquires the lease of a run that does not exist yet.

        Raises:
            ConfigError: There is something at this address, in the store or saved on this host.
            LeaseHeldError: Another process is creating a run there.
            StoreError: The store denies access or does not respond.
        """
        self._check_free()
        if self.run.has_checkpoints() and has_unsaved_changes(self.run, self._record):
            raise ConfigError(
                "an output that does not exist yet",
                f"out={self.name} (a run that is not uploaded yet, saved at {self.run.path})",
                "upload it with 'glassbox train --resume', or remove that folder",
            )
        self._acquire()
        try:
            self._check_free()
        except ConfigError:
            self._lease.release()
            raise
        if self.run.path.exists():
            self.run.remove()
        self._replace_record(Record())

    def open_existing(self) -> None:
        """Acquires the lease of a run, and brings the local folder up to date.

        Raises:
            ConfigError: There is no run at this address.
            LeaseHeldError: Another process trains the run.
            StoreError: The store denies access or does not respond.
        """
        if not self.run.exists():
            check_exists(self.uri, list_remote_files(self.uri))
        previous = self._acquire()
        try:
            self._update_folder(previous)
        except ConfigError:
            self._lease.release()
            raise

    def start(self) -> None:
        """Starts the upload of the run that has been created or opened."""
        self._adopt_record()
        delete(self.uri / STOP)
        self.run.update_status(mirror={"uri": self.name, "state": "mirrored"})
        self._mirror.start()

    def hand_over(self, attempt: int) -> Settings | None:
        """Leaves the run to the workers; returns what they need to open it.

        Args:
            attempt: Number of groups of workers before this one.
        """
        failure = self._mirror.finish() or self._unreachable
        if failure:
            raise failure
        if self.loss:
            raise self.loss
        delete(self.uri / STOP)
        self._lease.allow_handover()
        self._follower = Follower(self.uri, self.run, self._lease)
        self._follower.start()
        names = list_complete(take_snapshot(self.run).files.versions)
        return {
            "uri": self.name,
            "session": self._lease.session,
            "folder": self._lease.holder,
            "newest": next(reversed(sort_checkpoints(names)), None),
            "attempt": f"{self._lease.session}-{attempt}",
        }

    def take_back(self) -> None:
        """Takes the run back after the workers have ended, with what they have written.

        Raises:
            StoreError: The store denies access or does not respond, and the run is on another host.
        """
        if self._follower:
            self._follower.stop()
            self._follower = None
        record = Record.load(self.run.path)
        is_shared = record.holder != self._record.holder
        try:
            current = self._lease.read()
            if current and current.session != self._lease.session:
                self._lost = self._lease.describe_loss(current)
                return
            previous = self._acquire()
            was_trained = previous is not None and previous.holder != self._lease.holder
            if was_trained and not is_shared:
                pull_run(self.uri, self.run, record)
            self._replace_record(record)
            self.start()
        except StoreError as error:
            self._unreachable = error
            if not is_shared:
                raise

    def discard(self) -> None:
        """Removes a run that could not start, from the store too."""
        self._mirror.finish()
        names = list_remote_files(self.uri)
        if list_complete(names) or self.loss:
            return
        for name in names:
            delete(self.uri / name)
        self.run.remove()

    def close(self) -> StoreError | None:
        """Uploads what is left, and leaves the run to other processes.

        Returns:
            The failure of the store if the run is not uploaded; None if it is, or the lease was lost.
        """
        if self._follower:
            self._follower.stop()
        failure = self._mirror.finish() or self._unreachable
        if failure and self.run.path.exists():
            state = {"uri": self.name, "state": "behind", "local": str(self.run.path)}
            self.run.update_status(mirror=state)
        self._lease.stop_renewing()
        if failure is None and self.loss is None:
            with suppress(StoreError):  # it expires
                self._lease.release()
        return failure

    def _acquire(self) -> LeaseContent | None:
        """Acquires the lease. Its holder is dead if it trained in the folder that this process has locked."""
        previous = self._lease.acquire(lambda lease: lease.holder == self._record.holder)
        self._lease.start_renewing(self._mirror.lose)
        return previous

    def _adopt_record(self) -> None:
        self._record.holder = self._lease.holder
        self._record.generation = self._lease.generation
        self._record.save(self.run.path)

    def _replace_record(self, record: Record) -> None:
        self._record = record
        self._mirror = Mirror(self.run, self.uri, self._lease, record)
        self._lease.start_renewing(self._mirror.lose)

    def _check_free(self) -> None:
        """Checks that there is nothing at the address of a new run."""
        names = list_remote_files(self.uri)
        if CONFIG in names:
            fix = "continue it with 'glassbox train --resume', choose another --out or remove it"
            raise ConfigError("an output that does not exist yet", f"out={self.name} (a run)", fix)
        if names:
            raise ConfigError(
                "an output that does not exist yet",
                f"out={self.name} ({names[0]} and others)",
                "choose another --out or remove it",
            )

    def _update_folder(self, previous: LeaseContent | None) -> None:
        """Brings the local folder up to date with the store, unless this folder has the newest state."""
        names = list_remote_files(self.uri)
        own = (self._record.holder, self._record.generation)
        if previous is None:
            is_newest_here = CONFIG not in names
        else:
            is_newest_here = (previous.holder, previous.generation) == own
        if self.run.exists() and is_newest_here:
            refresh_record(self.uri, self.run, self._record)
            return
        update_folder(self.uri, self.run, self._record)


def update_folder(uri: Uri, run: Run, record: Record) -> None:
    """Turns a local folder into the run on the store; a newer state in the folder is moved aside.

    Args:
        uri: Address of the run.
        run: The local run directory.
        record: What the folder knows about the run on the store; changed, but not saved.

    Raises:
        ConfigError: There is no run at this address.
        StoreError: The store denies access or does not respond.
    """
    on_store = sort_checkpoints(list_complete(list_remote_files(uri)))
    on_disk = sort_checkpoints(list_complete(take_snapshot(run).files.versions)) if run.exists() else []
    if on_disk and on_store and sort_checkpoints({on_disk[-1], on_store[-1]})[-1] != on_store[-1]:
        place = set_aside(run.path)
        record.files.clear()
        print_lines(
            f"{uri} was continued elsewhere: {on_disk[-1]} of this host is not used, and kept at {place}"
        )
    for name in pull_run(uri, run, record):
        print_lines(f"{name} is damaged on the store: continuing from the one before it")


class Follower:
    """Follows a run that is trained on another host: shows its progress, and passes stop requests on.

    Does nothing while the workers train in the folder of this process.

    Args:
        uri: Address of the run.
        run: The local run directory of the driver.
        lease: Lease of the session.
    """

    def __init__(self, uri: Uri, run: Run, lease: RunLease) -> None:
        self._uri = uri
        self._run = run
        self._lease = lease
        self._etags: dict[str, str | None] = {}
        self._has_passed_stop = False
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._is_done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._is_done.wait(FOLLOW_SECONDS):
            is_shared = Record.load(self._run.path).holder != self._lease.holder
            if is_shared:
                continue
            with suppress(StoreError, OSError):  # an outage: the next round tries again
                self._pass_stop()
                for name in (METRICS, STATUS):
                    self._fetch(stat(self._uri / name), name)

    def _pass_stop(self) -> None:
        reason = self._run.stop_requested()
        if reason and not self._has_passed_stop:
            write_bytes(self._uri / STOP, reason.encode())
            self._has_passed_stop = True

    def _fetch(self, info: ObjectInfo | None, name: str) -> None:
        if info is None or self._etags.get(name) == info.etag:
            return
        with suppress(ObjectMissingError):
            content = read_bytes(info.uri)
            if not self._is_done.is_set():
                write_atomically(self._run.path / name, content, durable=False)
                self._etags[name] = info.etag


@contextmanager
def open_output(location: Location, is_new: bool, command: Callable[[str], str]) -> Iterator[RunOutput]:
    """Opens the place where a run is trained, for the length of a block.

    Args:
        location: Local path or address of the run.
        is_new: Whether the run is created; otherwise it is resumed.
        command: Returns the command that resumes a run with some name, for messages.

    Raises:
        ConfigError: A new run exists already; an old one does not; or another process trains it.
        StoreError: The store denies access or does not respond.
        TrainingError: The run is not uploaded at the end of the block; it is saved on this host.
    """
    if isinstance(location, Path):
        yield RunOutput(Run(location), str(Run(location).path))
        return
    if location.is_read_only:
        raise ConfigError(
            "an output that can be written", f"out={location}", "use s3://, gs://, az:// or a local path"
        )
    with _lock_folder(location):
        output = StoreOutput(location)
        if is_new:
            output.open_new()
        else:
            output.open_existing()
        try:
            yield output
        except BaseException:
            failure = output.close()
            if failure:
                print_lines(_describe_local(output, failure, command))
            raise
        failure = output.close()
        if output.loss:
            raise output.loss
        if failure:
            raise TrainingError(
                "a store that takes the run",
                f"{failure.received}, saved at {output.run.path}",
                f"upload it with: {command(output.name)}",
            )


def _describe_local(output: StoreOutput, failure: StoreError, command: Callable[[str], str]) -> str:
    return (
        f"{output.name} does not have the end of the run ({failure.received}): it is saved at "
        f"{output.run.path}; upload it with: {command(output.name)}"
    )


def _lock_folder(uri: Uri) -> AbstractContextManager[None]:
    """Locks the local folder of a run against other processes of this host."""
    folder = find_local_folder(uri)
    folder.parent.mkdir(parents=True, exist_ok=True)
    refusal = ConfigError("a run that nobody is training", f"out={uri}", "wait until it ends, or stop it")
    return lock_file(folder.with_name(f"{folder.name}.lock"), refusal)


@contextmanager
def open_in_worker(settings: Settings, is_chief: bool) -> Iterator[Run]:
    """Opens a run on a store in a worker, for the length of a block.

    A worker on the host of the driver shares its folder; any other fetches the run from the store. The first
    worker takes the lease over from the driver, and uploads the run.

    Args:
        settings: What `StoreOutput.hand_over` returned.
        is_chief: Whether this is the worker that writes the run.

    Raises:
        StoreError: The store denies access or does not respond.
        TrainingError: The newest checkpoint is not on the store; or another process has taken over the run.
    """
    from pipelines.remote.uri import parse_location

    uri = parse_location(settings["uri"])
    if not isinstance(uri, Uri):
        raise TypeError(f"{uri} is not on a store")
    run = Run(find_local_folder(uri))
    is_shared = Record.load(run.path).holder == settings["folder"]
    with ExitStack() as stack:
        if not is_shared:
            _open_folder(uri, run, settings)
        if is_chief:
            stack.enter_context(_mirror_in_worker(uri, run, settings["session"], is_shared))
        yield run


def _open_folder(uri: Uri, run: Run, settings: Settings) -> None:
    """Brings the folder of this host up to date, once for all of its workers."""
    folder = run.path
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(folder.with_name(f"{folder.name}.lock")):
        record = Record.load(folder)
        if record.opened == settings["attempt"]:
            return
        update_folder(uri, run, record)
        record.opened = settings["attempt"]
        record.save(folder)
        run.withdraw_stop()
        names = sort_checkpoints(list_complete(take_snapshot(run).files.versions))
    newest = next(reversed(names), None)
    if newest != settings["newest"]:
        raise TrainingError(
            f"the checkpoint {settings['newest']} on the store",
            f"out={uri} (newest whole checkpoint: {newest})",
            "continue with --resume on the host that saved it",
        )


@contextmanager
def _mirror_in_worker(uri: Uri, run: Run, session: str, is_shared: bool) -> Iterator[None]:
    lease = RunLease(uri, session)
    record = Record.load(run.path)
    mirror = Mirror(run, uri, lease, record)
    lease.acquire(lambda held: False)
    lease.start_renewing(mirror.lose)
    record.holder = lease.holder
    record.generation = lease.generation
    record.save(run.path)
    mirror.start()
    try:
        yield
    except BaseException:
        mirror.finish()
        lease.stop_renewing()
        if mirror.loss:
            raise mirror.loss from None
        raise
    failure = mirror.finish()
    lease.stop_renewing()
    if mirror.loss:
        raise mirror.loss
    if failure and not is_shared:
        raise TrainingError(
            "a store that takes the run",
            f"{failure.received}, saved at {run.path} on {lease.host}",
            "upload it from that host with 'glassbox train --resume'",
        )


def has_unsaved_changes(run: Run, record: Record) -> bool:
    """Tells whether checkpoints, metrics or the model of a local folder are not on the store."""
    versions = take_snapshot(run).files.versions
    changed = [name for name, version in versions.items() if record.versions.get(name) != version]
    return any(not is_progress(name) for name in changed)
