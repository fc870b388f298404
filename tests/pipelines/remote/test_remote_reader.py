"""Rows of a shard set on a store, read through the cache, are those of the local files."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from object_site import ObjectSite
from shard_samples import make_record, write_shards

from pipelines.errors import DataError
from pipelines.input.order import EpochOrder, OrderSpec
from pipelines.input.reader import ShardReader

ROWS = 60
SHARD_ROWS = 5


@pytest.fixture
def site() -> Iterator[ObjectSite]:
    with ObjectSite().serve() as site:
        yield site


@pytest.fixture(params=[("arrow", 3), ("tfrecord", 3), ("arrow", 2)], ids=str)
def local(request: pytest.FixtureRequest, tmp_path: Path, site: ObjectSite) -> Path:
    """A set of 12 shards in a local directory, whose files are on the site too."""
    generator = np.random.default_rng(5)
    records = [
        make_record(generator.integers(0, 256, (20, 20, 3), np.uint8), row % 2, f"{row}.png")
        for row in range(ROWS)
    ]
    kind, version = request.param
    folder = write_shards(
        tmp_path / "set", ("a", "b"), {"train": records}, SHARD_ROWS, format=kind, version=version
    )
    site.objects |= {path.name: path.read_bytes() for path in folder.iterdir()}
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the shard cache."""
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GLASSBOX_CACHE_GB", raising=False)
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "60")
    return tmp_path / "cache" / "shards"


def find_cached(folder: Path, name: str) -> list[Path]:
    return sorted((folder / "sets").rglob(f"*{name}*"))


def measure_cache(folder: Path) -> int:
    """Returns the size of all files in the cache; under its lock, so that none is evicted meanwhile."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return sum(path.stat().st_size for path in find_cached(folder, "train"))


def test_rows_are_those_of_the_local_files(local: Path, site: ObjectSite, folder: Path) -> None:
    rows = np.random.default_rng(1).permutation(ROWS)
    expected = ShardReader(local, "train")
    reader = ShardReader(site.location, "train")
    assert find_cached(folder, "train-0") == []  # opening a set touches no shard
    assert reader.read_images(rows) == expected.read_images(rows)
    assert reader.read_ids(rows) == expected.read_ids(rows)
    np.testing.assert_array_equal(reader.read_labels(rows), expected.read_labels(rows))
    np.testing.assert_array_equal(reader.read_shapes(rows), expected.read_shapes(rows))
    assert reader.manifest.digest() == expected.manifest.digest()
    assert max(count for name, count in site.requests.items() if name != "manifest.json") == 1


def test_epochs_in_windows_need_only_half_of_the_set(local: Path, site: ObjectSite, folder: Path) -> None:
    files = [path.stat().st_size for path in local.iterdir() if path.name.startswith("train-")]
    sidecars = sum(path.stat().st_size for path in local.glob("train.*"))
    budget = sum(files) / 2 + sidecars
    spec = OrderSpec((ShardReader(local, "train").shard_rows,), 8, seed=3, window=2)
    expected = ShardReader(local, "train")
    reader = ShardReader(site.location, "train", budget / 1e9)

    def iterate_windows() -> Iterator[np.ndarray]:
        for epoch in range(3):
            for _, shards in EpochOrder(spec, epoch).iterate_windows():
                yield shards

    planned = reader.plan(iterate_windows())
    begun = 0
    for epoch in range(3):
        order = EpochOrder(spec, epoch)
        starts = [step for step, _ in order.iterate_windows()]
        for step in range(order.steps):
            rows = order.find_rows(range(step, step + 1)).reshape(-1)
            rows = rows[rows >= 0]
            assert planned.read_images(rows) == expected.read_images(rows)
            begun += starts.count(step)
            planned.advance(begun - 1)
            assert measure_cache(folder) <= budget
    assert planned.metrics().hit_rate > 0.1
    assert planned.metrics().fetched_files < 3 * len(files)


def test_a_bit_flipped_on_disk_leads_to_a_new_fetch(local: Path, site: ObjectSite, folder: Path) -> None:
    expected = ShardReader(local, "train").read_images(range(10))
    reader = ShardReader(site.location, "train")
    assert reader.read_images(range(10)) == expected
    shard = next(
        path for path in find_cached(folder, "train-") if expected[7] in path.read_bytes()
    )  # that of row 7
    content = shard.read_bytes()
    place = content.index(expected[7]) + 30
    shard.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])

    reader = ShardReader(site.location, "train")
    assert reader.read_images(range(10)) == expected
    assert shard.read_bytes() == content
    assert sorted(site.requests.values())[-2:] == [2, 2]  # the shard, and the manifest of each reader


def test_a_row_that_stays_damaged_is_an_error_with_the_address(
    local: Path, site: ObjectSite, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.input.reader.compute_checksum", lambda image, label: 0)
    with pytest.raises(DataError, match=r"train-\d+\.\w+.*row=3 of the file.*id=3\.png") as caught:
        ShardReader(site.location, "train").read_images([3])
    assert site.location in str(caught.value)
