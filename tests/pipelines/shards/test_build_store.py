"""Builds whose output is in an object store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from list_source import ListSource, make_examples, register_by_value, snapshot
from stores import get_client_environment

from pipelines.errors import ConfigError, DataError
from pipelines.records import Rejected
from pipelines.remote import lease
from pipelines.remote.errors import AccessDeniedError
from pipelines.remote.uri import parse_location
from pipelines.shards import build_store
from pipelines.shards.build import build_shards
from pipelines.shards.output import SCRATCH_PREFIX, StoreOutput, remove_abandoned_scratch
from pipelines.shards.plan import plan_shards
from pipelines.shards.task import build_shard
from pipelines.spec import ShardSpec

SPEC = ShardSpec(shard_rows=2)


@dataclass(frozen=True)
class RemoteSource(ListSource):
    """A source that gives workers the address of the server: their cluster may be older than the server."""

    environment: dict[str, str] = field(default_factory=dict)

    def __setstate__(self, state):
        self.__dict__.update(state)
        os.environ.update(self.environment)


class EndedError(Exception):
    """Raised by a progress callback to interrupt a build."""


@pytest.fixture(scope="module", autouse=True)
def _cluster(s3_server, ray_cluster):
    register_by_value(__name__)


@pytest.fixture
def make_source(s3_server):
    def make(items=None, **options):
        environment = get_client_environment(s3_server.endpoint)
        return RemoteSource({"train": items or make_examples(12)}, environment=environment, **options)

    return make


def stop_after(images):
    def stop(done, total):
        if done >= images:
            raise EndedError

    return stop


def download(bucket, tmp_path):
    bucket.download_folder("sets/a", tmp_path / "copy")
    return snapshot(tmp_path / "copy")


@pytest.mark.parametrize("file_format", ["arrow", "tfrecord"])
def test_a_set_in_a_store_has_the_bytes_of_a_set_on_disk(
    bucket, tmp_path, make_source, file_format, monkeypatch
):
    items = make_examples(12)
    items[3] = Rejected("bad ü", "no image")
    source = make_source(items)
    spec = ShardSpec(shard_rows=2, format=file_format)
    monkeypatch.chdir(tmp_path)
    manifest = build_shards(source, f"{bucket.url}/sets/a", spec)
    assert build_shards(source, tmp_path / "local", spec) == manifest
    assert download(bucket, tmp_path) == snapshot(tmp_path / "local")
    assert bucket.list_keys() == [f"sets/a/{path.name}" for path in sorted((tmp_path / "local").iterdir())]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "local"]  # no folder named `s3:`
    with pytest.raises(ConfigError, match="does not exist yet"):
        build_shards(source, f"{bucket.url}/sets/a", spec)


def test_an_interrupted_build_resumes_from_what_is_in_the_store(bucket, tmp_path, make_source):
    out = parse_location(f"{bucket.url}/sets/a")
    with pytest.raises(EndedError):
        build_shards(make_source(), out, SPEC, stop_after(6))
    keys = bucket.list_keys("sets/a/.building/")
    complete = [Path(key).name.removesuffix(".done") for key in keys if key.endswith(".done")]
    assert len(complete) >= 3
    assert "sets/a/manifest.json" not in bucket.list_keys()
    assert "sets/a/.building/lease" not in keys
    with pytest.raises(ConfigError, match=r"unfinished build.*differs: the options"):
        build_shards(make_source(), out, ShardSpec(shard_rows=3))

    # One complete shard is lost, one is truncated, and one marker is damaged.
    bucket.delete(f"sets/a/{complete[0]}")
    bucket.put(f"sets/a/{complete[1]}", b"cut")
    (marker,) = (key for key in keys if key.endswith(f"{complete[2]}.done"))
    bucket.put(marker, b"\xff")
    progress = []
    build_shards(make_source(), out, SPEC, lambda done, total: progress.append(done))
    assert progress[0] == 2 * (len(complete) - 3)
    build_shards(make_source(), tmp_path / "local", SPEC)
    assert download(bucket, tmp_path) == snapshot(tmp_path / "local")


def test_the_manifest_is_uploaded_last_and_a_failed_upload_is_resumed(bucket, proxy, tmp_path, make_source):
    """The driver uses the proxy, the workers the server itself."""
    out = f"{bucket.url}/sets/a"
    fault = proxy.inject("status", method="PUT", key="*/train.rows.arrow", status=403, code="AccessDenied")
    with pytest.raises(AccessDeniedError, match=r"train\.rows\.arrow"):
        build_shards(make_source(), out, SPEC)
    assert "sets/a/manifest.json" not in bucket.list_keys()
    assert fault.times == 0 or fault not in proxy.faults
    progress = []
    build_shards(make_source(), out, SPEC, lambda done, total: progress.append(done))
    assert progress == [12]
    puts = [request.key.rpartition("/")[2] for request in proxy.requests if request.method == "PUT"]
    assert [name for name in puts if name != "lease"][-1] == "manifest.json"
    build_shards(make_source(), tmp_path / "local", SPEC)
    assert download(bucket, tmp_path) == snapshot(tmp_path / "local")


def test_a_second_builder_is_refused(bucket, make_source, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    out = f"{bucket.url}/sets/a"
    refusals = []

    def start_second(done, total):
        if not refusals:
            with pytest.raises(ConfigError, match="another builder is at work") as caught:
                build_shards(make_source(), out, SPEC)
            refusals.append(caught)

    build_shards(make_source(), out, SPEC, start_second)
    assert refusals


def test_a_build_whose_lease_was_taken_over_stops(bucket, make_source, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.05)
    is_replaced = threading.Event()

    def replace_lease(done, total):
        bucket.put("sets/a/.building/lease", b"{}")
        is_replaced.set()
        threading.Event().wait(0.5)  # until a renewal has failed

    with pytest.raises(ConfigError, match="another builder"):
        build_shards(make_source(), f"{bucket.url}/sets/a", SPEC, replace_lease)
    assert "sets/a/manifest.json" not in bucket.list_keys()
    assert bucket.get("sets/a/.building/lease") == b"{}"


KILLED_BUILDER = """
import sys
from pipelines.remote.uri import parse_location
from pipelines.shards.build_store import lease_build
with lease_build(parse_location(sys.argv[1]), "0" * 64, {}):
    print("leased", flush=True)
    sys.stdin.read()
"""


def test_the_lease_of_a_killed_builder_on_this_host_is_taken_over_at_once(bucket):
    out = f"{bucket.url}/sets/a"
    command = [sys.executable, "-c", KILLED_BUILDER, out]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as builder:
        assert builder.stdout.readline() == b"leased\n"
        builder.send_signal(signal.SIGKILL)
    assert bucket.list_keys() == ["sets/a/.building/build.json", "sets/a/.building/lease"]
    with build_store.lease_build(parse_location(out), "0" * 64, {}) as build:
        build.is_over = True
    assert bucket.list_keys() == []


def test_a_source_without_usable_images_leaves_nothing(bucket, make_source):
    items = [item for item in make_examples(8) if item.label]
    with pytest.raises(DataError, match="at least two classes"):
        build_shards(make_source(items), f"{bucket.url}/sets/a", SPEC)
    assert bucket.list_keys() == []


@pytest.mark.parametrize("key", ["sets/a/letter.txt", "sets/a/manifest.json"])
def test_an_output_with_other_objects_is_refused_and_unchanged(bucket, make_source, key):
    bucket.put(key, b"mine")
    with pytest.raises(ConfigError, match="does not exist yet"):
        build_shards(make_source(), f"{bucket.url}/sets/a", SPEC)
    assert bucket.list_keys() == [key]


@pytest.mark.parametrize(
    ("out", "message"), [("https://host/set", "can be written"), ("s3://bucket", "a whole bucket")]
)
def test_an_output_that_cannot_hold_a_set_is_refused(make_source, out, message):
    with pytest.raises(ConfigError, match=message):
        build_shards(make_source(), out, SPEC)


def test_a_worker_that_outlives_its_build_uploads_nothing(bucket):
    out = parse_location(f"{bucket.url}/sets/a")
    source = ListSource({"train": make_examples(4)})
    (planned, *_) = plan_shards(source.counts(), SPEC)
    with pytest.raises(ConfigError, match="a build that is not over"):
        build_shard(source, planned, SPEC, StoreOutput(out, out / ".building/0"))
    assert bucket.list_keys() == []


def test_scratch_folders_of_killed_workers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    (tmp_path / f"{SCRATCH_PREFIX}{process.pid}-a").mkdir()
    own = tmp_path / f"{SCRATCH_PREFIX}{os.getpid()}-a"
    own.mkdir()
    remove_abandoned_scratch()
    assert list(tmp_path.iterdir()) == [own]


def test_the_description_of_a_build_has_no_credentials(bucket, make_source):
    with pytest.raises(EndedError):
        build_shards(make_source(), f"{bucket.url}/sets/a", SPEC, stop_after(0))
    description = bucket.get("sets/a/.building/build.json")
    assert json.loads(description)["about"].keys() == {"the content of the source", "the options"}
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in description
