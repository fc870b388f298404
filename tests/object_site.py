"""A small HTTP server of objects that counts requests and can hold or damage responses."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SiteFile:
    """A file of a shard set on the site, as a manifest would describe it.

    Attributes:
        file: Name of the object below the location of the set.
        bytes: Size in bytes.
        sha256: Digest of the content.
    """

    file: str
    bytes: int
    sha256: str


class ObjectSite:
    """Objects in memory, served by a thread of this process.

    Attributes:
        objects: Contents by name.
        requests: Number of requests so far, by name.
        damage: Number of responses, by name, in which the last byte will be flipped.
        gates: Events, by name, that a response waits for after half of its body.
        halves: Events, by name, that are set when half of a body has been sent.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.damage: Counter[str] = Counter()
        self.gates: dict[str, threading.Event] = {}
        self.halves: dict[str, threading.Event] = {}
        self._arrival = threading.Condition()
        self._server: Any = None

    @property
    def location(self) -> str:
        """URI of the set."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/set"

    def add_files(self, count: int, size: int) -> list[SiteFile]:
        """Adds files of random bytes; returns their descriptions."""
        files = []
        for index in range(count):
            content = np.random.default_rng([index, size]).bytes(size)
            name = f"train-{index:05d}.arrow"
            self.objects[name] = content
            files.append(SiteFile(name, size, hashlib.sha256(content).hexdigest()))
        return files

    def hold(self, name: str) -> threading.Event:
        """Makes responses for an object stop after half of the body, until the event returned is set."""
        self.gates[name] = threading.Event()
        self.halves[name] = threading.Event()
        return self.gates[name]

    def wait_for_requests(self, name: str, count: int = 1) -> None:
        """Waits until an object has been requested a number of times."""
        with self._arrival:
            assert self._arrival.wait_for(lambda: self.requests[name] >= count, timeout=60)

    @contextmanager
    def serve(self) -> Iterator[ObjectSite]:
        """Serves the objects within a block."""
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.respond(self)

            def log_message(self, *arguments: Any) -> None:
                """Prints nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            for gate in self.gates.values():
                gate.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def respond(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Sends an object, or a part of it."""
        name = handler.path.rpartition("/")[2]
        with self._arrival:
            self.requests[name] += 1
            is_damaged = self.damage[name] > 0
            self.damage[name] -= is_damaged
            self._arrival.notify_all()
        content = self.objects.get(name)
        if content is None:
            handler.send_response(404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if is_damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        part = handler.headers.get("Range")
        handler.send_response(206 if part else 200)
        total = len(content)
        if part:
            first, last = part.removeprefix("bytes=").split("-")
            end = min(int(last) + 1 if last else total, total)
            handler.send_header("Content-Range", f"bytes {first}-{end - 1}/{total}")
            content = content[int(first) : end]
        handler.send_header("ETag", f'"{hashlib.md5(self.objects[name]).hexdigest()}"')
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        half = len(content) // 2
        try:
            handler.wfile.write(content[:half])
            handler.wfile.flush()
            gate = self.gates.get(name)
            if gate is not None:
                self.halves[name].set()
                gate.wait(60)
            handler.wfile.write(content[half:])
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
