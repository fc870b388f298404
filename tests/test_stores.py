"""The fixtures of tests/stores.py: the server stores objects, and the proxy injects each fault."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from stores import Bucket, FaultProxy, S3Server, run_proxy

BODY = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def target() -> Iterator[int]:
    """Runs a server that responds to every GET with BODY, and to every PUT with the digest of its body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.respond(BODY)

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.respond(hashlib.sha256(body).hexdigest().encode())

        def respond(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def bare_proxy(target: int) -> Iterator[FaultProxy]:
    with run_proxy(target) as running:
        yield running


def fetch(proxy: FaultProxy, path: str = "/bucket/key") -> bytes:
    with urllib.request.urlopen(proxy.endpoint + path, timeout=30) as response:
        return response.read()


def test_a_request_without_fault_passes_unchanged_and_is_counted(bare_proxy):
    assert fetch(bare_proxy, "/bucket/a%20b?list-type=2") == BODY
    request = urllib.request.Request(bare_proxy.endpoint + "/bucket/up", data=BODY, method="PUT")
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.read().decode() == hashlib.sha256(BODY).hexdigest()

    assert [(entry.method, entry.key, entry.query) for entry in bare_proxy.requests] == [
        ("GET", "bucket/a b", "list-type=2"),
        ("PUT", "bucket/up", ""),
    ]
    assert bare_proxy.count_bytes("GET") == len(BODY)
    assert bare_proxy.requests[1].received == len(BODY)


def test_a_status_is_returned_as_often_as_requested(bare_proxy):
    bare_proxy.inject("status", key="bucket/k*", times=2, skip=1)
    assert fetch(bare_proxy) == BODY
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="503"):
            fetch(bare_proxy)
    assert fetch(bare_proxy) == BODY


def test_a_flipped_byte_is_the_only_difference(bare_proxy):
    bare_proxy.inject("flip", after=700_000)
    received = fetch(bare_proxy)
    assert [index for index in range(len(BODY)) if received[index] != BODY[index]] == [700_000]


def test_a_truncated_body_ends_early(bare_proxy):
    bare_proxy.inject("truncate", after=1000)
    with pytest.raises(http.client.IncompleteRead) as caught:
        fetch(bare_proxy)
    assert caught.value.partial == BODY[:1000]


def test_a_shortened_body_looks_complete(bare_proxy):
    bare_proxy.inject("shorten", after=1000)
    assert fetch(bare_proxy) == BODY[:1000]


def test_a_reset_arrives_in_the_middle_of_the_body(bare_proxy):
    bare_proxy.inject("reset", after=300_000)
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        fetch(bare_proxy)
    assert bare_proxy.requests[0].sent == 300_000


def test_a_stalled_body_does_not_end(bare_proxy):
    bare_proxy.inject("stall", after=10)
    response = urllib.request.urlopen(bare_proxy.endpoint + "/bucket/key", timeout=0.3)
    with response, pytest.raises(TimeoutError):
        response.read()


def test_latency_delays_each_request(bare_proxy):
    bare_proxy.latency = 0.2
    start = time.monotonic()
    fetch(bare_proxy)
    assert time.monotonic() - start >= 0.2


def test_an_outage_resets_open_and_new_connections(bare_proxy):
    connection = socket.create_connection(("127.0.0.1", bare_proxy.port), timeout=30)
    with bare_proxy.outage():
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected, urllib.error.URLError)):
            fetch(bare_proxy)
    assert fetch(bare_proxy) == BODY


def test_the_server_keeps_objects_and_honours_conditions(s3_server: S3Server, bucket: Bucket):
    import obstore

    bucket.put("folder/a", b"one")
    bucket.put("folder/b", b"")
    assert bucket.get("folder/a") == b"one"
    assert bucket.list_keys("folder/") == ["folder/a", "folder/b"]
    assert s3_server.create_bucket("test-other").list_keys() == []
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(bucket._open(), "folder/a", b"two", mode="create")


def test_objects_pass_through_the_proxy_with_valid_signatures(bucket: Bucket, proxy: FaultProxy):
    import obstore
    from obstore.store import S3Store

    store = S3Store(bucket.name, virtual_hosted_style_request=False)  # everything else from the environment
    obstore.put(store, "key", BODY)
    assert bytes(obstore.get_range(store, "key", start=100, length=50)) == BODY[100:150]
    assert proxy.count_requests("PUT", f"{bucket.name}/key") == 1
    assert [entry.range for entry in proxy.requests if entry.method == "GET"] == ["bytes=100-149"]
