"""Several sets as one training split, value by value."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from object_site import ObjectSite
from shard_samples import make_record, write_shards

from pipelines.errors import ConfigError, DataError
from pipelines.input.footprint import measure_need
from pipelines.input.mix import MixedReader, open_reader
from pipelines.input.mixed_manifest import (
    MixedManifest,
    describe_mix,
    find_set,
    load_training_manifest,
    select_mix,
)
from pipelines.input.mixture import Mixture, compute_draws
from pipelines.input.order import EpochOrder, OrderSpec
from pipelines.input.passes import Pass, PassReader
from pipelines.input.reader import ShardReader
from pipelines.records import Record
from pipelines.remote.needs import count_bytes
from pipelines.shards.manifest import load_manifest
from pipelines.spec import DataSpec

CLASSES = ("ant", "bee")


def build_records(value: int, rows: int, name: str) -> list[Record]:
    """Images of one colour each: `value`, `value` + 1, ..."""
    return [
        make_record(np.full((2, 2, 1), value + row, np.uint8), row % 2, f"{name}/{row}.png")
        for row in range(rows)
    ]


def write_set(folder: Path, value: int, rows: int, classes: tuple[str, ...] = CLASSES, **options: str) -> str:
    splits = {
        "train": build_records(value, rows, folder.name),
        "validation": build_records(200, 2, folder.name),
    }
    return str(write_shards(folder, classes, splits, shard_rows=3, **options))


@pytest.fixture
def sets(tmp_path: Path) -> tuple[str, str]:
    return write_set(tmp_path / "a", 0, 7), write_set(tmp_path / "b", 100, 10)


def test_rows_are_numbered_one_set_after_the_other(sets: tuple[str, str]) -> None:
    reader = open_reader(sets[0], "train", DataSpec(mix={sets[0]: 0.7, sets[1]: 0.3}))
    assert isinstance(reader, MixedReader)
    assert reader.rows == 17
    assert reader.shard_rows.tolist() == [3, 3, 1, 3, 3, 3, 1]
    rows = [16, 0, 7, 6]
    assert reader.read_ids(rows) == ["b/9.png", "a/0.png", "b/0.png", "a/6.png"]
    assert reader.read_labels(rows).tolist() == [1, 0, 0, 0] == reader.labels[rows].tolist()
    assert reader.read_shapes(rows).tolist() == [[2, 2, 1]] * 4
    assert reader.read_bboxes(rows) == [None] * 4
    alone = [open_reader(name, "train", DataSpec()) for name in sets]
    assert reader.read_images(rows) == [
        *alone[1].read_images([9]),
        *alone[0].read_images([0]),
        *alone[1].read_images([0]),
        *alone[0].read_images([6]),
    ]
    with pytest.raises(DataError, match="row=17"):
        reader.read_images([0, 17])


def test_validation_images_come_from_the_named_set_alone(sets: tuple[str, str]) -> None:
    reader = open_reader(sets[1], "validation", DataSpec(mix={sets[0]: 1.0}))
    assert reader.read_ids([0, 1]) == ["b/0.png", "b/1.png"]


def test_the_manifest_describes_the_images_of_an_epoch(tmp_path: Path, sets: tuple[str, str]) -> None:
    data = DataSpec(mix={sets[0]: 3.0, sets[1]: 1.0}, epoch_images=8)
    manifest = load_training_manifest(sets[0], data)
    assert isinstance(manifest, MixedManifest)
    assert [(one.location, one.rows, one.first_row, one.epoch_images) for one in manifest.mix] == [
        (sets[0], 7, 0, 6),
        (sets[1], 10, 7, 2),
    ]
    split = manifest.get_split("train")
    assert split.rows == 17
    assert split.class_counts == (5, 4)  # 6/7 of 4 and 3, and 2/10 of 5 and 5, rounded up
    np.testing.assert_allclose(split.mean, (1, 1, 1))
    np.testing.assert_allclose(split.std, (1, 1, 1))
    assert manifest.splits["validation"] == load_manifest(sets[0]).splits["validation"]
    assert [find_set(manifest.mix, row).location for row in (0, 6, 7, 16)] == [*[sets[0]] * 2, *[sets[1]] * 2]
    assert describe_mix(manifest) == (
        "mix: 8 images per epoch; validation images from --data alone",
        f"mix: {sets[0]}: 6 of 7 images per epoch (75.0%)",
        f"mix: {sets[1]}: 2 of 10 images per epoch (25.0%)",
    )
    assert describe_mix(load_manifest(sets[0])) == ()


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path: Path, sets: tuple[str, str]) -> None:
    for name, mean in zip(sets, (10.0, 50.0), strict=True):
        stored = load_manifest(name)
        train = stored.get_split("train").model_copy(update={"mean": (mean, mean, mean)})
        stored.model_copy(update={"splits": stored.splits | {"train": train}}).save(Path(name))
    manifest = load_training_manifest(sets[0], DataSpec(mix={sets[0]: 1, sets[1]: 1}, epoch_images=6))
    pixels = np.array([9.0, 11, 49, 51])  # each set: its mean and a deviation of 1
    split = manifest.get_split("train")
    np.testing.assert_allclose(split.mean, [pixels.mean()] * 3)
    np.testing.assert_allclose(split.std, [pixels.std()] * 3)


def test_the_digest_covers_all_sets(tmp_path: Path, sets: tuple[str, str]) -> None:
    def compute_digest(base: str, *names: str, weight: float = 1.0) -> str:
        return load_training_manifest(base, DataSpec(mix=dict.fromkeys(names, weight))).digest()

    other = write_set(tmp_path / "c", 50, 5)
    digests = {
        load_manifest(sets[0]).digest(),
        compute_digest(sets[0], *sets),
        compute_digest(sets[1], *sets),
        compute_digest(sets[0], sets[0], other),
        compute_digest(other, sets[0], other),
    }
    assert len(digests) == 5
    # Like the seed and the window, the weights are no property of the data.
    assert compute_digest(sets[0], *sets, weight=2.0) in digests


def test_the_mix_of_a_run_belongs_to_its_own_set(sets: tuple[str, str]) -> None:
    settings = {"shards": sets[0], "data": {"mix": {sets[1]: 1.0}, "epoch_images": 5, "an_old_option": 1}}
    assert select_mix(settings, Path(sets[0])) == DataSpec(mix={sets[1]: 1.0}, epoch_images=5)
    assert select_mix(settings, sets[1]) == DataSpec()
    assert select_mix({}, sets[1]) == DataSpec()


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (("ant", "cat", "dog"), {}, r"missing: bee; not expected: cat, dog\. Fix: .*--classes FILE"),
        (("bee", "ant"), {}, "another order: bee, ant"),
        (CLASSES, {"encoding": "raw"}, "encoding=as-found, .*: encoding=raw"),
    ],
)
def test_sets_that_cannot_be_mixed_are_refused(
    tmp_path: Path, sets: tuple[str, str], classes: tuple[str, ...], options: dict[str, str], message: str
) -> None:
    other = write_set(tmp_path / "c", 0, 4, classes, **options)
    with pytest.raises(DataError, match=message):
        load_training_manifest(sets[0], DataSpec(mix={sets[0]: 1, other: 1}))


def test_a_set_without_an_image_in_an_epoch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight=0\.001"):
        compute_draws([100, 100], [1, 0.001])


def test_images_per_epoch_are_those_of_a_mix_alone() -> None:
    with pytest.raises(ValueError, match=r"set data\.mix as well"):
        DataSpec(epoch_images=5)


def test_settings_with_a_mix_can_be_a_key() -> None:
    settings = {DataSpec(mix={"a": 1.0}), DataSpec(mix={"a": 1.0}), DataSpec(mix={"a": 2.0}), DataSpec()}
    assert len(settings) == 3


def test_every_block_has_the_exact_share_of_every_set() -> None:
    mixture = Mixture([7000, 3000], 1, 0)
    sets = mixture.read(0, 10_000)
    assert np.bincount(sets).tolist() == [7000, 3000]
    counts = np.cumsum(sets)
    assert np.abs(counts - 0.3 * np.arange(1, 10_001)).max() < 60  # a few standard deviations of a block
    assert np.abs(counts[999::1000] - 0.3 * np.arange(1000, 10_001, 1000)).max() <= 1
    assert mixture.count(4321).tolist() == np.bincount(sets[:4321]).tolist()
    places = np.flatnonzero(sets == 1)
    assert [mixture.find_position(1, draw) for draw in (0, 1234, 2999)] == places[[0, 1234, 2999]].tolist()


def test_the_order_of_a_mix_never_changes() -> None:
    spec = OrderSpec((np.array([3, 3, 1]), np.array([3, 3, 3, 1])), 5, 0, 2, draws=(7, 3))
    epochs = [EpochOrder(spec, epoch).find_rows(range(2)).ravel().tolist() for epoch in range(3)]
    assert epochs == [
        [0, 2, 1, 6, 5, 8, 4, 7, 9, 3],
        [16, 5, 3, 2, 11, 4, 1, 0, 6, 10],
        [6, 2, 1, 0, 3, 13, 5, 14, 4, 12],
    ]


def test_every_set_plans_its_own_part_of_the_windows(
    sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[list[list[int]]] = []

    def record_plan(reader: ShardReader, windows: Iterable[np.ndarray]) -> ShardReader:
        planned.append([window.tolist() for window in windows])
        return reader

    monkeypatch.setattr(ShardReader, "plan", record_plan)
    reader = MixedReader(sets[0], DataSpec(mix={sets[0]: 1, sets[1]: 1}))
    steps = Pass(OrderSpec(reader.set_shard_rows, 2, 5, 1, draws=(7, 7)), 1, 1, 0, 7)
    reader.plan(steps)
    windows = [shards.tolist() for shards in steps]
    assert planned == [
        [[shard for shard in window if shard < 3] for window in windows],
        [[shard - 3 for shard in window if shard >= 3] for window in windows],
    ]
    assert sorted({shard for window in windows for shard in window if shard < 3}) == [0, 1, 2]


def test_a_mix_on_stores_shares_one_small_cache(
    tmp_path: Path, sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row of two epochs is that of the local sets, with a cache of less than all shards."""
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    local = MixedReader(sets[0], DataSpec(mix=dict.fromkeys(sets, 1)))
    with ObjectSite().serve() as one, ObjectSite().serve() as other:
        for site, name in zip((one, other), sets, strict=True):
            site.objects |= {path.name: path.read_bytes() for path in Path(name).iterdir()}
        mix = {one.location: 1, other.location: 1}
        spec = OrderSpec(local.set_shard_rows, 2, 5, 1, draws=(7, 7))
        needs = measure_need(MixedReader(one.location, DataSpec(mix=mix)), spec)
        assert needs.keys() == mix.keys()
        assert all(need.shards < need.total for need in needs.values())
        remote = MixedReader(one.location, DataSpec(mix=mix, cache_gb=count_bytes(needs) / 1e9))
        steps = Pass(spec, 0, 2, 0, 7)
        reading = PassReader(remote, steps)
        for epoch, steps_of_epoch in steps.iterate_steps():
            for step in steps_of_epoch:
                rows = EpochOrder(spec, epoch).find_rows(range(step, step + 1))[0]
                assert reading.reader.read_images(rows) == local.read_images(rows)
                reading.finish(epoch, step)
        reading.close()
        metrics = remote.metrics()
    assert metrics.used_bytes > 0
