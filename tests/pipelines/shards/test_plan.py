"""The plan of a shard set: every candidate in exactly one shard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards.plan import MissingShards, choose_shard_rows, plan_shards
from pipelines.spec import ShardSpec

counts = st.fixed_dictionaries(
    {"train": st.integers(0, 80)}, optional={"validation": st.integers(0, 80), "test": st.integers(0, 80)}
)
specs = st.builds(ShardSpec, shard_rows=st.integers(1, 40), validation=st.floats(0, 0.999))


def test_a_source_with_both_splits_is_divided_in_order():
    plan = plan_shards({"train": 5, "validation": 2}, ShardSpec(shard_rows=2, validation=0.5))
    assert [(shard.file, shard.split, shard.source_split, shard.start, shard.stop) for shard in plan] == [
        ("train-00000-of-00003.arrow", "train", "train", 0, 2),
        ("train-00001-of-00003.arrow", "train", "train", 2, 4),
        ("train-00002-of-00003.arrow", "train", "train", 4, 5),
        ("validation-00000-of-00001.arrow", "validation", "validation", 0, 2),
    ]


def test_a_test_split_stays_one():
    plan = plan_shards({"train": 10, "test": 3}, ShardSpec(validation=0.2))
    assert [(shard.file, shard.source_split, shard.start, shard.stop) for shard in plan] == [
        ("train-00000-of-00001.arrow", "train", 0, 8),
        ("validation-00000-of-00001.arrow", "train", 8, 10),
        ("test-00000-of-00001.arrow", "test", 0, 3),
    ]


def test_the_end_of_train_is_held_out():
    plan = plan_shards({"train": 10}, ShardSpec(shard_rows=8, validation=0.3))
    assert [(shard.split, shard.source_split, shard.start, shard.stop) for shard in plan] == [
        ("train", "train", 0, 7),
        ("validation", "train", 7, 10),
    ]


@pytest.mark.parametrize(
    ("images", "share", "held_out"),
    [(2, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0), (9, 0.0, 0), (0, 0.5, 0), (100, 0.2, 20)],
)
def test_at_least_one_image_is_held_out_and_never_all(images, share, held_out):
    plan = plan_shards({"train": images}, ShardSpec(validation=share))
    assert sum(shard.candidates for shard in plan if shard.split == "validation") == held_out
    assert sum(shard.candidates for shard in plan if shard.split == "train") == images - held_out


@given(counts, specs)
def test_every_candidate_is_in_one_shard(counts, spec):
    plan = plan_shards(counts, spec)
    assert plan == plan_shards(dict(reversed(counts.items())), spec)
    for split, count in counts.items():
        ranges = [range(shard.start, shard.stop) for shard in plan if shard.source_split == split]
        assert [index for indices in ranges for index in indices] == list(range(count))
    assert all(0 < shard.stop - shard.start <= spec.shard_rows for shard in plan)
    assert len({shard.file for shard in plan}) == len(plan)
    if counts["train"]:
        assert plan[0].split == "train"


@given(counts, specs)
def test_names_of_a_split_sort_in_row_order_and_count_its_shards(counts, spec):
    plan = plan_shards(counts, spec)
    for split in ("train", "validation", "test"):
        files = [shard.file for shard in plan if shard.split == split]
        assert files == [f"{split}-{index:05d}-of-{len(files):05d}.arrow" for index in range(len(files))]


@pytest.mark.parametrize(
    ("images", "image_bytes", "rows"),
    [
        (1_280_000, 110_000, 872),  # 96 MB
        (2_000, 110_000, 125),  # 16 shards
        (100, 110_000, 32),  # not fewer than 32
        (1_000_000, 10**9, 1),
        (0, 0.0, 32),
        (10**9, 0.0, 62_500_000),
    ],
)
def test_the_size_of_shards_follows_from_number_and_size_of_the_images(images, image_bytes, rows):
    assert choose_shard_rows(images, image_bytes) == rows


@given(counts, specs)
def test_a_shard_by_its_position_is_that_of_the_iteration(counts, spec):
    plan = plan_shards(counts, spec)
    assert [plan[index] for index in range(len(plan))] == list(plan)
    assert [shard.index for shard in plan] == list(range(len(plan)))
    assert sum(shard.candidates for shard in plan) == plan.candidates
    is_complete = bytes(index % 3 == 0 for index in range(len(plan)))
    missing = MissingShards(plan, is_complete)
    assert list(missing) == [shard for shard in plan if shard.index % 3]
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_a_plan_of_a_billion_shards_is_computed_on_access():
    plan = plan_shards({"train": 10**9}, ShardSpec(shard_rows=1, validation=0))
    assert len(plan) == 10**9
    assert plan[-1].file == "train-999999999-of-1000000000.arrow"


@pytest.mark.parametrize(
    ("name", "is_owned"),
    [
        ("train-00001-of-00003.arrow", True),
        ("train-00001-of-00003.index.arrow", True),
        ("train-00003-of-00003.arrow", False),
        ("train-1-of-3.arrow", False),
        ("train-00001-of-00004.arrow", False),
        ("test-00001-of-00003.arrow", False),
        ("manifest.json", False),
        ("train.rows.arrow", False),
    ],
)
def test_files_of_a_plan_are_recognised(name, is_owned):
    plan = plan_shards({"train": 5}, ShardSpec(shard_rows=2, validation=0))
    assert plan.owns_file(name) is is_owned
