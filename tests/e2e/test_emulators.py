"""Objects, shard sets and a training on emulators of Google Cloud Storage and Azure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from emulators import EMULATORS

from pipelines.remote import store
from pipelines.remote.errors import ConflictError, ObjectMissingError
from pipelines.remote.uri import Uri, parse_location
from pipelines.sources import open_source
from service.mirror.fetch import fetch_run
from service.report.reported import hash_remote_contents

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONTENT = bytes(range(256)) * 80_000  # 20 MB


@pytest.fixture(scope="module", params=EMULATORS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uri]:
    """An empty bucket of an emulator, with the environment of the client."""
    folder = tmp_path_factory.mktemp(request.param)
    with (
        EMULATORS[request.param](folder, "glassbox-test") as (url, environment),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        location = parse_location(url)
        assert isinstance(location, Uri)
        yield location


def test_objects_are_written_read_listed_and_deleted(root: Uri, tmp_path: Path) -> None:
    uri = root / "a/b c.bin"
    tag = store.write_bytes(uri, b"0123456789")
    assert store.read_bytes(uri) == b"0123456789"
    assert store.read_range(uri, 2, 3) == b"234"
    info = store.stat(uri)
    assert info is not None
    assert (info.size, info.etag) == (10, tag)
    store.write_bytes(root / "a/d/e", b"1")
    assert {item.uri.key for item in store.list_objects(root / "a")} == {"a/b c.bin", "a/d/e"}
    folders, objects = store.list_folder(root / "a")
    assert folders == ["d"]
    assert [item.uri.name for item in objects] == ["b c.bin"]

    large = tmp_path / "large"
    # fake-gcs-server takes no uploads in parts.
    content = CONTENT if root.scheme == "az" else CONTENT[: store.UPLOAD_PART]
    large.write_bytes(content)
    store.upload(large, root / "large")
    store.download(root / "large", tmp_path / "copy", len(content), hashlib.sha256(content).hexdigest())
    assert (tmp_path / "copy").read_bytes() == content

    store.delete(uri)
    assert store.stat(uri) is None
    with pytest.raises(ObjectMissingError, match="a/b c"):
        store.read_bytes(uri)


def test_conditional_writes_have_one_winner(root: Uri) -> None:
    uri = root / "lease"
    tag = store.write_bytes(uri, b"first", if_absent=True)
    with pytest.raises(ConflictError, match="lease"):
        store.write_bytes(uri, b"second", if_absent=True)
    newer = store.write_bytes(uri, b"third", if_match=tag)
    with pytest.raises(ConflictError, match="lease"):
        store.write_bytes(uri, b"fourth", if_match=tag)
    assert store.read_version(uri) == (b"third", newer)


def test_a_missing_bucket_is_named(root: Uri) -> None:
    with pytest.raises(ObjectMissingError, match="no-such-bucket"):
        store.read_bytes(Uri(root.scheme, "no-such-bucket", "key"))


def test_sources_are_read_like_local_ones(root: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    lines = ["image,label"]
    for name in ("cat", "dög"):
        for index in range(3):
            path = tmp_path / "photos" / name / f"{index} a.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name}{index}".encode())
            store.upload(path, root / "photos" / name / path.name)
            lines.append(f"{name}/{path.name},{name}")
    (tmp_path / "photos/all.csv").write_text("\n".join(lines))
    store.upload(tmp_path / "photos/all.csv", root / "photos/all.csv")
    for kind, end in (("folder", "photos"), ("csv", "photos/all.csv")):
        remote = open_source(f"{kind}:{root}/{end}")
        local = open_source(f"{kind}:{tmp_path}/{end}")
        assert list(remote.read("train", 0, 6)) == list(local.read("train", 0, 6))
        assert remote.fingerprint() == open_source(remote.name).fingerprint()


def test_listings_have_the_tags_of_single_objects(root: Uri) -> None:
    uri = root / "tags/object"
    tag = store.write_bytes(uri, b"content")
    (info,) = store.list_objects(root / "tags")
    _, (listed,) = store.list_folder(root / "tags")
    assert listed.etag == info.etag
    if root.scheme != "gs":
        assert info.etag == tag
        return
    # Its listings have no generations: their tags tell versions apart, but are no conditions of writes.
    with pytest.raises(ConflictError, match="of a listing"):
        store.write_bytes(uri, b"another", if_match=info.etag)
    store.write_bytes(uri, b"changed size", if_match=tag)  # the emulator's times are in seconds
    (changed,) = store.list_objects(root / "tags")
    assert changed.etag not in ("", info.etag)


def test_copies_of_a_run_follow_the_store(root: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    uri = root / "runs/followed"
    inputs: dict[str, object] = {"model": ""}
    for content in (b"first", b"another"):
        store.write_bytes(uri / "config.yaml", content)
        store.write_bytes(uri / "model.keras", content)
        before = inputs
        inputs = hash_remote_contents(uri)
        assert inputs["model"] != before.get("model")
        run = fetch_run(uri, ("model",))
        assert (run.config_path.read_bytes(), run.model_path.read_bytes()) == (content, content)
        time_of_fetch = run.model_path.stat().st_mtime_ns
        assert fetch_run(uri, ("model",)).model_path.stat().st_mtime_ns == time_of_fetch
        assert hash_remote_contents(uri) == inputs


def test_a_set_is_built_trained_on_and_mirrored(
    root: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training_samples import config_for, noise_shards, read_checkpoint

    from pipelines.shards.build import build_shards
    from pipelines.shards.manifest import load_manifest
    from pipelines.sources import open_source
    from pipelines.spec import ShardSpec
    from service.training import launch

    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    source = open_source("synthetic:evidence,train=24,validation=8,size=32")
    build_shards(source, root / "built", ShardSpec(shard_rows=8))
    build_shards(source, tmp_path / "built", ShardSpec(shard_rows=8))
    assert load_manifest(root / "built") == load_manifest(tmp_path / "built")

    local = noise_shards(tmp_path / "set", shard_rows=6)
    for path in local.iterdir():
        store.upload(path, root / "set" / path.name)
    changes = {"epochs": 2, "data": {"image_size": [12, 12], "window": 2, "cache": "none"}, "model": "linear"}
    expected = launch.train(config_for(local, **changes), tmp_path / "run", local=True)
    run = launch.train(config_for(str(root / "set"), **changes), str(root / "run"), local=True)
    for array, other in zip(
        read_checkpoint(run, "epoch-0002"), read_checkpoint(expected, "epoch-0002"), strict=True
    ):
        np.testing.assert_array_equal(array, other)
    names = {item.uri.name for item in store.list_objects(root / "run")}
    assert {"config.yaml", "status.json", "metrics.jsonl", "state.npz"} <= names
