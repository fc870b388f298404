"""Reading, writing and listing objects of a real S3 server, also behind a proxy that injects faults."""

from __future__ import annotations

import functools
import hashlib
import http.server
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from stores import SECRET_KEY, Bucket, FaultProxy

from pipelines.errors import ConfigError
from pipelines.remote import store
from pipelines.remote.client import _open
from pipelines.remote.errors import (
    AccessDeniedError,
    ConflictError,
    CorruptObjectError,
    ObjectMissingError,
    StoreUnavailableError,
)
from pipelines.remote.uri import Uri, parse_location

pytestmark = pytest.mark.e2e

CONTENT = bytes(range(256)) * 20_000  # 5 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def root(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Uri:
    """A fresh bucket; pauses between retries are short."""
    monkeypatch.setattr("pipelines.remote.retry.FIRST_PAUSE_S", 0.01)
    return Uri("s3", bucket.name)


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client does not repeat requests, so that each fault reaches our own code."""
    monkeypatch.setattr("pipelines.remote.client.CLIENT_RETRIES", 0)
    _open.cache_clear()
    yield
    _open.cache_clear()


# ---------------------------------------------------------------- content


def test_what_is_written_can_be_read(root: Uri, tmp_path: Path) -> None:
    uri = root / "a/b c#1?é.bin"
    tag = store.write_bytes(uri, b"0123456789")
    info = store.stat(uri)
    assert info is not None
    assert (info.uri, info.size, info.etag) == (uri, 10, tag)
    assert store.read_bytes(uri) == b"0123456789"
    assert store.read_version(uri) == (b"0123456789", tag)
    assert store.read_range(uri, 3, 4) == b"3456"
    store.download(uri, tmp_path / "new/file", 10, hashlib.sha256(b"0123456789").hexdigest())
    assert (tmp_path / "new/file").read_bytes() == b"0123456789"
    store.delete(uri)
    store.delete(uri)
    assert store.stat(uri) is None


def test_large_files_are_uploaded_in_parts(root: Uri, tmp_path: Path, proxy: FaultProxy) -> None:
    file = tmp_path / "large"
    file.write_bytes(CONTENT * 4)
    proxy.inject("status", method="PUT", skip=1)
    store.upload(file, root / "large")
    assert proxy.count_requests("PUT") == 4  # 20.5 MB are 3 parts of 8 MiB, one sent twice
    store.download(root / "large", tmp_path / "copy", sha256=hashlib.sha256(CONTENT * 4).hexdigest())


def test_an_object_that_is_too_large_is_refused(root: Uri) -> None:
    store.write_bytes(root / "a", b"0123456789")
    assert store.read_bytes(root / "a", limit=10) == b"0123456789"
    with pytest.raises(CorruptObjectError, match=r"at most 9 bytes in s3://.*/a\. Received: size=10"):
        store.read_bytes(root / "a", limit=9)


def test_a_range_past_the_end_is_an_error(root: Uri) -> None:
    store.write_bytes(root / "a", b"0123456789")
    for start in (8, 10, 20):
        with pytest.raises(CorruptObjectError, match="bytes in s3://"):
            store.read_range(root / "a", start, 4)


# ---------------------------------------------------------------- listings


def test_listings_have_every_object_once(root: Uri) -> None:
    keys = ["a/1", "a/2", "a/b/3", "a-b", "a.txt", "ab/1", "c"]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.write_bytes(root / key, b"x"), keys))
    store.write_bytes(root / "ab", b"")  # a marker of the folder
    assert sorted(info.uri.relative_to(root) for info in store.list_objects(root)) == sorted(keys)
    assert [info.uri.key for info in store.list_objects(root / "a")] == ["a/1", "a/2", "a/b/3"]
    folders, objects = store.list_folder(root)
    assert (folders, [info.uri.key for info in objects]) == (["a", "ab"], ["a-b", "a.txt", "c"])
    assert list(store.list_objects(root / "none")) == []
    assert store.list_folder(root / "none") == ([], [])
    assert store.has_objects(root / "a")
    assert not store.has_objects(root / "a/1")


def test_markers_of_folders_are_left_out() -> None:
    def describe(key: str, size: int) -> store.ObjectInfo:
        return store.ObjectInfo(Uri("s3", "bucket", key), size, "", datetime.now(UTC))

    sizes = {"a": 0, "a/b": 0, "a/b/c": 1, "ab": 0, "b": 1, "c": 0}
    objects = [describe(key, size) for key, size in sizes.items()]
    assert [info.uri.key for info in store.drop_markers(objects)] == ["a/b/c", "ab", "b", "c"]


@pytest.mark.usefixtures("no_retries")
def test_a_listing_resumes_where_it_broke(root: Uri, proxy: FaultProxy) -> None:
    keys = [f"many/{number:04d}" for number in range(1_050)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.write_bytes(root / key, b"x"), keys))
    proxy.requests.clear()
    proxy.inject("status", key=root.bucket, skip=1, times=2)
    assert [info.uri.key for info in store.list_objects(root)] == keys
    # One page, the second one twice in vain, and the second page.
    assert proxy.count_requests("GET", root.bucket) == 4


# ---------------------------------------------------------------- conditions


def test_of_several_writers_one_creates_the_object(root: Uri) -> None:
    def create(number: int) -> bool:
        try:
            store.write_bytes(root / "lease", f"{number}".encode(), if_absent=True)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(create, range(16)))
    assert sum(results) == 1
    assert store.read_bytes(root / "lease") == str(results.index(True)).encode()


def test_an_object_is_replaced_only_in_the_version_that_was_read(root: Uri, tmp_path: Path) -> None:
    first = store.write_bytes(root / "a", b"1", if_absent=True)
    second = store.write_bytes(root / "a", b"2", if_match=first)
    assert second != first
    file = tmp_path / "file"
    file.write_bytes(b"3")
    with pytest.raises(ConflictError, match="the object has changed"):
        store.upload(file, root / "a", if_match=first)
    with pytest.raises(ConflictError):
        store.write_bytes(root / "none", b"3", if_match=first)
    assert store.read_bytes(root / "a") == b"2"


@pytest.mark.parametrize("is_mine", [True, False])
def test_a_write_whose_response_was_lost_is_recognised(
    root: Uri, bucket: Bucket, proxy: FaultProxy, is_mine: bool
) -> None:
    # For the client, an object that it finds after a failed attempt may be its own.
    bucket.put("lease", b"mine" if is_mine else b"theirs")
    proxy.inject("status", method="PUT", times=1)
    if is_mine:
        tag = store.write_bytes(root / "lease", b"mine", if_absent=True)
        assert store.read_version(root / "lease") == (b"mine", tag)
    else:
        with pytest.raises(ConflictError):
            store.write_bytes(root / "lease", b"mine", if_absent=True)
    # Without a failed attempt, it is somebody else's.
    with pytest.raises(ConflictError):
        store.write_bytes(root / "lease", b"mine", if_absent=True)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", ["reset", "truncate", "status"])
@pytest.mark.parametrize("is_retried_by_client", [True, False])
def test_a_download_that_breaks_resumes(
    kind: str,
    is_retried_by_client: bool,
    root: Uri,
    proxy: FaultProxy,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if not is_retried_by_client:
        request.getfixturevalue("no_retries")
    store.write_bytes(root / "a", CONTENT)
    proxy.inject(kind, key="*/a", times=2, after=3_000_000)
    store.download(root / "a", tmp_path / "a", len(CONTENT), DIGEST)
    assert (tmp_path / "a").read_bytes() == CONTENT
    if kind != "reset":  # which also discards what was sent and not yet received
        sent = proxy.count_bytes("GET", "*/a")
        assert sent < len(CONTENT) * 1.5, "the download started again instead of resuming"


def test_damaged_bytes_are_downloaded_again_then_refused(
    root: Uri, proxy: FaultProxy, tmp_path: Path
) -> None:
    store.write_bytes(root / "a", CONTENT)
    proxy.inject("flip", key="*/a", after=4_000_000)
    store.download(root / "a", tmp_path / "a", len(CONTENT), DIGEST)
    assert (tmp_path / "a").read_bytes() == CONTENT

    proxy.inject("flip", key="*/a", after=4_000_000, times=2)
    with pytest.raises(CorruptObjectError, match=rf"SHA-256 {DIGEST} of s3://{root.bucket}/a"):
        store.download(root / "a", tmp_path / "b", len(CONTENT), DIGEST)
    with pytest.raises(CorruptObjectError, match=rf"7 bytes in s3://{root.bucket}/a"):
        store.download(root / "a", tmp_path / "b", 7)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"], "nothing unverified is left behind"


@pytest.mark.usefixtures("no_retries")
def test_an_object_replaced_during_a_download_arrives_in_one_version(
    root: Uri, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_bytes(root / "a", CONTENT)
    proxy.inject("reset", key="*/a", after=3_000_000)
    other = CONTENT[::-1]
    monkeypatch.setattr("time.sleep", lambda _: store.write_bytes(root / "a", other))
    store.download(root / "a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == other


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("action", ["read", "write", "stat", "list", "download"])
def test_an_outage_is_survived(
    action: str, root: Uri, proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_bytes(root / "a", b"x")
    proxy.inject("status", method="*", times=3)
    actions = {
        "read": lambda: store.read_bytes(root / "a") == b"x",
        "write": lambda: store.write_bytes(root / "b", b"y") != "",
        "stat": lambda: store.stat(root / "a") is not None,
        "list": lambda: len(list(store.list_objects(root))) == 1,
        "download": lambda: store.download(root / "a", tmp_path / "a") is None,
    }
    with caplog.at_level(logging.WARNING):
        assert actions[action]()
    assert f"s3://{root.bucket}" in caplog.text


def test_a_store_that_stays_away_is_one_sentence(
    root: Uri, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "0.3")
    with proxy.outage(), pytest.raises(StoreUnavailableError) as caught:
        store.read_bytes(root / "a")
    assert str(caught.value).startswith(
        f"Expected the store of s3://{root.bucket}/a to respond. Received: response="
    )
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="GLASSBOX_STORE_TIMEOUT=soon"):
        store.read_bytes(root / "a")


# ---------------------------------------------------------------- errors


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    ("status", "code", "expected", "sentence"),
    [
        (400, "ExpiredToken", AccessDeniedError, "still valid"),
        (403, "RequestTimeTooSkewed", AccessDeniedError, "clock"),
        (403, "AccessDenied", AccessDeniedError, "may use"),
        (403, "SignatureDoesNotMatch", AccessDeniedError, "accepts"),
        (301, "PermanentRedirect", AccessDeniedError, "region"),
        (501, "NotImplemented", StoreUnavailableError, "accept a request"),
        (500, "InternalError", StoreUnavailableError, "respond"),
        (404, "NoSuchKey", ObjectMissingError, "an object at"),
        (404, "NoSuchBucket", ObjectMissingError, "bucket"),
    ],
)
def test_failures_are_explained(
    status: int,
    code: str,
    expected: type[Exception],
    sentence: str,
    root: Uri,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "4")
    monkeypatch.setattr("pipelines.remote.retry.FIRST_PAUSE_S", 10)  # too long for a second attempt
    for fails in (
        store.read_bytes,
        lambda uri: store.write_bytes(uri, b""),
        lambda uri: list(store.list_objects(uri)),
    ):
        proxy.inject("status", method="*", times=None, status=status, code=code)
        with pytest.raises(expected, match=sentence) as caught:
            fails(root / "a")
        proxy.faults.clear()
        message = str(caught.value)
        assert f"s3://{root.bucket}/a" in message
        assert code in message or "redirect" in message
        assert SECRET_KEY not in message
        assert "\n" not in message


def test_missing_objects_and_buckets_are_named(root: Uri, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissingError, match=rf"an object at s3://{root.bucket}/none\."):
        store.read_bytes(root / "none")
    with pytest.raises(ObjectMissingError, match=rf"an object at s3://{root.bucket}/none\."):
        store.download(root / "none", tmp_path / "x")
    for fails in (store.read_bytes, lambda uri: list(store.list_objects(uri)), store.list_folder):
        with pytest.raises(
            ObjectMissingError, match="bucket 'no-such-bucket' to exist for s3://no-such-bucket/a"
        ):
            fails(Uri("s3", "no-such-bucket", "a"))


def test_wrong_keys_are_denied_and_not_repeated(root: Uri, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2token")
    for fails in (store.stat, store.read_bytes, lambda uri: store.write_bytes(uri, b"x", if_absent=True)):
        with pytest.raises(AccessDeniedError) as caught:
            fails(root / "a")
        assert "hunter2" not in str(caught.value)


def test_keys_and_endpoint_come_from_a_profile(
    root: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(
        f"[team]\naws_access_key_id={os.environ['AWS_ACCESS_KEY_ID']}\naws_secret_access_key={SECRET_KEY}\n"
    )
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    (tmp_path / "config").write_text(f"[profile team]\nendpoint_url = {endpoint}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    store.write_bytes(root / "a", b"x")


# ---------------------------------------------------------------- web servers


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Sends files whole, as simple web servers do."""

    def log_message(self, *arguments: object) -> None:
        """Is silent."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Uri]:
    """A web server with one file."""
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "a b.bin").write_bytes(CONTENT)
    handler = functools.partial(RangeHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Uri("http", f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_files_of_a_web_server_are_read_only(web: Uri, tmp_path: Path) -> None:
    uri = parse_location(f"{web}/a%20b.bin")
    assert isinstance(uri, Uri)
    store.download(uri, tmp_path / "copy", len(CONTENT), DIGEST)
    info = store.stat(uri)
    assert info is not None
    assert info.size == len(CONTENT)
    assert store.stat(web / "none") is None
    with pytest.raises(ObjectMissingError, match="http://"):
        store.read_bytes(web / "none")
    for fails in (
        store.delete,
        store.list_objects,
        store.list_folder,
        lambda uri: store.write_bytes(uri, b"x"),
    ):
        with pytest.raises(ConfigError, match="read-only"):
            list(fails(uri) or ())


# ---------------------------------------------------------------- processes


def test_threads_share_a_client(root: Uri) -> None:
    store.write_bytes(root / "a", CONTENT)
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda _: store.read_bytes(root / "a") == CONTENT, range(32)))


FORK = """
import os, sys
from pipelines.errors import ConfigError
from pipelines.remote import store
from pipelines.remote.client import _open
from pipelines.remote.uri import parse_location
uri = parse_location(sys.argv[1])
if sys.argv[2] == "before":
    store.read_bytes(uri)
process = os.fork()
if process == 0:
    try:
        print(store.read_bytes(uri).decode(), flush=True)
    except ConfigError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(process, 0)
"""


@pytest.mark.parametrize(("use", "expected"), [("never", "content"), ("before", "'spawn' method")])
def test_a_forked_process_works_or_says_why_not(root: Uri, use: str, expected: str) -> None:
    store.write_bytes(root / "a", b"content")
    command = [sys.executable, "-c", FORK, str(root / "a"), use]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert expected in result.stdout
