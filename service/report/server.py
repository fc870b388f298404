"""Serves the reports below a directory over HTTP, and nothing else in it."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from aiohttp import web

from pipelines.errors import ConfigError
from pipelines.storage import MAX_TEXT_BYTES
from service.report.pages.index import GENERATOR as INDEX_GENERATOR
from service.report.pages.scripts import load_scripts
from service.report.pages.view_files import is_view_file
from service.report.publish import GENERATOR, MANIFEST, PAGE, PAGE_START_BYTES, PICTURES, VIEWS
from service.runs import REPORT

ROOT = web.AppKey("root", Path)
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
    "page": re.compile(rf".+/{REPORT}/{re.escape(PAGE)}"),
    "manifest": re.compile(rf".+/{REPORT}/{re.escape(MANIFEST)}"),
    "picture": re.compile(rf".+/{REPORT}/{PICTURES}/[\w.-]+-[0-9a-f]{{12}}\.(jpg|png|webp)"),
    "view": re.compile(rf".+/{REPORT}/{VIEWS}/[\w-]+-[0-9a-f]{{12}}\.js"),
}
SHUTDOWN_SECONDS = 5.0  # for requests in progress
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
        port: Port to listen on.

    Raises:
        ConfigError: There is no such directory, or the address cannot be used.
    """
    if not root.is_dir():
        raise ConfigError(
            "a directory of runs", f"DIR={root}", "name the directory of 'glassbox report --all'"
        )
    try:
        web.run_app(
            build_application(root),
            host=host,
            port=port,
            access_log=None,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
    except (OSError, OverflowError) as error:  # OverflowError: there is no such port
        fix = "choose another --host or --port"
        raise ConfigError("an address that is free", f"{host}:{port} ({error})", fix) from None


def build_application(root: Path) -> web.Application:
    """Builds the web application that serves the reports below a directory.

    Args:
        root: Directory of runs, with the index page in it.
    """
    application = web.Application()
    application[ROOT] = root.resolve()
    application.router.add_get("/{path:.*}", _respond)  # GET and HEAD
    policy = build_server_policy()

    async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(
            {
                "Content-Security-Policy": policy,
                "Cross-Origin-Opener-Policy": "same-origin",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Referrer-Policy": "no-referrer",
                "Server": "glassbox",
                "X-Content-Type-Options": "nosniff",
            }
        )

    application.on_response_prepare.append(add_headers)
    return application


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


async def _respond(request: web.Request) -> web.StreamResponse:
    opened = await asyncio.to_thread(_open, request.app[ROOT], request.rel_url.raw_path)
    if opened is None:
        raise web.HTTPNotFound
    served, file = opened
    status = os.fstat(file.fileno())
    tag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
    is_known = any(known.value in (tag, "*") for known in request.if_none_match or ())
    if is_known:
        file.close()
    response = web.Response(
        status=304 if is_known else 200,
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
    """Tells whether a file is what its name says: pages of other programs and other scripts are not."""
    if served.kind == "view":
        is_plausible = os.fstat(file.fileno()).st_size <= MAX_TEXT_BYTES
        return is_plausible and is_view_file(served.path.name, file.read())
    if served.kind not in ("index", "page"):
        return True
    start = file.read(PAGE_START_BYTES).decode(errors="replace")
    return INDEX_GENERATOR in start if served.kind == "index" else GENERATOR.search(start) is not None
