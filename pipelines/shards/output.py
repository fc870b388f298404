"""Where the workers of a build put complete shards and their markers: a directory, or an object store."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.errors import ConfigError
from pipelines.processes import is_running
from pipelines.remote.uri import Location, Uri
from pipelines.settings import Spec
from pipelines.shards.manifest import StoredFile
from pipelines.storage import write_atomically

WORK_FOLDER = ".building"  # inside the shard set, until it is complete
DESCRIPTION_FILE = "build.json"  # in the work folder: which source and options are being built
SCRATCH_PREFIX = "glassbox-build-"  # of the folders for shards on their way to an object store


class BuildDescription(Spec):
    """What `build.json` says about a build that is not complete.

    Attributes:
        digest: Identifies the build: equal digests give equal bytes.
        about: Parts of the build by name, so that messages can say how two builds differ.
        made_directory: Whether the build created its directory.
    """

    digest: str
    about: dict[str, str]
    made_directory: bool = False


class BuildOutput(Protocol):
    """Destination of the shards of one build. It is small, and sent to the workers with every task."""

    @property
    def out(self) -> Location:
        """Directory or URI of the shard set."""

    def check_visible(self) -> None:
        """Makes sure that this worker sees the build.

        Raises:
            ConfigError: The directory is on another host, or the build is over.
        """

    def open_scratch(self) -> AbstractContextManager[Path]:
        """Yields a local directory in which to write a shard."""

    def publish(self, scratch: Path, files: Sequence[StoredFile], marker_name: str, marker: bytes) -> None:
        """Moves the files of a complete shard to the shard set, then writes its marker.

        Args:
            scratch: Directory that holds the files.
            files: Files of the shard; none if it has no rows.
            marker_name: Name of the marker.
            marker: Content of the marker.
        """


@dataclass(frozen=True)
class FolderOutput:
    """A directory that every worker sees under the same path.

    Attributes:
        out: Directory of the shard set.
        work: Directory inside of it for shards in progress, and for the markers.
    """

    out: Path
    work: Path

    def check_visible(self) -> None:
        """Makes sure that this worker sees the work directory."""
        if not self.work.is_dir():
            received = f"{self.out} (not on {socket.gethostname()}, or removed)"
            fix = "choose a shared directory or an object store"
            raise ConfigError("an output directory that every worker sees", received, fix)

    @contextmanager
    def open_scratch(self) -> Iterator[Path]:
        """Yields the work directory, which is on the file system of the shard set."""
        yield self.work

    def publish(self, scratch: Path, files: Sequence[StoredFile], marker_name: str, marker: bytes) -> None:
        """Renames the files into the shard set, then writes the marker."""
        for file in files:
            os.replace(scratch / file.file, self.out / file.file)
        # Not durable: without its marker, a shard is built again.
        write_atomically(self.work / marker_name, marker, durable=False)


@dataclass(frozen=True)
class StoreOutput:
    """A prefix of an object store.

    Attributes:
        out: URI of the shard set.
        work: URI below it for the markers.
    """

    out: Uri
    work: Uri

    def check_visible(self) -> None:
        """Makes sure that the build still has its description in the store."""
        from pipelines.remote.store import stat

        if stat(self.work.parent / DESCRIPTION_FILE) is None:
            received = f"{self.out} (the description of the build was removed)"
            raise ConfigError("a build that is not over", received, "start the build again")

    @contextmanager
    def open_scratch(self) -> Iterator[Path]:
        """Yields an empty directory for temporary files, which is removed afterwards."""
        remove_abandoned_scratch()
        folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, scratch: Path, files: Sequence[StoredFile], marker_name: str, marker: bytes) -> None:
        """Uploads the files, then the marker."""
        from pipelines.remote.store import upload, write_bytes

        for file in files:
            upload(scratch / file.file, self.out / file.file)
            (scratch / file.file).unlink()
        write_bytes(self.work / marker_name, marker)


def remove_abandoned_scratch() -> None:
    """Removes the temporary folders of workers on this host that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        process = folder.name.removeprefix(SCRATCH_PREFIX).partition("-")[0]
        if process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def report_write_errors(output: BuildOutput | Location) -> Iterator[None]:
    """Turns errors of the operating system, such as a full disk, into a `ConfigError`."""
    try:
        yield
    except OSError as error:
        out = output if isinstance(output, Path | Uri) else output.out
        reason = error.strerror or str(error)
        if error.filename:
            reason += f" ({error.filename})"
        fix = "free space or change permissions and run the same command again, or choose another place"
        raise ConfigError("an output directory that can be written", f"out={out}: {reason}", fix) from None


def build_refusal(out: Location) -> ConfigError:
    """Returns the error for an output in which another builder is at work."""
    return ConfigError(
        "an output directory without another builder",
        f"out={out} (another builder is at work)",
        "wait until it ends, or stop it",
    )


def build_occupied_error(out: Location) -> ConfigError:
    """Returns the error for an output that holds something else."""
    return ConfigError(
        "an output that does not exist yet", f"out={out}", "choose another directory or remove it"
    )


def parse_description(text: bytes, file: Location) -> BuildDescription:
    """Parses the description of an unfinished build.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        return BuildDescription.model_validate_json(text)
    except ValueError:
        raise build_damaged_error(file) from None


def build_damaged_error(file: Location) -> ConfigError:
    """Returns the error for a description of an unfinished build that cannot be read or is damaged."""
    return ConfigError(
        "a description of the unfinished build in JSON",
        f"file={file} (damaged)",
        "restore the file, or choose another output",
    )


def build_differing_error(
    out: Location, earlier: BuildDescription, requested: BuildDescription
) -> ConfigError:
    """Returns the error for an output with an unfinished build of another source or other options.

    Args:
        out: Directory or URI of the shard set.
        earlier: The unfinished build.
        requested: The build that was requested.
    """
    changed = [name for name, value in requested.about.items() if earlier.about.get(name) != value]
    return ConfigError(
        "an output directory of its own",
        f"out={out} (an unfinished build, which differs: {', '.join(changed)})",
        "repeat the source and options of that build to finish it, or remove the directory",
    )
