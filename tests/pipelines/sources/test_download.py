"""Downloads from a real HTTPS server on this machine that fails in scripted ways."""

from __future__ import annotations

import datetime
import hashlib
import http.server
import io
import ipaddress
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipelines.errors import ConfigError, DataError
from pipelines.sources import cats_and_dogs, download, open_source

ROOT = Path(__file__).resolve().parents[3]


def pack_zip(tree):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in tree.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


TREE = {
    f"top/{name}/{index}.png": hashlib.shake_128(f"{name}{index}".encode()).digest(50_000)
    for name in "ab"
    for index in range(4)
}
FILE = pack_zip(TREE)
DIGEST = hashlib.sha256(FILE).hexdigest()


def write_certificate(folder):
    """Writes a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1)
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM
    no = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no))
    return folder / "cert.pem", folder / "key.pem"


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`. `script` has one entry per request, with what goes wrong."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = FILE
        self.script = []
        self.requests = []
        self.sent = 0
        self.ranges = True
        self.version = '"v1"'
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request, client_address):
        pass

    def address(self, path="/x.zip"):
        return f"https://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        step = server.script.pop(0) if server.script else {}
        if code := step.get("status"):
            self.send_response(code)
            for name, value in step.get("headers", {}).items():
                self.send_header(name, value)
            self.end_headers()
            return
        content = server.content
        requested = self.headers.get("Range")
        is_same = self.headers.get("If-Range") in (None, server.version)
        start = (
            int(re.fullmatch(r"bytes=(\d+)-", requested)[1]) if requested and server.ranges and is_same else 0
        )
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start + step.get('shift', 0)}-{len(content) - 1}/{len(content)}"
            )
        if not step.get("no_length"):
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", server.version)
        self.end_headers()
        body = content[start : step.get("drop_at", len(content))]
        self.wfile.write(body)
        server.sent += len(body)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    with Server(files) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def list_cache(tmp_path):
    return sorted(
        path.name for path in (tmp_path / "cache/glassbox/downloads").iterdir() if path.suffix != ".lock"
    )


def list_ranges(server):
    return [headers.get("Range") for _, headers in server.requests]


def fetch(server, digest=DIGEST, path="/x.zip"):
    return open_source(f"{server.address(path)}#sha256={digest}")


def test_a_file_is_downloaded_once(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = fetch(server, DIGEST.upper(), "/some%20where/x.ZIP?token=secret")
    assert source.name == f"{server.address('/some%20where/x.ZIP')}#sha256={DIGEST}"
    assert {f"top/{item.id}": item.image for item in source.read("train", 0, 8)} == TREE
    assert list_cache(tmp_path) == [f"{DIGEST}.zip"]
    assert str(len(FILE)) in caplog.text
    assert "secret" not in caplog.text
    again = fetch(server)
    assert list(again.read("train", 0, 8)) == list(source.read("train", 0, 8))
    assert [path for path, _ in server.requests] == ["/some%20where/x.ZIP?token=secret"]


@pytest.mark.parametrize("no_length", [False, True])
def test_a_lost_connection_is_resumed(server, no_length, tmp_path):
    server.script = [{"drop_at": 150_000}, {"drop_at": 300_000}]
    assert len(list(fetch(server).read("train", 0, 8))) == 8
    assert list_ranges(server) == [None, "bytes=150000-", "bytes=300000-"]
    assert [headers.get("If-Range") for _, headers in server.requests] == [None, '"v1"', '"v1"']
    assert server.sent == len(FILE)


def test_without_ranges_the_download_starts_again(server):
    server.ranges = False
    server.script = [{"drop_at": 150_000}]
    assert len(list(fetch(server).read("train", 0, 8))) == 8
    assert server.sent == 150_000 + len(FILE)


def test_a_wrong_range_is_discarded(server):
    server.script = [{"drop_at": 150_000}, {"shift": 5}]
    assert len(list(fetch(server).read("train", 0, 8))) == 8
    assert list_ranges(server) == [None, "bytes=150000-", None]


def test_a_file_that_changed_is_downloaded_again(server):
    server.content = bytes(len(FILE))
    server.script = [{"drop_at": 150_000}]
    original = server.shutdown_request

    def change(request):
        server.content = FILE
        server.version = '"v2"'
        original(request)

    server.shutdown_request = change
    assert len(list(fetch(server).read("train", 0, 8))) == 8


def write_part(tmp_path, content):
    folder = tmp_path / "cache/glassbox/downloads"
    folder.mkdir(parents=True)
    (folder / f"{DIGEST}.zip.part").write_bytes(content)


@pytest.mark.parametrize(
    ("left", "requested"),
    [
        (FILE[:1000], ["bytes=1000-"]),
        (FILE, [f"bytes={len(FILE)}-"]),
        (bytes(1000), ["bytes=1000-", None]),
        (bytes(len(FILE) + 9), [f"bytes={len(FILE) + 9}-", None]),
        (b"", [None]),
    ],
)
def test_an_interrupted_download_is_resumed(server, tmp_path, left, requested):
    write_part(tmp_path, left)
    assert len(list(fetch(server).read("train", 0, 8))) == 8
    assert list_ranges(server) == requested
    assert list_cache(tmp_path) == [f"{DIGEST}.zip"]


def test_a_wrong_digest_is_refused_and_removed(server, tmp_path):
    wrong = "0" * 64
    with pytest.raises(DataError) as caught:
        fetch(server, wrong)
    assert wrong in caught.value.expected
    assert DIGEST in caught.value.received
    assert list_cache(tmp_path) == []
    assert len(server.requests) == 1


def test_a_missing_file_is_requested_once(server, tmp_path):
    server.script = [{"status": 404}]
    with pytest.raises(DataError, match=r"HTTP 404 Not Found.*archive:FILE"):
        fetch(server)
    assert len(server.requests) == 1
    assert list_cache(tmp_path) == []


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_tried_again(server, code):
    server.script = [{"status": code}] * 3
    assert len(list(fetch(server).read("train", 0, 8))) == 8


def test_a_server_that_stays_busy_is_an_error(server):
    server.script = [{"status": 503}] * 99
    with pytest.raises(DataError, match="HTTP 503"):
        fetch(server)
    assert len(server.requests) == download.ATTEMPTS


def test_retry_after_is_respected(server, monkeypatch):
    waits = []
    # Of urllib3 alone: other threads of the process sleep as well.
    clock = SimpleNamespace(**(vars(time) | {"sleep": waits.append}))
    monkeypatch.setattr("urllib3.util.retry.time", clock)
    server.script = [
        {"status": 503, "headers": {"Retry-After": "7"}},
        {"status": 503, "headers": {"Retry-After": "9999"}},
        {"status": 503},
    ]
    fetch(server)
    assert waits == [7.0, download.MAX_WAIT, pytest.approx(0.04)]


def test_any_number_of_lost_connections_is_allowed_while_bytes_arrive(server):
    server.script = [{"drop_at": at} for at in range(10_000, 100_000, 10_000)]
    assert len(list(fetch(server).read("train", 0, 8))) == 8


def test_connections_without_new_bytes_are_an_error(server):
    server.script = [{"drop_at": 150_000}] * 99
    with pytest.raises(DataError, match="the connection was lost"):
        fetch(server)
    assert len(server.requests) == download.ATTEMPTS


def test_a_silent_server_is_an_error(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    monkeypatch.setattr(Handler, "do_GET", lambda self: time.sleep(0.5))
    with pytest.raises(DataError, match="timed out"):
        fetch(server)


def test_redirects_are_followed(server):
    server.script = [{"status": 302, "headers": {"Location": server.address("/other.zip")}}]
    assert len(list(fetch(server).read("train", 0, 8))) == 8
    assert [path for path, _ in server.requests] == ["/x.zip", "/other.zip"]


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:1/x.zip", "file:///etc/passwd", "ftp://127.0.0.1:1/x.zip"]
)
def test_a_redirect_away_from_https_is_refused(server, target, tmp_path):
    server.script = [{"status": 302, "headers": {"Location": target}}]
    with pytest.raises(DataError, match=r"redirects to https only|is not allowed"):
        fetch(server)
    assert len(server.requests) == 1


def test_a_file_that_is_too_large_is_refused(server, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "MAX_BYTES", 100_000)
    with pytest.raises(DataError, match=f"{len(FILE)} bytes are more than 100000"):
        fetch(server)
    server.script = [{"no_length": True}]
    with pytest.raises(DataError, match="sends more than 100000 bytes"):
        fetch(server)
    assert not (tmp_path / f"cache/glassbox/downloads/{DIGEST}.zip").exists()


def test_an_unknown_certificate_is_refused(server, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DataError, match=r"certificate verify failed.*SSL_CERT_FILE"):
        fetch(server)
    assert server.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_an_unreachable_host_is_an_error(server, host, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(DataError, match=rf"https://{host}:{port}/x\.zip .*write archive:FILE"):
            open_source(f"https://{host}:{port}/x.zip#sha256={DIGEST}")


COUNT_IMAGES = f"""
import sys
from pipelines.sources import open_source

print(open_source(sys.argv[1] + "#sha256={DIGEST}").counts()["train"])
"""


def test_two_processes_download_a_file_once(server, tmp_path):
    server.script = [{"drop_at": 150_000}]
    command = [sys.executable, "-c", COUNT_IMAGES, server.address()]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ) for _ in range(2)
    ]
    assert [process.communicate(timeout=600)[0] for process in processes] == [b"8\n", b"8\n"]
    assert server.sent == len(FILE)
    assert list_cache(tmp_path) == [f"{DIGEST}.zip"]


@pytest.mark.parametrize(
    "fragment",
    ["", "#", "#sha256=", "#sha256=" + "0" * 63, "#sha256=" + "g" * 64, "#md5=" + "0" * 32, "#" + "0" * 64],
)
def test_the_digest_is_required(fragment):
    with pytest.raises(ConfigError, match=r"write https://host/x\.zip#sha256="):
        open_source(f"https://host/x.zip{fragment}")


@pytest.mark.parametrize(
    "address",
    [
        "https://host/x.rar",
        "https://host/",
        "https:///x.zip",
        "https:x.zip",
        "https://user:secret@host/x.zip",
    ],
)
def test_other_addresses_are_refused(address):
    with pytest.raises(ConfigError, match="https://HOST/PATH/FILE") as caught:
        open_source(f"{address}#sha256={DIGEST}")
    assert "secret" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_reported(server, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME"):
        fetch(server)


@pytest.fixture
def photos(shared):
    root = shared / "data/cats_and_dogs_filtered"
    return {
        f"cats_and_dogs_filtered/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*.jpg"))
    }


def test_cats_and_dogs(server, photos, shared, tmp_path):
    server.content = pack_zip(photos)
    server.script = [{"drop_at": 30_000_000}]
    source = cats_and_dogs.open_cats_and_dogs(server.address(), hashlib.sha256(server.content).hexdigest())
    assert (source.name, source.classes, dict(source.counts())) == (
        "cats_and_dogs",
        ("cats", "dogs"),
        {"train": 2000, "validation": 1000},
    )
    folder = open_source(f"folder:{shared / 'data/cats_and_dogs_filtered'}")
    for split, count in source.counts().items():
        assert list(source.read(split, 0, count)) == list(folder.read(split, 0, count))


@pytest.mark.parametrize("name", ["cats_and_dogs", "cats_and_dogs:"])
def test_cats_and_dogs_is_verified(server, name, tmp_path, monkeypatch):
    changed = bytearray(FILE)
    changed[1000] ^= 1
    server.content = bytes(changed)
    monkeypatch.setattr(cats_and_dogs.open_cats_and_dogs, "__defaults__", (server.address(), DIGEST))
    with pytest.raises(DataError, match=DIGEST):
        open_source(name)
    server.content = FILE
    assert len(list(open_source(name).read("train", 0, 8))) == 8


def test_the_public_archive_is_pinned():
    assert cats_and_dogs.ADDRESS.startswith("https://")
    assert re.fullmatch("[0-9a-f]{64}", cats_and_dogs.SHA256)
