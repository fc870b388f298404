"""Writing that is whole or not at all, locks, and checksums."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import GlassboxError


@contextmanager
def replace_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a path beside `path` to write a file to; moves it there when the block succeeds.

    A reader sees the old file or the whole new one. When the block fails, nothing is left behind.

    Args:
        path: The file to replace.
        durable: Whether the file is flushed to disk before the move, so that it is whole even after the machine
            lost power. That can take seconds on a busy disk.
    """
    temporary = path.with_name(
        f".tmp-{secrets.token_hex(4)}-{path.name}"
    )  # keeps the suffix: Keras goes by it
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
    """Yields an empty directory beside `path`; when the block succeeds it takes the place of `path`.

    When the block fails, what stood at `path` still stands there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    old = path.with_name(f".old-{secrets.token_hex(4)}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            sync(written)
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


@contextmanager
def lock_file(path: Path, refusal: GlassboxError) -> Iterator[None]:
    """Holds an exclusive lock for the length of a block; the kernel frees it however the process ends.

    Args:
        path: The file to lock, made where it is missing. Whoever removes it must hold the lock, or have held it last.
        refusal: Raised at once where another process holds the lock.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_there = False
        if not is_there:  # held, or removed by its last holder between opening and locking it
            raise refusal
        yield


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(content: Any) -> str:
    """The SHA-256 of something that JSON can say, in hexadecimal; the order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Makes durable what a file holds, or what was moved into a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
