"""Opening a source by its name, and the messages for unknown names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.sources import DATASETS, FORMS, SOURCES, open_source

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("foldr:photos", "use folder"),
        ("http://host/x.zip", "use https"),
        ("cats_and_dog", "use cats_and_dogs"),
        (
            "zebra",
            "use one of archive, cats_and_dogs, csv, folder, https, idx, imagenet, parquet, synthetic, tfds, "
            "tfrecord",
        ),
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


INVALID_REQUESTS = """
import sys
from pathlib import Path
from pipelines.errors import GlassboxError
from pipelines.shards.build import check_request
from pipelines.sources import open_source
from pipelines.spec import ShardSpec

occupied = Path(sys.argv[1])
names = ("foldr:x", "x.py:X", "no.such.module:X", "tfds:folder=x")
requests = [lambda name=name: open_source(name) for name in names]
requests.append(lambda: check_request(occupied, ShardSpec()))
requests.append(lambda: check_request(occupied / "new", ShardSpec(check="header", store_size=5)))
errors = 0
for request in requests:
    try:
        request()
    except GlassboxError:
        errors += 1
print(errors, {"ray", "tensorflow"} & set(sys.modules))
"""


def test_invalid_requests_are_refused_before_ray_and_tensorflow_are_imported(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-c", INVALID_REQUESTS, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "6 set()\n", result.stderr
