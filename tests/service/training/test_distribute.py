"""Which batches each replica gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf
from training_samples import config_for, noise_shards

from pipelines.input.batches import Batches
from pipelines.records import Batch
from service.training.distribute import distribute_batches, distribute_eager_batches
from service.training.strategy import WorkerContext


@pytest.mark.parametrize("distribute", [distribute_batches, distribute_eager_batches])
def test_epochs_follow_each_other_from_any_step_on(
    tmp_path: Path, distribute: Callable[..., Iterator[Batch]]
) -> None:
    config = config_for(noise_shards(tmp_path / "shards", rows=11, held_out=0))
    batches = Batches(config.shards, "train", config.data, 4, seed=5)
    iterator = distribute(tf.distribute.get_strategy(), batches, WorkerContext(), 2, 1, 2)
    rows = [batch["row"].numpy().tolist() for batch in iterator]
    steps = ((2, 1), (2, 2), (3, 0), (3, 1), (3, 2))  # epoch and step
    assert rows == [batches.find_rows(epoch, step).tolist() for epoch, step in steps]
    assert rows[1][3] == -1  # padding
