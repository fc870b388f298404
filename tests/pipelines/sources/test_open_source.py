"""Opening a source by its name, and the messages for unknown names."""

from __future__ import annotations

import pytest

from pipelines.errors import ConfigError
from pipelines.sources import DATASETS, FORMS, SOURCES, open_source


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("foldr:photos", "use folder"),
        ("http://host/x.zip", "use https"),
        ("cats_and_dog", "use cats_and_dogs"),
        ("zebra", "use one of archive, cats_and_dogs, folder, https, idx, synthetic, tfds"),
        ("folder", "write folder:DIR"),
        ("archive:", "write folder:DIR"),
        ("cats_and_dogs:all", "write folder:DIR"),
        ("", "use one of"),
    ],
)
def test_the_message_for_a_wrong_name_says_what_to_write(name, fix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_source(name)
    assert caught.value.received == f"source={name}"
    assert caught.value.fix.startswith(fix)
    assert caught.value.fix.endswith(FORMS)


def test_photos_are_a_source_only_where_no_classes_are_needed(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    name = f"photos:{tmp_path}"
    assert open_source(name, labelled=False).counts() == {"photos": 1}
    with pytest.raises(ConfigError) as caught:
        open_source(name)
    assert "photos" not in caught.value.fix
    with pytest.raises(ConfigError, match="use photos"):
        open_source(f"photo:{tmp_path}", labelled=False)


def test_the_message_for_a_path_names_its_kind(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"")
    for path, kind in ((tmp_path, "folder"), (tmp_path / "x.zip", "archive")):
        with pytest.raises(ConfigError) as caught:
            open_source(str(path))
        assert caught.value.fix == f"write {kind}:{path}"


def test_the_message_mentions_every_kind():
    with pytest.raises(ConfigError):
        open_source("no such source")
    assert all(f"{kind}:" in FORMS for kind in SOURCES.names() if kind in SOURCES)
    assert all(name in FORMS for name in DATASETS.names())
