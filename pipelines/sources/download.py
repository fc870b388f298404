"""Archives from the web, `https://HOST/PATH/FILE.zip#sha256=DIGEST`: downloaded once, then read from disk.

The file is stored in `$XDG_CACHE_HOME/glassbox/downloads` (or `~/.cache/...`) under its digest, once that has
been verified. Only the command that builds downloads it; workers read it from the cache. On a cluster, set
XDG_CACHE_HOME to a directory that all nodes share.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from pipelines.errors import ConfigError, DataError
from pipelines.sources.archive import SUFFIXES, ArchiveSource, find_archive_kind, open_archive
from pipelines.sources.base import SOURCES
from pipelines.storage import hash_file, lock_file

ATTEMPTS = 4  # number of attempts in a row without new bytes
BACKOFF = 1.0  # seconds; the wait doubles with every further attempt
MAX_WAIT = 60.0  # longest wait in seconds, even if a server asks for a longer one
TIMEOUT = 30.0  # seconds without a byte
MAX_BYTES = 2**41  # 2 TiB, more than any public set of images in one file: the server misbehaves
CHUNK_BYTES = 2**20
LOG_SECONDS = 10.0  # interval between two lines about the progress
TEMPORARY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another attempt

logger = logging.getLogger(__name__)


@SOURCES.register("https")
def open_https(argument: str) -> ArchiveSource:
    """Opens an archive on the web: `//HOST/PATH/FILE.zip#sha256=DIGEST` with 64 hexadecimal digits.

    Raises:
        ConfigError: The address is not that of an archive, holds a password, or lacks the digest.
        DataError: The file cannot be downloaded, or has another digest; see also `open_archive`.
    """
    address, _, fragment = f"https:{argument}".partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    if not fragment.startswith("sha256=") or not re.fullmatch("[0-9a-f]{64}", digest):
        public = _strip_secrets(address)
        fix = f"write {public}#sha256= and the 64 hexadecimal digits that 'sha256sum' prints for the file"
        raise ConfigError("an address with the SHA-256 of the file", f"source={public}#{fragment}", fix)
    return open_download(address, digest)


def open_download(address: str, digest: str, name: str | None = None) -> ArchiveSource:
    """Downloads an archive if it is not in the cache, and opens it.

    Args:
        address: Address of the archive, `https://...`.
        digest: SHA-256 of the file in hexadecimal.
        name: Name of the source; None for the address without its query, which may hold a password.
    """
    source = open_archive(str(download_file(address, digest)))
    return replace(source, name=name or f"{_strip_secrets(address)}#sha256={digest}")


def download_file(address: str, digest: str) -> Path:
    """Downloads a file to the cache, unless it is there, and returns its path.

    An earlier download that was interrupted is resumed.

    Args:
        address: Address of the archive, `https://...`.
        digest: SHA-256 of the file in hexadecimal.

    Raises:
        ConfigError: The address is not that of an archive, or holds a password; or the cache cannot be
            written.
        DataError: The file cannot be downloaded, or has another digest.
    """
    parts = urlsplit(address)
    kind = find_archive_kind(parts.path)
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or kind is None:
        expected = f"https://HOST/PATH/FILE without a password, FILE being one of {', '.join(SUFFIXES)}"
        raise ConfigError(expected, f"source={_strip_secrets(address)}", "correct the address")
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
    cache = root / "glassbox" / "downloads"
    path = cache / f"{digest}{kind}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock_file(path.with_suffix(".lock")):  # another process may be downloading the same file
            if not path.exists():
                _download_and_verify(address, digest, path)
    except OSError as error:
        fix = "free space, change permissions, or set XDG_CACHE_HOME to another directory"
        received = f"{cache}: {error.strerror or error}"
        raise ConfigError("a cache directory that can be written", received, fix) from None
    return path


def _download_and_verify(address: str, digest: str, path: Path) -> None:
    """Downloads to a file next to `path`, and moves it there once its digest has been verified."""
    part = path.with_name(f"{path.name}.part")
    was_resumed = part.exists()
    _Download(address, part).run()
    actual = hash_file(part)
    if actual != digest and was_resumed:  # the earlier download may have been of another file
        part.unlink()
        _Download(address, part).run()
        actual = hash_file(part)
    if actual != digest:
        part.unlink()
        fix = "ask the publisher for the right digest; do not use the file"
        received = f"{_strip_secrets(address)}: sha256={actual}"
        raise DataError(f"a file with sha256={digest}", received, fix)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


class _Download:
    """The download of one file, resumed until it is complete or attempts bring no new bytes.

    Args:
        address: Address of the file, `https://...`.
        part: File to write to; bytes that it already holds are not downloaded again.
    """

    def __init__(self, address: str, part: Path) -> None:
        self.address = address
        self.part = part
        self._session = _open_session()
        self._version: str | None = None  # the server's ETag of the file

    def run(self) -> None:
        """Downloads what is missing.

        Raises:
            DataError: The server refuses, or all attempts failed.
        """
        retry = _build_retry()
        longest = self._get_size()
        while True:
            response = None
            try:
                response = self._request()
                if response.status_code not in TEMPORARY_STATUS:
                    if self._receive(response):
                        return
                    reason = "the connection was lost"
                else:
                    reason = f"HTTP {response.status_code} {response.reason}"
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                cause = _find_cause(error)
                if isinstance(cause, ssl.SSLCertVerificationError):
                    reason = f"{cause}; SSL_CERT_FILE may name your own authority"
                    raise self._build_error(reason) from None
                is_lost = isinstance(cause, urllib3.exceptions.ProtocolError)
                reason = "the connection was lost" if is_lost else str(cause)
            finally:
                if response is not None:
                    response.close()

            size = self._get_size()
            if size > longest:
                longest = size
                retry = _build_retry()
            try:
                retry = retry.increment("GET", self.address)
            except urllib3.exceptions.MaxRetryError:
                raise self._build_error(reason) from None
            logger.warning("%s: %s after %d bytes; trying again", _strip_secrets(self.address), reason, size)
            retry.sleep(response.raw if response is not None else None)

    def _request(self) -> requests.Response:
        """Requests the bytes that are missing."""
        headers = {"Accept-Encoding": "identity"}  # ranges and the digest are those of the file itself
        size = self._get_size()
        if size:
            headers["Range"] = f"bytes={size}-"
            if self._version:
                headers["If-Range"] = self._version  # a file that changed is sent whole
        return self._session.get(self.address, headers=headers, stream=True, timeout=TIMEOUT)

    def _receive(self, response: requests.Response) -> bool:
        """Appends the body of a response to the part, and tells whether the part is complete."""
        if response.status_code == 416:
            # Nothing is missing; or the file is shorter now, which the check of its digest reveals.
            return True
        if response.status_code not in (200, 206):
            raise self._build_error(f"HTTP {response.status_code} {response.reason}")
        size = self._get_size()
        content_range = response.headers.get("Content-Range", "")
        is_resumed = response.status_code == 206 and content_range.startswith(f"bytes {size}-")
        if response.status_code == 206 and not is_resumed:
            self.part.unlink()
            return False

        tag = response.headers.get("ETag", "")
        self._version = tag if tag.startswith('"') else None  # weak tags identify no bytes
        length = response.headers.get("Content-Length")
        total = None
        if length:
            total = int(length) + (size if is_resumed else 0)
        with self.part.open("ab" if is_resumed else "wb") as file:
            self._copy(response.raw, file, total)
            return total is None or file.tell() >= total

    def _copy(self, body: Any, file: IO[bytes], total: int | None) -> None:
        """Copies a body of unknown or known length to a file."""
        logger.info(
            "downloading %s: %s bytes, from byte %d",
            _strip_secrets(self.address),
            total or "unknown",
            file.tell(),
        )
        if total is not None and total > MAX_BYTES:
            raise self._build_error(f"{total} bytes are more than {MAX_BYTES}")
        limit = total or MAX_BYTES
        logged = time.monotonic()
        while chunk := body.read(CHUNK_BYTES, decode_content=False):
            if file.tell() + len(chunk) > limit:
                raise self._build_error(f"the server sends more than {limit} bytes")
            file.write(chunk)
            if time.monotonic() > logged + LOG_SECONDS:
                logged = time.monotonic()
                share = f", {100 * file.tell() / total:.0f} %" if total else ""
                logger.info("%d bytes%s", file.tell(), share)

    def _get_size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _build_error(self, reason: str) -> DataError:
        fix = (
            "check the address and the network and start again; "
            "or download the file by other means and write archive:FILE"
        )
        return DataError("a file that can be downloaded", f"{_strip_secrets(self.address)} ({reason})", fix)


class _HttpsAdapter(HTTPAdapter):  # type: ignore[misc]
    """Also trusts the certificates of the system, or those of SSL_CERT_FILE."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, ssl_context=ssl.create_default_context())

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, **options, ssl_context=ssl.create_default_context())


def _open_session() -> requests.Session:
    """Opens a session for https only, redirects included."""
    session = requests.Session()
    session.adapters.clear()
    session.mount("https://", _HttpsAdapter())
    session.hooks["response"].append(_check_redirect)
    return session


def _check_redirect(response: requests.Response, **options: Any) -> None:
    """Refuses redirects that leave https.

    Raises:
        DataError: The response redirects to another scheme.
    """
    if not response.is_redirect:
        return
    target = urljoin(response.url, response.headers["Location"])
    if urlsplit(target).scheme.lower() != "https":
        received = f"{_strip_secrets(response.url)} leads to {_strip_secrets(target)}"
        fix = (
            "ask the publisher for an address that stays on https; "
            "or download the file by other means and write archive:FILE"
        )
        raise DataError("redirects to https only", received, fix)


def _build_retry() -> Retry:
    """Builds the retry policy: waits as long as the server asks, or twice as long after every attempt."""
    return Retry(total=ATTEMPTS - 1, backoff_factor=BACKOFF, retry_after_max=int(MAX_WAIT))


def _find_cause(error: BaseException) -> BaseException:
    """Finds the innermost error: the outer ones of requests and urllib3 quote the address with its query."""
    while True:
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = error.args[0] if error.args else None
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _strip_secrets(address: str) -> str:
    """Returns an address without its query and without a name and password before the host."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
