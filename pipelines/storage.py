"""Atomic writes of files and directories, file locks and digests."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.errors import ARCHIVE_ERRORS, GlassboxError

MAX_TEXT_BYTES = 1 << 28  # of one text file; the metrics of 80,000 epochs take about 20 MB
REMOVE_ATTEMPTS = 50
REMOVE_SECONDS = 0.1  # wait between two attempts
MAX_MEMBER_OVERHEAD = 1 << 11  # bytes that a zip archive has besides the content of a member: its two headers

logger = logging.getLogger(__name__)


@contextmanager
def replace_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path, and moves the file written there to `path` when the block succeeds.

    A reader sees either the old file or the whole new one. When the block fails, nothing is left behind.

    Args:
        path: File to create or replace.
        durable: Whether to flush the file to disk before the move, so that it is whole even after a power
            failure. This can take seconds on a busy disk.
    """
    # The suffix is kept because Keras derives the file format from it.
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | str, durable: bool = True) -> None:
    """Writes a whole file or none of it; text as UTF-8. See `replace_file`."""
    with replace_file(path, durable) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yields an empty directory next to `path`, and moves it to `path` when the block succeeds.

    When the block fails, the old directory is still at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    old = path.with_name(f".old-{secrets.token_hex(4)}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            sync(entry)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder into which processes that are about to end may still be writing.

    It tries for a few seconds; what cannot be removed stays.
    """
    for _ in range(REMOVE_ATTEMPTS):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(REMOVE_SECONDS)


@contextmanager
def lock_file(path: Path, refusal: GlassboxError | None = None) -> Iterator[None]:
    """Holds an exclusive lock for the length of a block; the kernel frees it however the process ends.

    Args:
        path: File to lock, created if it is missing. A process that removes it must hold the lock.
        refusal: Error to raise at once if another process holds the lock; None to wait until it is free.

    Raises:
        GlassboxError: The refusal, if another process holds the lock.
        OSError: The file cannot be created, or its file system has no locks.
    """
    # Without a file system's locks, filelock would fall back to a file that outlives a killed process.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if refusal is not None:
            raise refusal from None
        logger.info("waiting for another process to release %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(path: Path) -> str:
    """Returns the SHA-256 of a text file that is not unreasonably large, in hexadecimal.

    Raises:
        OSError: The file is missing, a directory, or cannot be read.
        ValueError: It is larger than `MAX_TEXT_BYTES`.
    """
    return hashlib.sha256(read_bounded(path)).hexdigest()


def hash_archive(path: Path) -> str:
    """Returns the SHA-256 of a zip archive of any size, such as a model or a checkpoint, in hexadecimal.

    Raises:
        OSError: The file is missing, a directory, or cannot be read.
        ValueError: Its size is not that of its members, which is found out without reading all of it.
    """
    check_archive_size(path)
    return hash_file(path)


def check_archive_size(path: Path) -> None:
    """Checks that a zip archive has the size of its members and their headers.

    Raises:
        OSError: The file is missing, a directory, or cannot be read.
        ValueError: It is no zip archive, was truncated or enlarged, or lists bytes more than once.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError:
        raise
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"no whole zip archive: {error}") from None
    size = path.stat().st_size
    listed = sum(member.compress_size for member in members)
    if not listed <= size <= listed + MAX_MEMBER_OVERHEAD * (len(members) + 1):
        raise ValueError(f"{size:,} bytes, but a list of members with {listed:,}")


def hash_json(content: Any) -> str:
    """Returns the SHA-256 of JSON content in hexadecimal, regardless of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_bounded(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Returns the content of a file that is not unreasonably large.

    Args:
        path: Text file that somebody may have damaged, such as a manifest or a record.
        limit: Largest size in bytes.

    Raises:
        OSError: The file is missing, a directory, or cannot be read.
        ValueError: It is larger than the limit.
    """
    if path.is_file() and path.stat().st_size > limit:
        raise ValueError(f"larger than {limit >> 10} KiB")
    return path.read_bytes()


def parse_json(text: str | bytes) -> Any:
    """Parses JSON that somebody else may have written.

    Raises:
        ValueError: It is not valid, or nested so deeply that the parser gives up.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def add_digest(content: dict[str, Any], key: str = "sha256") -> dict[str, Any]:
    """Returns JSON content with a digest of it as an additional entry, which `remove_digest` checks.

    Args:
        content: Entries that can be written as JSON; an older digest among them is replaced.
        key: Name of the additional entry.
    """
    entries = {name: value for name, value in content.items() if name != key}
    stored = json.loads(json.dumps(entries))  # what will be read: lists instead of tuples, keys as text
    return entries | {key: hash_json(stored)}


def remove_digest(content: Any, key: str = "sha256") -> dict[str, Any]:
    """Returns JSON content without the digest that `add_digest` added; older versions wrote it without one.

    Args:
        content: What was read.
        key: Name of the additional entry.

    Raises:
        ValueError: The content is not an object, or is not what the digest was computed of.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__} instead of an object")
    entries = {name: value for name, value in content.items() if name != key}
    if key in content and content[key] != hash_json(entries):
        raise ValueError("the digest does not fit")
    return entries


def sync(path: Path) -> None:
    """Flushes a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
