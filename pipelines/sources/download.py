"""Archives from the web: `https://HOST/PATH/FILE.zip#sha256=DIGEST`, downloaded once and then read like any archive.

The file goes to `$XDG_CACHE_HOME/glassbox/downloads` (or `~/.cache/...`) under its digest, and only once that is right.
The command that builds downloads it; every worker then reads it there: on a cluster, point XDG_CACHE_HOME at a folder
that all of them share.
"""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from pipelines.errors import ConfigError, DataError, GlassboxError
from pipelines.sources import SOURCES
from pipelines.sources.archive import SUFFIXES, ArchiveSource, find_archive_kind, open_archive
from pipelines.storage import hash_file

ATTEMPTS = 4  # in a row that bring nothing new
BACKOFF = 1.0  # seconds before the second attempt; doubles with every further one
MAX_WAIT = 60.0  # seconds, where a server says how long to wait
TIMEOUT = 30.0  # seconds without a byte
MAX_BYTES = 2**41  # 2 TiB: more than any public set of images in one file, so a server gone wrong
CHUNK = 2**20
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # status codes that another attempt may cure

logger = logging.getLogger(__name__)


@SOURCES.register("https")
def open_https(argument: str) -> ArchiveSource:
    """Opens an archive on the web: `//HOST/PATH/FILE.zip#sha256=DIGEST` with 64 hexadecimal digits.

    Raises:
        ConfigError: The address is none of an archive, holds a password, or is without the digest.
        DataError: The file cannot be reached, or is not the one with that digest; or see `open_archive`.
    """
    address, _, fragment = f"https:{argument}".partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    if not fragment.startswith("sha256=") or not re.fullmatch("[0-9a-f]{64}", digest):
        fix = f"write {_public(address)}#sha256= and the 64 hexadecimal digits that 'sha256sum' prints for the file"
        raise ConfigError(
            "an address with the SHA-256 of the file", f"source={_public(address)}#{fragment}", fix
        )
    return open_download(address, digest)


def open_download(address: str, digest: str, name: str | None = None) -> ArchiveSource:
    """Downloads an archive if it is not in the cache yet, and opens it.

    Args:
        address: Where it lies, `https://...`.
        digest: Its SHA-256 in hexadecimal.
        name: What the source is called; else the address, without its query (which may be a password).
    """
    source = open_archive(str(downloaded(address, digest)))
    return replace(source, name=name or f"{_public(address)}#sha256={digest}")


def downloaded(address: str, digest: str) -> Path:
    """The file at an address, from the cache or the web. Goes on with what an earlier, interrupted download left.

    Raises:
        ConfigError: The address is none of an archive, or holds a password; or the cache cannot be written.
        DataError: The file cannot be reached, or is not the one with that digest.
    """
    parts = urlsplit(address)
    kind = find_archive_kind(parts.path)
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or kind is None:
        expected = f"https://HOST/PATH/FILE, the file being one of {', '.join(SUFFIXES)}, without a password"
        raise ConfigError(expected, f"source={_public(address)}", "correct the address")
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
        / "glassbox"
        / "downloads"
    )
    path = cache / f"{digest}{kind}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                _fetch(address, digest, path)
    except OSError as error:
        fix = "free space, change permissions, or set XDG_CACHE_HOME to another folder"
        raise ConfigError(
            "a cache folder that can be written", f"{cache}: {error.strerror or error}", fix
        ) from None
    return path


def _fetch(address: str, digest: str, path: Path) -> None:
    """Downloads to a file beside `path`; moves it there once its digest is right."""
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists()
    _Download(address, part).run()
    found = hash_file(part)
    if found != digest and resumed:  # what was left may have been another file's
        part.unlink()
        _Download(address, part).run()
        found = hash_file(part)
    if found != digest:
        part.unlink()
        fix = "ask the publisher for the right digest; do not use the file"
        raise DataError(f"a file with sha256={digest}", f"{_public(address)}: sha256={found}", fix)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


class _Download:
    """One file on its way: asks for what is still missing until nothing is, or nothing more comes."""

    def __init__(self, address: str, part: Path) -> None:
        self.address, self.part = address, part
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=ssl.create_default_context()), _OnlyHttps()
        )
        self._version: str | None = None  # the server's mark of the file's state

    def run(self) -> None:
        """Brings the part to its full length."""
        best = failures = 0
        while True:
            wait = 0.0
            try:
                if self._attempt():
                    return
                reason = "the connection was lost"
            except urllib.error.HTTPError as error:
                if error.code not in PASSING:
                    raise self._unreachable(f"HTTP {error.code} {error.reason}") from None
                reason, wait = f"HTTP {error.code} {error.reason}", _seconds(error.headers.get("Retry-After"))
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                ConnectionError,
                TimeoutError,
                ssl.SSLError,
            ) as error:
                cause = getattr(error, "reason", error)
                reason = str(cause) or type(cause).__name__
                if isinstance(cause, ssl.SSLCertVerificationError):
                    raise self._unreachable(f"{reason}; SSL_CERT_FILE may name your own authority") from None
            have = self.part.stat().st_size if self.part.exists() else 0
            failures = 1 if have > best else failures + 1
            best = max(best, have)
            if failures >= ATTEMPTS:
                raise self._unreachable(reason)
            wait = max(wait, BACKOFF * 2 ** (failures - 1))
            logger.warning(
                "%s: %s after %d bytes; going on in %.0f s", _public(self.address), reason, have, wait
            )
            time.sleep(wait)

    def _attempt(self) -> bool:
        """Asks once for what is missing; whether the part is whole now."""
        have = self.part.stat().st_size if self.part.exists() else 0
        request = urllib.request.Request(self.address)
        if have:
            request.add_header("Range", f"bytes={have}-")
            if self._version:
                request.add_header("If-Range", self._version)  # a file that changed comes whole
        try:
            answer = self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing is missing; or the file is shorter now, which its digest tells
                return True
            raise
        with answer:
            goes_on = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(
                f"bytes {have}-"
            )
            if answer.status == 206 and not goes_on:
                self.part.unlink()
                return False
            tag = answer.headers.get("ETag") or ""
            self._version = tag if tag.startswith('"') else None
            length = answer.headers.get("Content-Length")
            total = (have if goes_on else 0) + int(length) if length else None
            with self.part.open("ab" if goes_on else "wb") as file:
                self._copy(answer, file, total)
                return total is None or file.tell() >= total

    def _copy(self, answer: IO[bytes], file: IO[bytes], total: int | None) -> None:
        told = time.monotonic()
        logger.info(
            "downloading %s: %s bytes, from byte %d", _public(self.address), total or "unknown", file.tell()
        )
        if (total or 0) > MAX_BYTES:
            raise self._unreachable(f"{total} bytes are more than {MAX_BYTES}")
        while chunk := answer.read(CHUNK):
            if file.tell() + len(chunk) > (total or MAX_BYTES):
                raise self._unreachable("the server sends more than it said")
            file.write(chunk)
            if time.monotonic() > told + 10:
                told = time.monotonic()
                logger.info(
                    "%d bytes%s", file.tell(), f", {100 * file.tell() / total:.0f} %" if total else ""
                )

    def _unreachable(self, reason: str) -> GlassboxError:
        fix = "check the address and the network and start again; or download it elsewhere and write archive:FILE"
        return DataError("a file that can be downloaded", f"{_public(self.address)} ({reason})", fix)


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """Follows a redirect to https only."""
        if not newurl.lower().startswith("https://"):
            fix = "ask the publisher for an address that stays on https; or download it elsewhere and write archive:FILE"
            raise DataError(
                "redirects to https only", f"{_public(req.full_url)} leads to {_public(newurl)}", fix
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process download a file at a time; the others wait, and find it there."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another download of the same file")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _seconds(header: str | None) -> float:
    """What `Retry-After` says; a date counts as nothing."""
    return min(float(header), MAX_WAIT) if header and header.isdecimal() else 0.0


def _public(address: str) -> str:
    """An address without what may be secret: its query, and a name and password before the host."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
