"""Serves the reports and comparisons below a directory over HTTP, and nothing else in it."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from aiohttp import web

from pipelines.errors import ConfigError
from pipelines.storage import MAX_TEXT_BYTES
from pipelines.text import print_lines
from service.report.pages.index import GENERATOR as INDEX_GENERATOR
from service.report.pages.scripts import load_scripts
from service.report.pages.view_files import is_view_file
from service.report.publish import (
    GENERATOR,
    MANIFEST,
    PAGE,
    PAGE_START_BYTES,
    PICTURES,
    VIEWS,
    read_generator,
)

CONTENT_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
# What is served, by path below the directory of runs; names of pictures and views contain a digest.
KINDS = {
    "index": re.compile(re.escape(PAGE)),
    "page": re.compile(rf".+/{re.escape(PAGE)}"),
    "manifest": re.compile(rf".+/{re.escape(MANIFEST)}"),
    "picture": re.compile(rf".+/{PICTURES}/[\w.-]+-[0-9a-f]{{12}}\.(jpg|png|webp)"),
    "view": re.compile(rf".+/{VIEWS}/[\w-]+-[0-9a-f]{{12}}\.js"),
}
METHODS = ("GET", "HEAD")
SHUTDOWN_SECONDS = 5.0  # for requests in progress
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "glassbox",
    "X-Content-Type-Options": "nosniff",
}
KEEP = "private, max-age=31536000, immutable"  # the content of such a file never changes
REVALIDATE = "private, no-cache"


@dataclass(frozen=True)
class ServedFile:
    """A file that may be served.

    Attributes:
        path: The file, without links.
        kind: What it is: `index`, `page`, `manifest`, `picture` or `view`.
    """

    path: Path
    kind: str


def serve_reports(root: Path, host: str, port: int) -> None:
    """Serves the reports below a directory until the process is interrupted or terminated.

    Args:
        root: Directory of runs, with the index page in it.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.

    Raises:
        ConfigError: There is no such directory, or the address cannot be used.
    """
    if not root.is_dir():
        raise ConfigError(
            "a directory of runs", f"DIR={root}", "name the directory of 'glassbox report --all'"
        )
    try:
        with suppress(web.GracefulExit, KeyboardInterrupt):
            asyncio.run(_serve(root.resolve(), host, port))
    except (OSError, OverflowError) as error:  # OverflowError: there is no such port
        fix = "choose another --host or --port"
        raise ConfigError("an address that is free", f"{host}:{port} ({error})", fix) from None


async def _serve(root: Path, host: str, port: int) -> None:
    runner = web.ServerRunner(ReportServer(root), handle_signals=True, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        name = f"[{host}]" if ":" in host else host
        print_lines(f"Serving {root} at http://{name}:{runner.addresses[0][1]}/, until CTRL+C")
        await asyncio.Event().wait()  # until a signal ends it
    finally:
        await runner.cleanup()


class ReportServer(web.Server):
    """Answers every request, malformed ones too, with a file that is served or an error, and with `HEADERS`.

    Args:
        root: Directory of runs, with the index page in it and without links in its path.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(self.respond)
        self._root = root
        self.headers = HEADERS | {"Content-Security-Policy": build_server_policy()}

    def __call__(self) -> web.RequestHandler:
        """Returns the protocol of a new connection."""
        return _Connection(self, loop=asyncio.get_running_loop(), access_log=None)

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Responds to a well-formed request."""
        if request.method not in METHODS:
            response = self.build_error(HTTPStatus.METHOD_NOT_ALLOWED)
            response.headers["Allow"] = ", ".join(METHODS)
            return response
        opened = await asyncio.to_thread(_open, self._root, request.rel_url.raw_path)
        if opened is None:
            return self.build_error(HTTPStatus.NOT_FOUND)
        response = _build_response(request, *opened)
        response.headers.update(self.headers)
        return response

    def build_error(self, status: int) -> web.Response:
        """Builds the response of an error, which repeats nothing of the request."""
        status = HTTPStatus(status)
        return web.Response(status=status, text=f"{status.value}: {status.phrase}", headers=self.headers)


class _Connection(web.RequestHandler):
    """The protocol of a connection, whose errors have the headers of all other responses."""

    def __init__(self, server: ReportServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Responds to a malformed request, which is not worth a traceback in the log, or to a bug of ours."""
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        response = self._server.build_error(status)
        response.force_close()
        return response


def build_server_policy() -> str:
    """Builds the Content-Security-Policy of the server.

    Whatever a page allows, only the scripts of this version of glassbox run, and the views of reports, which
    the server checks.
    """
    digests = " ".join(f"'{script.digest}'" for script in load_scripts())
    return (
        "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
        f"script-src 'self' {digests}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _build_response(request: web.BaseRequest, served: ServedFile, file: BinaryIO) -> web.Response:
    status = os.fstat(file.fileno())
    tag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
    is_known = any(known.value in (tag, "*") for known in request.if_none_match or ())
    if is_known:
        file.close()
    response = web.Response(
        status=HTTPStatus.NOT_MODIFIED if is_known else HTTPStatus.OK,
        body=None if is_known else file,  # sent in pieces
        content_type=CONTENT_TYPES[served.path.suffix],
        charset="utf-8" if served.kind in ("index", "page", "view") else None,
    )
    response.etag = tag
    response.headers["Cache-Control"] = KEEP if served.kind in ("picture", "view") else REVALIDATE
    return response


def _open(root: Path, address: str) -> tuple[ServedFile, BinaryIO] | None:
    """Opens the file that an address names; returns None if it names nothing that is served."""
    served = find_file(root, address)
    if served is None:
        return None
    with suppress(OSError):
        # A pipe must not block, and a link that took the place of the file is not followed.
        descriptor = os.open(served.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        file = os.fdopen(descriptor, "rb")
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and _is_genuine(served, file):
            file.seek(0)
            return served, file
        file.close()
    return None


def find_file(root: Path, address: str) -> ServedFile | None:
    """Finds the file that an address names.

    A link is followed if it leads to a file that would be served under its own address too.

    Args:
        root: Directory of runs, without links.
        address: Path of a URL, percent-encoded, which starts with a slash.

    Returns:
        The file, or None if the address names nothing that is served.
    """
    names = [unquote(name) for name in address[1:].split("/")]
    if names[-1] == "":
        names[-1] = PAGE
    if any("/" in name or "\0" in name for name in names):
        return None
    requested = classify("/".join(names))
    if not requested:
        return None
    try:
        path = root.joinpath(*names).resolve(strict=True)
    except (OSError, RuntimeError):  # there is no such file, or a loop of links
        return None
    if not path.is_relative_to(root) or classify(path.relative_to(root).as_posix()) != requested:
        return None
    return ServedFile(path, requested)


def classify(path: str) -> str:
    """Returns what a path below the directory of runs names, one of `KINDS`; empty if it is not served.

    Args:
        path: Relative path, with slashes.
    """
    if any(not name or name.startswith(".") for name in path.split("/")):  # hidden, or out of the directory
        return ""
    return next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(path)), "")


def _is_genuine(served: ServedFile, file: BinaryIO) -> bool:
    """Tells whether a file is what its name says: a page of ours, or a part of one."""
    if served.kind == "index":
        return INDEX_GENERATOR in _read_start(file)
    if served.kind == "page":
        return GENERATOR.search(_read_start(file)) is not None
    folder = served.path.parent if served.kind == "manifest" else served.path.parent.parent
    if read_generator(folder / PAGE) == "":  # the file belongs to something else, such as a shard set
        return False
    if served.kind != "view":
        return True
    is_plausible = os.fstat(file.fileno()).st_size <= MAX_TEXT_BYTES
    return is_plausible and is_view_file(served.path.name, file.read())


def _read_start(file: BinaryIO) -> str:
    return file.read(PAGE_START_BYTES).decode(errors="replace")
