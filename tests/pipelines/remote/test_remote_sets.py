"""Shard sets on a store are described, verified and checked like their local copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from object_site import ObjectSite
from shard_samples import make_record, write_shards

from pipelines.health.check import check_shards
from pipelines.health.pictures import PictureReader
from pipelines.shards.files import open_files
from pipelines.shards.info import describe_shards
from pipelines.shards.manifest import load_manifest
from pipelines.shards.split_index import SetShards
from pipelines.shards.verify import check_shard


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectSite]:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GLASSBOX_CACHE_GB", raising=False)
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "60")
    with ObjectSite().serve() as site:
        yield site


@pytest.fixture(params=[("arrow", 3), ("tfrecord", 3), ("arrow", 2)], ids=str)
def local(request: pytest.FixtureRequest, tmp_path: Path, site: ObjectSite) -> Path:
    """A set of 4 shards in a local directory, whose files are on the site too."""
    generator = np.random.default_rng(5)
    records = [
        make_record(generator.integers(0, 256, (20, 20, 3), np.uint8), row % 2, f"{row}.png")
        for row in range(12)
    ]
    kind, version = request.param
    splits = {"train": records[:8], "validation": records[8:]}
    folder = write_shards(tmp_path / "set", ("a", "b"), splits, 3, format=kind, version=version)
    site.objects |= {path.name: path.read_bytes() for path in folder.iterdir()}
    return folder


def test_a_set_is_described_alike(local: Path, site: ObjectSite) -> None:
    assert describe_shards(site.location) == describe_shards(local).replace(str(local), str(site.location))


def test_the_health_of_a_set_is_the_same(local: Path, site: ObjectSite) -> None:
    assert check_shards(site.location).figures() == check_shards(local).figures()
    pictures = PictureReader(site.location)
    assert np.array_equal(pictures.read("validation", 2), PictureReader(local).read("validation", 2))


def test_a_changed_row_is_found_in_the_same_file(local: Path, site: ObjectSite) -> None:
    """The cache refuses the file, and the check says which."""
    manifest = load_manifest(site.location)
    shards = SetShards(open_files(local), manifest)
    files = open_files(site.location)
    for set_shard in shards:
        assert check_shard(files, set_shard, manifest.encoding, 2).problem is None
    files.close()

    name = shards[1].shard.file
    content = bytearray(site.objects[name])
    content[len(content) // 2] ^= 1
    site.objects[name] = bytes(content)
    (Path(files.fetch(shards[1].shard))).unlink()
    problem = check_shard(open_files(site.location), shards[1], manifest.encoding, 2).problem
    assert problem is not None
    assert problem.startswith(f"{name}: ")
