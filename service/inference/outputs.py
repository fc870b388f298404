"""Output files of a command: written locally, and uploaded when complete if they belong in a store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.remote.files import resolve_location
from pipelines.remote.store import StoreError, delete, has_objects, upload
from pipelines.remote.uri import Location, Uri


@dataclass(frozen=True)
class Output:
    """An output file.

    Attributes:
        path: Local file to write, whose directory exists.
        location: Where the user finds it: the same file, or a URI.
    """

    path: Path
    location: Location

    def locate_companion(self, suffix: str) -> Location:
        """Returns where the user finds the file next to the output that has another suffix."""
        if isinstance(self.location, Path):
            return self.location.with_suffix(suffix)
        return self.location.parent / f"{self.location.stem}{suffix}"


@contextmanager
def open_output(out: str | Path | Uri, *suffixes: str, companions: Sequence[str] = ()) -> Iterator[Output]:
    """Yields an output file; one that belongs in a store is uploaded when the block succeeds.

    Args:
        out: The file to write; an existing one is replaced.
        suffixes: Suffixes that are supported, such as `.csv`.
        companions: Suffixes of files that the block may write next to it. They are uploaded before it, and
            also when the block fails, since they tell why.

    Raises:
        ConfigError: The suffix is not supported, or the output cannot be written.
        StoreError: The bucket is missing, or the store denies access or does not respond.
    """
    location = resolve_location(out)
    if location.suffix not in suffixes:
        kinds = " or ".join(suffixes)
        raise ConfigError(
            f"an output that ends in {kinds}", f"out={out}", f"choose a name that ends in {kinds}"
        )
    if isinstance(location, Path):
        _check_path(location, out)
        yield Output(location, location)
        return
    if location.is_read_only:
        raise ConfigError(
            "an output that can be written: a path, or s3://, gs:// or az://",
            f"out={out}",
            "choose another --out",
        )
    has_objects(location)  # raises for a missing bucket or wrong credentials, before anything is computed
    with _stage_output(location, companions) as output:
        yield output


@contextmanager
def _stage_output(uri: Uri, companions: Sequence[str]) -> Iterator[Output]:
    """Yields a local file and uploads it, see `open_output`."""
    folder = Path(tempfile.mkdtemp(prefix="glassbox-output-"))
    output = Output(folder / uri.name, uri)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield output
        finally:
            for suffix in companions:
                _upload_companion(output.path.with_suffix(suffix), uri.parent / f"{uri.stem}{suffix}")
        try:
            upload(output.path, uri)
        except StoreError as error:
            stack.pop_all()  # the folder may hold the work of hours
            fix = f"upload the result, which is in {output.path}, or start again"
            raise type(error)(error.expected, error.received, fix) from None


def _upload_companion(path: Path, uri: Uri) -> None:
    """Uploads a companion, or removes that of an earlier output."""
    if path.is_file():
        upload(path, uri)
    else:
        delete(uri)


def _check_path(path: Path, out: str | Path | Uri) -> None:
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a directory" if path.is_dir() else "its directory does not exist"
        raise ConfigError(
            "an output file that can be written",
            f"out={out} ({problem})",
            "create its directory, or choose another --out",
        )
