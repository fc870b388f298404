"""Checkpoints: what comes back is what was saved, and a damaged one is passed over."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from pipelines.errors import ConfigError, TrainingError
from service.checkpoint import Position, restore_latest, save_checkpoint


def variables(fill: float) -> list[keras.Variable]:
    return [keras.Variable(np.full((2, 3), fill, np.float32)), keras.Variable(np.float32(fill + 1))]


def position(epochs: int) -> Position:
    return Position("abc", tuple({"epoch": epoch, "accuracy": 1.0, "val_accuracy": 1 / epoch} for epoch in range(1, epochs + 1)))


def saved(directory: Path, *epochs: int, keep: int = 9) -> None:
    for epoch in epochs:
        save_checkpoint(directory, variables(epoch), position(epoch), keep)


def test_newest_comes_back_whole(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    target = variables(0)
    assert restore_latest(tmp_path, target, "abc") == position(2)
    np.testing.assert_array_equal(target[0].numpy(), np.full((2, 3), 2.0))
    assert float(target[1].numpy()) == 3


def test_position_is_what_its_history_says() -> None:
    assert (position(3).epoch, position(3).best) == (3, 1.0)
    assert Position("abc").epoch == 0
    assert Position("abc").best < 0
    assert Position("abc", ({"epoch": 1, "accuracy": 0.25},)).best == 0.25


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 12), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0010", "epoch-0011"]


def test_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    state = tmp_path / "epoch-0002" / "state.npz"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    target = variables(0)
    assert restore_latest(tmp_path, target, "abc") == position(1)
    assert float(target[1].numpy()) == 2


@pytest.mark.parametrize("content", ["", "{}", "[]", None])
def test_a_damaged_description_is_damage_too(tmp_path: Path, content: str | None) -> None:
    saved(tmp_path, 1, 2)
    description = tmp_path / "epoch-0002" / "checkpoint.json"
    if content is None:
        description.unlink()
    else:
        description.write_text(content)
    assert restore_latest(tmp_path, variables(0), "abc") == position(1)


def test_ten_thousand_epochs_come_after_the_9999th(tmp_path: Path) -> None:
    (tmp_path / "epoch-9999").mkdir()
    (tmp_path / "epoch-10000").mkdir()
    saved(tmp_path, 1, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-10000", "epoch-9999"]


def test_nothing_but_damage_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "epoch-0001" / "state.npz").write_bytes(b"")
    with pytest.raises(TrainingError, match="undamaged"):
        restore_latest(tmp_path, variables(0), "abc")


def test_no_checkpoint_is_a_start(tmp_path: Path) -> None:
    assert restore_latest(tmp_path, variables(0), "abc") is None


def test_other_data_or_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(ConfigError, match="shard set the run began with"):
        restore_latest(tmp_path, variables(0), "other")
    with pytest.raises(TrainingError, match="same model"):
        restore_latest(tmp_path, variables(0)[:1], "abc")
