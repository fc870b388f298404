"""The local folder of a run on a store: its place in the cache folder, its files, and what was uploaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.remote.folder import find_cache_folder
from pipelines.remote.uri import Uri
from pipelines.storage import write_atomically
from service.checkpoint import describe_newest
from service.mirror.plan import LocalFiles, Retention
from service.runs import METRICS, REPORT, STATUS, Run

RECORD = ".mirror.json"
TRAINED = "runs"  # folders below the cache folder: runs that are trained on this host,
COPIES = "readers"  # and copies for those who only read them


def find_local_folder(run: Uri, purpose: str = TRAINED) -> Path:
    """Returns the local folder of a run; its last part is the name of the run.

    Args:
        run: Address of the run.
        purpose: `TRAINED` or `COPIES`.
    """
    digest = hashlib.sha256(str(run).encode()).hexdigest()[:16]
    return find_cache_folder() / purpose / digest / run.name


@dataclass
class UploadedFile:
    """An object of the run.

    Attributes:
        etag: Version of the object on the store.
        version: Version of the local file it was uploaded from or fetched as; None if it is not known.
    """

    etag: str | None
    version: str | None


@dataclass
class Record:
    """What a local folder knows about the run on the store; kept in the folder.

    Attributes:
        holder: The last process on this folder that held the lease of the run.
        generation: Generation of that lease.
        opened: Attempt of a training for which the folder was brought up to date.
        epochs: Lines of metrics on the store.
        files: Every object of the run, by its name.
    """

    holder: str = ""
    generation: int = 0
    opened: str = ""
    epochs: int = 0
    files: dict[str, UploadedFile] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Reads the record of a folder; an empty one if there is none."""
        try:
            content = json.loads((folder / RECORD).read_text())
            files = {name: UploadedFile(**entry) for name, entry in content.pop("files").items()}
            return cls(**content, files=files)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Writes the record into a folder."""
        write_atomically(folder / RECORD, json.dumps(asdict(self)), durable=False)

    @property
    def versions(self) -> dict[str, str | None]:
        """Local versions of all objects, by name."""
        return {name: file.version for name, file in self.files.items()}


@dataclass(frozen=True)
class Snapshot:
    """The files of a run directory at one time.

    Attributes:
        files: Versions and checkpoints, for the plan of the uploads.
        contents: Content of the small files that depend on others, read before the others were listed.
        epochs: Lines of metrics.
    """

    files: LocalFiles
    contents: dict[str, bytes]
    epochs: int


def take_snapshot(run: Run) -> Snapshot:
    """Lists the files of a run that are mirrored: all but hidden ones and the report.

    The training writes the model, then the checkpoint, then the line of metrics, then the end of the run into
    the status. They are read in the opposite order, so that what the metrics and the status name is there.

    Args:
        run: The local run directory, which may be written at the same time.
    """
    versions: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    for name in (STATUS, METRICS):
        version = read_version(run.path / name)
        try:
            contents[name] = (run.path / name).read_bytes()
        except FileNotFoundError:
            continue
        # If the file was replaced in between, the next snapshot has another version.
        if version is not None:
            versions[name] = version
    newest = describe_newest(run.checkpoints)
    others = _list_versions(run.path)
    while newest != (
        newer := describe_newest(run.checkpoints)
    ):  # a checkpoint was saved while they were listed
        newest = newer
        others = _list_versions(run.path)
    versions |= others
    retention = Retention(newest.name, newest.best, newest.keep) if newest else None
    return Snapshot(LocalFiles(versions, retention), contents, contents.get(METRICS, b"").count(b"\n"))


def _list_versions(folder: Path) -> dict[str, str]:
    versions = {
        name: read_version(folder / name) for name in list_files(folder) if name not in (STATUS, METRICS)
    }
    return {name: version for name, version in versions.items() if version is not None}


def list_files(folder: Path) -> list[str]:
    """Lists the files of a run directory by their names below it, without hidden ones and the report."""
    names = []
    for directory, subfolders, files in os.walk(folder):
        is_top = Path(directory) == folder
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and not (is_top and name == REPORT)
        ]
        for name in files:
            if not name.startswith("."):
                names.append((Path(directory) / name).relative_to(folder).as_posix())
    return sorted(names)


def is_mirrored(name: str) -> bool:
    """Tells whether the mirror uploads an object of a run: unless hidden or of the report."""
    parts = name.split("/")
    return parts[0] != REPORT and not any(part.startswith(".") for part in parts)


def read_version(path: Path) -> str | None:
    """Returns what changes whenever a file is written: its size and time; None if there is no file."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{status.st_size}-{status.st_mtime_ns}"


def set_aside(folder: Path) -> Path:
    """Moves a local folder whose state is not on the store out of the way, and returns its new place.

    Only the last one that was set aside is kept.
    """
    target = folder.with_name(f"{folder.name}.not-uploaded")
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(folder, target)
    return target
