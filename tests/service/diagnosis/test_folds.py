"""Folds for cross-validation: the same share of every class, and exact copies of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from shard_samples import make_record, write_shards

from pipelines.input.reader import ShardReader
from service.diagnosis.folds import assign_folds, write_subset


def test_every_fold_has_the_same_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [40, 23, 3]).astype(np.int32)
    folds = assign_folds(labels, 5, seed=1)
    counts = np.array([np.bincount(labels[folds == fold], minlength=3) for fold in range(5)])
    assert counts.sum(axis=0).tolist() == [40, 23, 3]
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert np.array_equal(folds, assign_folds(labels, 5, seed=1))
    assert not np.array_equal(folds, assign_folds(labels, 5, seed=2))


def test_a_subset_has_the_same_images_and_the_given_labels(tmp_path: Path) -> None:
    records = [make_record(np.full((4, 5, 1), row, np.uint8), row % 2, f"{row}.png") for row in range(9)]
    shards = write_shards(tmp_path / "shards", ("a", "b"), {"train": records}, shard_rows=4)
    rows = np.array([7, 0, 3])
    flipped = {"train": np.ones(9, np.int32)}
    subset = write_subset(shards, tmp_path / "subset", {"validation": ("train", rows)}, flipped)
    reader = ShardReader(subset, "validation")
    assert reader.read_ids(range(3)) == ["7.png", "0.png", "3.png"]
    assert [bytes(image) for image in reader.read_images(range(3))] == [records[row].image for row in rows]
    assert reader.labels.tolist() == [1, 1, 1]
    assert reader.manifest.splits["validation"].class_counts == (0, 3)
    assert list(reader.manifest.splits) == ["validation"]
