"""Sources refuse addresses that they cannot read, before anything is read or written."""

from __future__ import annotations

import pytest

from pipelines.errors import ConfigError
from pipelines.sources import open_source
from service.commands.locations import SOURCE_KINDS


@pytest.mark.parametrize("kind", SOURCE_KINDS)
@pytest.mark.parametrize("scheme", ["ftp", "s4", "hdfs", "http", "https"])
def test_a_source_refuses_a_scheme_that_it_cannot_read(kind, scheme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_source(f"{kind}:{scheme}://host/folder/file.zip", labelled=False)
    if scheme.startswith("http"):
        assert "#sha256=DIGEST" in caught.value.fix
    else:
        assert caught.value.received == f"scheme={scheme}"
    assert list(tmp_path.iterdir()) == []


def test_a_signed_address_is_not_quoted():
    with pytest.raises(ConfigError) as caught:
        open_source("csv:https://host/table.csv?signature=SECRET")
    assert "SECRET" not in str(caught.value)


def test_a_uri_alone_is_not_a_source_and_the_message_says_what_to_write():
    with pytest.raises(ConfigError) as caught:
        open_source("s3://bucket/photos")
    assert caught.value.fix.startswith("write folder:s3://bucket/photos")
    with pytest.raises(ConfigError) as caught:
        open_source("gs://bucket/photos.zip")
    assert caught.value.fix.startswith("write archive:gs://bucket/photos.zip")


def test_a_file_uri_is_a_path(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    assert open_source(f"folder:file://{tmp_path}").classes == ("cat", "dog")
