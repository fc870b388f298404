"""Finds and opens the files of a source, on a disk or in an object store alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from pipelines.errors import ConfigError
from pipelines.remote.ranges import map_ahead, open_object
from pipelines.remote.store import ObjectInfo, stat
from pipelines.remote.uri import Location, Uri, is_uri, parse_location

T = TypeVar("T")
U = TypeVar("U")

STATS = 64  # requests in flight while many objects are looked up: they are tiny


def parse_source_location(source: str, argument: str) -> Location:
    """Returns the location of a source: an absolute path, or a URI of an object store.

    Args:
        source: Kind of the source for messages, such as `csv`.
        argument: Path or URI as the user wrote it.

    Raises:
        ConfigError: The scheme is unknown, or is `http` or `https`, whose files cannot be listed or pinned.
    """
    location = parse_location(argument)
    if isinstance(location, Path):
        return location.expanduser().absolute()
    if location.is_read_only:
        fix = (
            "write https://HOST/FILE.zip#sha256=DIGEST for an archive on the web, or download the files and "
            "give their path"
        )
        raise ConfigError(
            "a source on a disk or in an object store (s3, gs, az)", f"source={source}:{location}", fix
        )
    return location


def open_location(location: Location, buffer_bytes: int) -> BinaryIO:
    """Opens a file or an object for reading at any position.

    Args:
        location: Path or URI.
        buffer_bytes: Bytes that a short read requests from a store.

    Raises:
        OSError: A local file cannot be opened.
        GlassboxError: An object does not exist, or cannot be read.
    """
    return location.open("rb") if isinstance(location, Path) else open_object(location, buffer_bytes)


def map_files(
    paths: Iterable[str],
    function: Callable[[T], U],
    items: Iterable[T],
    get_bytes: Callable[[T], int] | None = None,
) -> Iterator[U]:
    """Calls a function on items in their order; if one of the files is in a store, on threads ahead of use.

    Args:
        paths: Files that the function reads, as paths and URIs.
        function: Reads one item.
        items: Arguments of the calls.
        get_bytes: Size of the result of an item, see `map_ahead`.
    """
    if any(map(is_uri, paths)):
        return map_ahead(function, items, get_bytes=get_bytes)
    return map(function, items)


def find_objects(locations: Iterable[Location]) -> list[ObjectInfo | None]:
    """Looks up many objects; None for local files and for objects that do not exist.

    Raises:
        GlassboxError: A store cannot be reached, or denies access.
    """
    return list(map_ahead(_find_object, locations, STATS))


def _find_object(location: Location) -> ObjectInfo | None:
    return stat(location) if isinstance(location, Uri) else None


def hash_version(info: ObjectInfo | None) -> int:
    """Returns 63 bits that differ between versions of an object, by its etag or its time of change."""
    if info is None:
        return 0
    return hash_etag(info.etag or str(info.modified))


def hash_etag(etag: str) -> int:
    """Returns 63 bits of a hash of an etag."""
    return int.from_bytes(hashlib.blake2b(etag.encode(), digest_size=8).digest(), "big") >> 1


def compute_stamp(locations: Iterable[Location]) -> str:
    """Returns a digest over size and version of the objects among some files; empty if there are none."""
    locations = list(locations)
    if not any(isinstance(location, Uri) for location in locations):
        return ""
    digest = hashlib.sha256()
    for info in find_objects(locations):
        digest.update(repr((info.size, hash_version(info)) if info else None).encode())
    return digest.hexdigest()
