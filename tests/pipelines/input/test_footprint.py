"""What a training needs in the cache at the same time, compared with what its passes have in use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_site import ObjectSite
from shard_samples import make_record, write_shards

from pipelines.errors import ConfigError
from pipelines.input.footprint import (
    AHEAD_STEPS,
    count_windows,
    describe_window,
    measure_need,
    measure_training,
)
from pipelines.input.order import EpochOrder, OrderSpec
from pipelines.input.passes import Pass
from pipelines.input.reader import ShardReader
from pipelines.remote.claims import check_cache
from pipelines.remote.needs import WHOLE_BYTES, Need, add_needs, count_bytes
from pipelines.spec import DataSpec

EPOCHS = 4
sizes = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def list_windows(order: OrderSpec, workers: int = 1) -> list[tuple[int, set[int]]]:
    """Returns the windows of all workers in some epochs, with the step in which each begins."""
    steps = EpochOrder(order, 0).steps
    passes = Pass(order, 0, EPOCHS, 0, steps, 0, workers).iterate_windows()
    return [(epoch * steps + step, set(shards.tolist())) for epoch, step, shards in passes]


def find_largest_use(windows: Sequence[tuple[int, set[int]]], ahead: int = 0) -> int:
    """Returns the largest number of shards that are in use between a pass and another one ahead of it."""
    largest = len(windows[0][1])
    for index, (start, _) in enumerate(windows[1:], 1):
        used = windows[index - 1][1].union(
            *(shards for step, shards in windows[index:] if step <= start + ahead)
        )
        largest = max(largest, len(used))
    return largest


@given(sizes, st.integers(1, 6), st.integers(1, 24), st.integers(0, 9))
def test_windows_in_use_are_never_more_than_counted(
    rows: list[int], window: int, batch: int, seed: int
) -> None:
    shard_rows = np.array(rows)
    windows = list_windows(OrderSpec((shard_rows,), batch, seed, window))
    counted = count_windows(shard_rows, window, batch)
    assert find_largest_use(windows) <= min(counted * window, len(rows))
    counted = count_windows(shard_rows, window, batch, passes=2)
    assert find_largest_use(windows, AHEAD_STEPS) <= min(counted * window, len(rows))


@given(sizes, st.integers(1, 24))
def test_shards_in_use_in_the_stored_order_are_never_more_than_counted(rows: list[int], batch: int) -> None:
    shard_rows = np.array(rows)
    windows = list_windows(OrderSpec((shard_rows,), batch))
    assert find_largest_use(windows) <= min(count_windows(shard_rows, 1, batch), len(rows))


@pytest.mark.parametrize(
    ("rows", "window", "batch", "passes", "windows"),
    [
        (100, 4, 8, 1, 2),
        (100, 1, 100, 1, 2),
        (100, 1, 101, 1, 4),  # a batch may begin two windows, after one that began two
        (100, 1, 201, 1, 6),
        (100, 4, 8, 2, 3),
        (8, 1, 8, 2, 2 + 1 + 15),
    ],
)
def test_windows_of_equal_shards(rows: int, window: int, batch: int, passes: int, windows: int) -> None:
    assert count_windows(np.full(1000, rows), window, batch, passes) == windows


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectSite:
    """A set of 10 shards of 6 rows, and of 4 shards for validation, on a server that does not run yet."""
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(3)

    def build_records(count: int) -> list[object]:
        pixels = draw.integers(0, 256, (count, 8, 8, 3), np.uint8)
        return [make_record(image, row % 2, f"{row}.png") for row, image in enumerate(pixels)]

    splits = {"train": build_records(60), "validation": build_records(24)}
    site = ObjectSite()
    folder = write_shards(tmp_path / "set", ("a", "b"), splits, 6)
    site.objects = {path.name: path.read_bytes() for path in folder.iterdir()}
    return site


def measure(site: ObjectSite, pattern: str) -> list[int]:
    """Returns the sizes of some objects, the largest first."""
    names = [name for name in site.objects if name.startswith(pattern)]
    return sorted((len(site.objects[name]) for name in names), reverse=True)


def test_a_training_needs_the_windows_of_both_splits_and_the_sidecars(site: ObjectSite) -> None:
    sidecars = sum(sum(measure(site, f"{split}.")) for split in ("train", "validation"))
    train = measure(site, "train-")
    validation = measure(site, "validation-")
    with site.serve():
        need = measure_training(site.location, DataSpec(window=2, cache="none"), 4, 0, 1)
        assert need == {
            site.location: Need(sum(train[:4]) + sum(validation[:2]), sidecars, sum(train) + sum(validation))
        }
        need = measure_training(site.location, DataSpec(window=2, cache="none", lanes=2), 4, 0, 2)
        assert need[site.location].shards == sum(train[:2]) + sum(validation[:2])
        need = measure_training(site.location, DataSpec(cache="none"), 4, 0, 1)
        assert need[site.location].shards == sum(train) + sum(validation[:2])
        need = measure_training(site.location, DataSpec(window=2), 4, 0, 1)
        assert need[site.location].shards == sum(train)  # while all images are decoded, 64 at a time
        reader = ShardReader(site.location, "train")
        order = OrderSpec((reader.shard_rows,), 4, 0, 2)
        assert measure_need(reader, order)[site.location].shards == sum(train[:4])
        assert count_bytes(measure_need(reader, order, passes=2)) > count_bytes(measure_need(reader, order))

        data = DataSpec(window=2, cache="none", cache_gb=(sum(train[:4]) + sidecars) / 1e9)
        needs = measure_training(site.location, data, 4, 0, 1)
        with pytest.raises(ConfigError, match=r"at least 0\.\d+ GB: two windows .*\(data\.window=2"):
            check_cache(needs, data.cache_gb, describe_window(data))
        check_cache(needs, count_bytes(needs) / 1e9, describe_window(data))


def test_local_sets_need_nothing(tmp_path: Path) -> None:
    folder = write_shards(
        tmp_path / "set", ("a",), {"train": [make_record(np.zeros((2, 2, 3), np.uint8), 0, "a.png")]}, 1
    )
    assert measure_training(str(folder), DataSpec(cache_gb=1e-9), 1, 0, 1) == {}
    check_cache({}, 1e-9, "nothing")


def test_an_index_that_is_not_fetched_whole_needs_no_space(
    site: ObjectSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.serve():
        reader = ShardReader(site.location, "train")
        before = reader.measure_need(1).sidecars
        monkeypatch.setattr("pipelines.input.reader.WHOLE_BYTES", len(site.objects["train.rows.arrow"]) - 1)
        assert reader.measure_need(1).sidecars == before - len(site.objects["train.rows.arrow"])
    assert WHOLE_BYTES > 10**7


def test_needs_of_the_same_set_are_bounded_by_its_size() -> None:
    needs = add_needs([{"a": Need(60, 5, 100)}, {"a": Need(70, 4, 90), "b": Need(1, 1, 1)}])
    assert needs == {"a": Need(130, 5, 100), "b": Need(1, 1, 1)}
    assert count_bytes(needs) == 107
