"""Whole files wherever they are: a copy of an object in the cache folder, or the local file itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.remote.folder import find_cache_folder
from pipelines.remote.store import ObjectInfo, download, read_bytes, stat
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.storage import hash_json, lock_file, read_bounded

FOLDER = "files"  # in the cache folder
SPARE_BYTES = 2**28  # of the disk that a copy leaves free


def resolve_location(text: str | os.PathLike[str] | Uri) -> Location:
    """Returns an absolute path, or the URI of an object store.

    Args:
        text: Path or URI, or an object that stands for one, such as `glassbox.ShardSet`.

    Raises:
        ConfigError: The scheme is unknown, or the URI is not complete; see `parse_location`.
    """
    location = parse_location(text if isinstance(text, Uri) else os.fspath(text))
    return location.absolute() if isinstance(location, Path) else location


def read_file(location: Location, limit: int | None = None) -> bytes:
    """Reads a whole file.

    Args:
        location: Path or URI.
        limit: Largest size in bytes; None for any.

    Raises:
        OSError: A local file cannot be read.
        ValueError: A local file is larger than the limit.
        GlassboxError: An object cannot be read, or is larger than the limit.
    """
    if isinstance(location, Uri):
        return read_bytes(location, limit)
    return location.read_bytes() if limit is None else read_bounded(location, limit)


def is_file(location: Location) -> bool:
    """Tells whether there is a file or an object.

    Raises:
        GlassboxError: The store cannot be reached, or denies access.
    """
    return location.is_file() if isinstance(location, Path) else stat(location) is not None


def fetch_file(location: Location) -> Path:
    """Returns a local path with the content of a file; an object is downloaded to the cache folder.

    An object is downloaded once per host, whichever process asks first, and again when it has changed.

    Args:
        location: Path, which is returned as it is, or URI.

    Raises:
        ConfigError: There is no such object, or the cache folder has no room for it.
        GlassboxError: The object cannot be read.
    """
    return location if isinstance(location, Path) else fetch_object(location)[0]


def fetch_object(uri: Uri) -> tuple[Path, ObjectInfo]:
    """Returns the local copy of an object, see `fetch_file`, and size and version of the object."""
    info = stat(uri)
    if info is None:
        raise ConfigError("an object that exists", f"{uri} (no such object)", "check the address")
    version = hash_json([str(uri), info.size, info.etag or str(info.modified)])
    folder = find_cache_folder() / FOLDER / version[:32]
    path = folder / uri.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_file(folder / ".lock"):
            if not path.is_file():
                _check_room(info, folder)
                download(uri, path, info.size)
    except OSError as error:
        raise ConfigError(
            "a cache folder that can be written",
            f"{folder}: {error.strerror or error}",
            "free space, change permissions, or set GLASSBOX_CACHE to another folder",
        ) from None
    return path, info


def _check_room(info: ObjectInfo, folder: Path) -> None:
    """Refuses an object that would fill the disk.

    Raises:
        ConfigError: The disk of the cache folder has too little space.
    """
    free = shutil.disk_usage(folder).free
    if info.size + SPARE_BYTES > free:
        received = f"{info.uri}: bytes={info.size}, free={free}"
        fix = "free space, or set GLASSBOX_CACHE to a folder on a larger disk"
        raise ConfigError(f"room for the object in {folder.parent}", received, fix)
