"""Addresses: what parses, what is refused, and that no secret reaches a message."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.remote.uri import Uri, is_uri, parse_location


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/photos", Path("data/photos")),
        ("/data/s3/x", Path("/data/s3/x")),
        ("folder:photos", Path("folder:photos")),
        ("file:///data/my%20photos", Path("/data/my photos")),
        ("s3://bucket", Uri("s3", "bucket")),
        ("s3://bucket/", Uri("s3", "bucket")),
        ("S3://bucket/Runs/a/", Uri("s3", "bucket", "Runs/a")),
        ("gs://bucket/a b#c?d%20.jpg", Uri("gs", "bucket", "a b#c?d%20.jpg")),
        ("az://container/x.tar", Uri("az", "container", "x.tar")),
        ("https://host:8443/a%20b/x.keras", Uri("https", "host:8443", "a b/x.keras")),
    ],
)
def test_locations_are_paths_or_addresses(text: str, expected: Path | Uri) -> None:
    assert parse_location(text) == expected
    assert is_uri(text) == ("://" in text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("s4://bucket/x", "scheme=s4"),
        ("hdfs://host/x", "scheme=hdfs"),
        ("s3://", "without a user name"),
        ("s3:///x", "without a user name"),
        ("s3:/bucket/x", "two slashes"),
        (Path("gs://bucket/x"), "two slashes"),
        ("s3://bucket/a//b", "segments"),
        ("s3://bucket/a/../b", "segments"),
        ("file://other-host/data", "this host"),
    ],
)
def test_what_is_no_location_is_refused(text: str | Path, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_location(text)


@pytest.mark.parametrize(
    "text", ["https://user:hunter2@host/x", "https://host/x?sig=hunter2", "s3://k:hunter2@b/x"]
)
def test_secrets_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_location(text)
    assert "hunter2" not in str(caught.value)


def test_addresses_behave_like_paths() -> None:
    runs = Uri("s3", "bucket", "runs")
    model = runs / "a" / "model.keras"
    assert str(model) == "s3://bucket/runs/a/model.keras"
    assert parse_location(str(model)) == model
    assert (model.name, model.stem, model.suffix) == ("model.keras", "model", ".keras")
    assert model.parent.parent == runs
    assert runs.parent == runs.parent.parent == Uri("s3", "bucket")
    assert model.relative_to(runs) == "a/model.keras"
    assert Uri("s3", "bucket") / "runs" == runs
    assert pickle.loads(pickle.dumps(model)) == model
    with pytest.raises(ValueError, match="not below"):
        Uri("s3", "bucket", "runs2/a").relative_to(runs)
    with pytest.raises(ConfigError, match="segments"):
        _ = runs / "../other"


def test_web_servers_are_read_only() -> None:
    assert parse_location("http://host/x").is_read_only  # type: ignore[union-attr]
    assert not Uri("s3", "bucket").is_read_only
