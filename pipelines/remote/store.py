"""Reads, writes and lists objects: every request has a time limit and retries, and fails in one sentence."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pipelines.errors import ConfigError
from pipelines.remote.client import open_client
from pipelines.remote.errors import (
    AccessDeniedError,
    ConflictError,
    CorruptObjectError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
    translate_error,
)
from pipelines.remote.retry import Retries, retry
from pipelines.remote.uri import Uri
from pipelines.storage import replace_file

__all__ = [
    "AccessDeniedError",
    "ConflictError",
    "CorruptObjectError",
    "ObjectInfo",
    "ObjectMissingError",
    "StoreError",
    "StoreUnavailableError",
    "delete",
    "download",
    "exists",
    "has_objects",
    "list_folder",
    "list_objects",
    "read_bytes",
    "read_range",
    "read_version",
    "stat",
    "upload",
    "write_bytes",
]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Pieces in which a download is hashed and written.
DOWNLOAD_CHUNK = 1 << 20
# Parts of an upload, of which several are sent at a time. A store takes at most 10,000 parts.
UPLOAD_PART = 8 << 20
UPLOAD_PARTS_AT_A_TIME = 8
MAX_PARTS = 9_000
LIST_CHUNK = 1_000
# Types with which a browser shows objects that it opens from the store.
LISTED = "listed "  # how tags begin that are made from a listing without generations
CONTENT_TYPES = {
    ".css": "text/css",
    ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
    ".yaml": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows about an object.

    Attributes:
        uri: Address of the object.
        size: Size in bytes.
        etag: Tag of this version of the content, for `if_match`; empty where a web server has none. Listings
            of Google Cloud Storage have no generations: their tags also tell versions apart, but no write
            matches them.
        modified: Time of the last write, by the clock of the store.
    """

    uri: Uri
    size: int
    etag: str
    modified: datetime


def stat(uri: Uri) -> ObjectInfo | None:
    """Returns size and version of an object, or None if it does not exist.

    Raises:
        StoreError: The store denies access or does not respond.
    """
    client = open_client(uri)
    try:
        meta = _request(lambda: client.head(uri.key), uri)
    except ObjectMissingError:
        return None
    return _describe(uri, meta)


def exists(uri: Uri) -> bool:
    """Returns whether there is an object at the URI; a prefix of objects is none."""
    return stat(uri) is not None


def has_objects(prefix: Uri) -> bool:
    """Returns whether there is any object below the prefix."""
    return next(list_objects(prefix), None) is not None


def list_objects(prefix: Uri) -> Iterator[ObjectInfo]:
    """Yields all objects below a prefix, however deep, a page at a time.

    The order is the store's: by key on S3, GCS and Azure; folder by folder on SeaweedFS and in directory
    buckets of S3 Express. It is the same every time. Markers of empty folders are left out.

    Raises:
        ConfigError: The server has no listings (HTTP).
        StoreError: The bucket is missing, or the store denies access or does not respond.
    """
    _refuse_read_only(prefix, "list")
    return drop_markers(_list_pages(prefix))


def list_folder(prefix: Uri) -> tuple[list[str], list[ObjectInfo]]:
    """Returns the names of the folders directly below a prefix, and the objects there, both sorted by name.

    Raises:
        ConfigError: The server has no listings (HTTP).
        StoreError: The bucket is missing, or the store denies access or does not respond.
    """
    _refuse_read_only(prefix, "list")
    client = open_client(prefix)
    result = _request(lambda: client.list_with_delimiter(prefix.key or None), prefix)
    folders = {path.rstrip("/").rpartition("/")[2] for path in result["common_prefixes"]}
    objects = []
    for meta in result["objects"]:
        info = _describe(Uri(prefix.scheme, prefix.bucket, meta["path"]), meta)
        is_marker = info.size == 0 and info.uri.name in folders
        if info.uri != prefix and not is_marker:
            objects.append(info)
    return sorted(folders), sorted(objects, key=lambda info: info.uri.key)


def read_bytes(uri: Uri, limit: int | None = None) -> bytes:
    """Returns the whole content of an object.

    Args:
        uri: Address of the object.
        limit: Size in bytes above which the object is refused instead of read into memory.

    Raises:
        CorruptObjectError: The object is larger than the limit.
        StoreError: The object is missing, or the store denies access or does not respond.
    """
    content, _ = read_version(uri, limit)
    return content


def read_version(uri: Uri, limit: int | None = None) -> tuple[bytes, str]:
    """Returns the content of an object, and its tag for a later `if_match`. See `read_bytes`."""
    client = open_client(uri)

    def read() -> tuple[bytes, str]:
        response = client.get(uri.key)
        size = response.meta["size"]
        if limit is not None and size > limit:
            raise CorruptObjectError(
                f"at most {limit} bytes in {uri}",
                f"size={size}",
                "check that the address names the right object",
            )
        return bytes(response.bytes()), _read_tag(uri, response.meta)

    return _request(read, uri)


def read_range(uri: Uri, start: int, size: int) -> bytes:
    """Returns `size` bytes of an object from offset `start`.

    Raises:
        CorruptObjectError: The object ends before.
        StoreError: The object is missing, or the store denies access or does not respond.
    """
    if size == 0:
        return b""
    client = open_client(uri)
    content = bytes(_request(lambda: client.get_range(uri.key, start=start, length=size), uri))
    if len(content) != size:
        raise CorruptObjectError(
            f"{start + size} bytes in {uri}", f"size={start + len(content)}", "upload the object again"
        )
    return content


def download(uri: Uri, path: Path, size: int | None = None, sha256: str | None = None) -> None:
    """Downloads an object to a temporary file next to `path`, and moves it there when it is verified.

    A transfer that breaks resumes where it broke, at the same version of the object. Content that differs
    from the recorded size or digest is downloaded once more.

    Args:
        uri: Address of the object.
        path: File to create or replace; its directory is created.
        size: Size in bytes that the object must have.
        sha256: SHA-256 in hexadecimal that the content must have.

    Raises:
        CorruptObjectError: Size or digest differ, twice.
        StoreError: The object is missing, or the store denies access or does not respond.
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, durable=False) as temporary:
        try:
            _download_verified(uri, temporary, size, sha256)
        except CorruptObjectError as error:
            logger.warning("%s: %s; downloading it again", uri, error.received)
            _download_verified(uri, temporary, size, sha256)


def upload(path: Path, uri: Uri, if_absent: bool = False, if_match: str | None = None) -> str:
    """Uploads a file. Readers see the old object or the whole new one.

    Args:
        path: File to upload; large ones are sent in parts, several at a time.
        uri: Address of the object.
        if_absent: Whether to fail if there is an object already. The file is then sent in one request.
        if_match: Tag of the version to replace; fails if the object has another one. Sent in one request.

    Returns:
        Tag of the new version.

    Raises:
        ConflictError: The condition does not hold.
        ConfigError: The address is read-only.
        StoreError: The bucket is missing, or the store denies access or does not respond.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    if if_absent or if_match is not None or size <= UPLOAD_PART:
        return write_bytes(uri, path.read_bytes(), if_absent, if_match)
    _refuse_read_only(uri, "write")
    client = open_client(uri)
    part = max(UPLOAD_PART, -(-size // MAX_PARTS))

    def send() -> Any:
        return client.put(
            uri.key,
            path,
            attributes=_choose_attributes(uri),
            chunk_size=part,
            max_concurrency=UPLOAD_PARTS_AT_A_TIME,
        )

    return _read_tag(uri, _request(send, uri))


def write_bytes(uri: Uri, data: bytes, if_absent: bool = False, if_match: str | None = None) -> str:
    """Writes an object in one request. See `upload`.

    Of several writers with the same condition, one succeeds and the others receive a `ConflictError`. When
    a response was lost, the object is read back, and equal content counts as written: where it matters whose
    write it was, let the content identify its writer.
    """
    _refuse_read_only(uri, "write")
    attributes = _choose_attributes(uri)
    if not if_absent and if_match is None:
        client = open_client(uri)

        def send() -> Any:
            return client.put(uri.key, data, attributes=attributes, use_multipart=False)

        return _read_tag(uri, _request(send, uri))
    if if_match is not None and if_match.startswith(LISTED):
        raise ConflictError(
            f"an unchanged {uri}", f"tag={if_match} (of a listing)", "read the object before it is replaced"
        )
    mode: Any = "create" if if_absent else {"version" if uri.scheme == "gs" else "e_tag": if_match}
    # The client must not repeat the request by itself: the second attempt would meet the first one's object.
    client = open_client(uri, retries=False)
    retries = Retries(uri)
    while True:
        try:
            result = client.put(uri.key, data, attributes=attributes, mode=mode, use_multipart=False)
            return _read_tag(uri, result)
        except _client_errors() as error:
            failure = translate_error(error, uri)
            if isinstance(failure, ConflictError):
                return _confirm_write(uri, data, failure, is_first=retries.count == 0)
            retries.pause_after(error)


def delete(uri: Uri) -> None:
    """Deletes an object; does nothing if there is none.

    Raises:
        ConfigError: The address is read-only.
        StoreError: The bucket is missing, or the store denies access or does not respond.
    """
    _refuse_read_only(uri, "delete")
    client = open_client(uri)
    try:
        _request(lambda: client.delete(uri.key), uri)
    except ObjectMissingError:
        if not uri.key:
            raise


def drop_markers(objects: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    """Yields the objects without the empty ones, such as consoles create, that stand for a folder.

    A marker is listed directly before the objects in its folder.
    """
    waiting: ObjectInfo | None = None
    for info in objects:
        if waiting is not None and not info.uri.key.startswith(f"{waiting.uri.key}/"):
            yield waiting
        waiting = None
        if info.size == 0:
            waiting = info
        else:
            yield info
    if waiting is not None:
        yield waiting


def _list_pages(prefix: Uri) -> Iterator[ObjectInfo]:
    """Yields what the store lists; after a failure, it resumes after the last object."""
    client = open_client(prefix)
    retries = Retries(prefix)
    last: str | None = None
    while True:
        try:
            for chunk in client.list(prefix.key or None, offset=last, chunk_size=LIST_CHUNK):
                retries.restart()
                for meta in chunk:
                    last = meta["path"]
                    info = _describe(Uri(prefix.scheme, prefix.bucket, last), meta)
                    if info.uri != prefix:
                        yield info
            return
        except _client_errors() as error:
            retries.pause_after(error)


def _confirm_write(uri: Uri, data: bytes, failure: ConflictError, is_first: bool) -> str:
    """Returns the tag of an object written by an attempt without a response, else raises the failure."""
    if is_first:
        raise failure
    content, tag = read_version(uri)
    if content != data:
        raise failure
    return tag


def _download_verified(uri: Uri, path: Path, size: int | None, sha256: str | None) -> None:
    digest = _transfer(uri, path, size)
    if sha256 is not None and digest != sha256:
        raise CorruptObjectError(f"SHA-256 {sha256} of {uri}", f"sha256={digest}", "upload the object again")


def _transfer(uri: Uri, path: Path, expected_size: int | None) -> str:
    """Writes an object to a file, unless it has another size; returns its SHA-256 in hexadecimal."""
    from obstore.exceptions import NotSupportedError, PreconditionError

    client = open_client(uri)
    retries = Retries(uri)
    furthest = 0
    with path.open("wb") as file:
        digest = hashlib.sha256()
        position = 0
        tag: str | None = None
        while True:
            try:
                resume: Any = {"range": {"offset": position}, "if_match": tag} if position else None
                response = client.get(uri.key, options=resume)
                tag = response.meta["e_tag"]
                size = response.meta["size"]
                if expected_size is not None and size != expected_size:
                    # Before a byte is written: a larger object may exceed the space reserved for it.
                    raise CorruptObjectError(
                        f"{expected_size} bytes in {uri}", f"size={size}", "upload the object again"
                    )
                for chunk in response.stream(min_chunk_size=DOWNLOAD_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    position += len(chunk)
                    if position > furthest:
                        furthest = position
                        retries.restart()
                if position >= size:
                    return digest.hexdigest()
            except (PreconditionError, NotSupportedError):
                # The object was replaced meanwhile, or the server sends whole objects only.
                file.seek(0)
                file.truncate()
                digest = hashlib.sha256()
                position = 0
                tag = None
            except _client_errors() as error:
                retries.pause_after(error)


def _request(operation: Callable[[], Result], uri: Uri) -> Result:
    return retry(operation, uri, _client_errors())


def _client_errors() -> tuple[type[Exception], ...]:
    from obstore.exceptions import BaseError

    return (BaseError, FileNotFoundError, ValueError)


def _describe(uri: Uri, meta: Any) -> ObjectInfo:
    return ObjectInfo(uri, int(meta["size"]), _read_tag(uri, meta), meta["last_modified"])


def _choose_attributes(uri: Uri) -> dict[str, str]:
    content_type = CONTENT_TYPES.get(uri.suffix.lower())
    return {"Content-Type": content_type} if content_type else {}


def _read_tag(uri: Uri, meta: Any) -> str:
    """Returns what identifies a version for conditional writes: on GCS its generation, else its tag."""
    tag: str | None = meta["version"] if uri.scheme == "gs" else meta["e_tag"]
    if not tag and uri.scheme == "gs" and "last_modified" in meta:
        return f"{LISTED}{meta['e_tag'] or ''} {meta['last_modified'].isoformat()} {meta['size']}"
    if tag and uri.scheme == "az" and not tag.startswith('"'):
        return f'"{tag}"'  # Azure's listings leave out the quotes, which its responses and conditions have
    return tag or ""


def _refuse_read_only(uri: Uri, action: str) -> None:
    if uri.is_read_only:
        raise ConfigError(
            f"a store that can {action}: s3://, gs:// or az://",
            f"location={uri}",
            "use such a store or a local path; http:// and https:// are read-only",
        )
