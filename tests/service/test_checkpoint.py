"""Checkpoints: what is loaded is what was saved, and damaged checkpoints are skipped."""

from __future__ import annotations

import io
import json
import os
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest

from pipelines.errors import ConfigError, TrainingError
from pipelines.storage import hash_file
from service.checkpoint import (
    Position,
    RunCheckpoint,
    Variables,
    choose_epochs,
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
    snapshot,
    variables_of,
)
from service.checkpoint_record import format_record


def variables(fill: float, size: int = 3) -> Variables:
    first = keras.Variable(np.full((2, size), fill, np.float32))
    return {
        "model": [first],
        "optimizer": [keras.Variable(np.float32(fill + 1))],
        "training": [keras.Variable(np.full(1, fill + 2))],
    }


def values(members: Variables) -> list[float]:
    return [float(np.ravel(v.numpy())[0]) for group in members.values() for v in group]


def position(epochs: int, step: int = 0) -> Position:
    history = tuple(
        {"epoch": n, "accuracy": 1.0, "val_accuracy": [0.5, 0.9, 0.6, 0.9][(n - 1) % 4]}
        for n in range(1, epochs + 1)
    )
    return Position(
        "abc",
        history,
        step,
        (1.5, 2.0, 3.0, 4.0) if step else (0.0,) * 4,
        2.5 if step else 0.0,
        1 if step else 0,
    )


def save(directory: Path, *epochs: int, step: int = 0, keep: int = 9) -> None:
    for epoch in epochs:
        save_checkpoint(
            directory,
            snapshot(variables(epoch)),
            position(epoch, step),
            keep,
            stage=1,
            config={"model": "net"},
        )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def damage(directory: Path, name: str) -> None:
    state = directory / name / "state.npz"
    state.write_bytes(state.read_bytes()[:-1] + b"?")


def test_the_newest_is_loaded_completely(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    save(tmp_path, 2, step=3)
    found = newest_checkpoint(tmp_path, "abc", "net")
    assert (found.path.name, found.position, found.stage, found.damaged) == (
        "epoch-0002-step-0000003",
        position(2, 3),
        1,
        (),
    )
    target = variables(0)
    found.load(target)
    assert values(target) == [2, 3, 4]
    np.testing.assert_array_equal(target["model"][0].numpy(), np.full((2, 3), 2.0))


def test_a_new_stage_loads_the_model_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    target = variables(0)
    newest_checkpoint(tmp_path, "abc").load({"model": target["model"]})
    assert values(target) == [1, 1, 2]


def test_a_snapshot_is_a_copy() -> None:
    members = variables(1)
    copies = snapshot(members)
    members["model"][0].assign(np.zeros((2, 3)))
    assert copies["model"][0][0, 0] == 1


def test_all_variables_but_seeds_of_dropout_are_saved() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs, keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(keras.layers.Dense(2)(inputs)))
    )
    optimizer = keras.optimizers.SGD(momentum=0.9)
    optimizer.build(model.trainable_variables)
    members = variables_of(model, optimizer, ["average"])
    assert [v.path.split("/")[-1] for v in members["model"]] == [
        "kernel",
        "bias",
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    ]
    assert len(members["optimizer"]) == 6  # iterations, rate, and four velocities
    assert members["training"] == ["average"]


def test_a_position_follows_from_its_history() -> None:
    assert (position(3).epoch, position(3).best_epoch, position(3).name) == (3, 2, "epoch-0003")
    assert (Position("abc").epoch, Position("abc").best_epoch) == (0, 0)
    assert position(4).best_epoch == 2  # the first of equals
    assert position(1, 12).name == "epoch-0001-step-0000012"


def test_the_best_epoch_is_that_of_validation() -> None:
    history = (
        {"accuracy": 0.9, "val_accuracy": 0.4},
        {"accuracy": 0.1, "val_accuracy": 0.6},
        {"accuracy": 1.0},
    )
    assert Position("abc", history).best_epoch == 2
    assert Position("abc", history[2:]).best_epoch == 1
    assert Position("abc", ({"accuracy": 0.5}, {"accuracy": 0.75})).best_epoch == 2


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    save(tmp_path, *range(1, 8), keep=2)
    assert names(tmp_path) == ["epoch-0002", "epoch-0006", "epoch-0007"]
    save(tmp_path, 7, step=1, keep=2)
    save(tmp_path, 7, step=2, keep=2)
    assert names(tmp_path) == ["epoch-0002", "epoch-0007-step-0000001", "epoch-0007-step-0000002"]


def test_ten_thousand_epochs_come_after_the_9999th(tmp_path: Path) -> None:
    save(tmp_path, 9999, keep=2)
    save(tmp_path, 10000, 10001, keep=2)
    assert names(tmp_path) == ["epoch-10000", "epoch-10001"]
    assert newest_checkpoint(tmp_path, "abc").position.epoch == 10001


def test_damaged_checkpoints_are_skipped_and_removed_by_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    for name in ("epoch-0002", "epoch-0003"):
        damage(tmp_path, name)
    found = newest_checkpoint(tmp_path, "abc", "net")
    assert (found.position, [path.name for path in found.damaged]) == (
        position(1),
        ["epoch-0003", "epoch-0002"],
    )
    save(tmp_path, 1, step=2, keep=1)
    # The best one, and the newest intact one
    assert names(tmp_path) == [
        "epoch-0001",
        "epoch-0001-step-0000002",
    ]
    assert newest_checkpoint(tmp_path, "abc").position == position(1, 2)


def test_a_state_of_an_implausible_size_is_not_read(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    os.truncate(tmp_path / "epoch-0002" / "state.npz", 1 << 36)  # 64 GiB without a block on disk
    found = newest_checkpoint(tmp_path, "abc", "net")
    assert (found.position, [path.name for path in found.damaged]) == (position(1), ["epoch-0002"])


def test_arrays_that_declare_terabytes_are_an_error_that_names_the_checkpoint(tmp_path: Path) -> None:
    """Somebody has altered the arrays, and the digests with them."""
    save(tmp_path, 1)
    path = tmp_path / "epoch-0001"
    arrays = (path / "state.npz").read_bytes()
    with zipfile.ZipFile(io.BytesIO(arrays)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path / "state.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"(2, 3)", b"(2, 9" + b"9" * 11 + b")", 1))
    record = json.loads((path / "checkpoint.json").read_text())
    record["sha256"] = hash_file(path / "state.npz")
    (path / "checkpoint.json").write_text(format_record(record))
    found = newest_checkpoint(tmp_path, "abc")
    with pytest.raises(TrainingError, match=r"epoch-0001 \(0000.npy declares"):
        found.load(variables(0))
    with pytest.raises(TrainingError, match=r"epoch-0001 \(0000.npy declares"):
        RunCheckpoint(1, path).load(SmallModel())


class SmallModel:
    """What `RunCheckpoint.load` uses of a Keras model."""

    def __init__(self) -> None:
        self.variables = list(variables(0)["model"])


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"sha256": 3}', None])
def test_a_damaged_description_counts_as_damage(tmp_path: Path, content: str | None) -> None:
    save(tmp_path, 1, 2)
    description = tmp_path / "epoch-0002" / "checkpoint.json"
    if content is None:
        description.unlink()
    else:
        description.write_text(content)
    assert newest_checkpoint(tmp_path, "abc").position == position(1)


def test_an_incomplete_description_counts_as_damage(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "epoch-0002" / "checkpoint.json"
    description = json.loads(path.read_text())
    del description["record_sha256"]  # as older versions wrote it
    path.write_text(json.dumps(description))
    assert newest_checkpoint(tmp_path, "abc").position == position(2)
    for name in ("data", "history", "step", "sums", "stage", "groups"):
        path.write_text(json.dumps({key: value for key, value in description.items() if key != name}))
        assert newest_checkpoint(tmp_path, "abc").position == position(1)


def test_a_changed_digit_of_a_description_counts_as_damage(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "epoch-0002" / "checkpoint.json"
    text = path.read_text()
    digits = [index for index, letter in enumerate(text) if letter.isdigit()]
    for index in digits:
        path.write_text(text[:index] + str((int(text[index]) + 1) % 10) + text[index + 1 :])
        assert newest_checkpoint(tmp_path, "abc").position == position(1), text[index - 20 : index + 1]


def test_a_checkpoint_in_the_folder_of_another_counts_as_damage(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "epoch-0001").rename(tmp_path / "aside")
    (tmp_path / "epoch-0002").rename(tmp_path / "epoch-0001")
    with pytest.raises(TrainingError, match="undamaged"):
        newest_checkpoint(tmp_path, "abc")


def test_damaged_checkpoints_alone_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "epoch-0001" / "state.npz").write_bytes(b"")
    with pytest.raises(TrainingError, match="undamaged"):
        newest_checkpoint(tmp_path, "abc")


def test_no_checkpoint_is_a_start(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, "abc") is None
    (tmp_path / "epoch-nonsense").mkdir()
    assert newest_checkpoint(tmp_path, "abc") is None


def test_other_data_or_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match="shard set the run began with"):
        newest_checkpoint(tmp_path, "other")
    with pytest.raises(ConfigError, match="model=web"):
        newest_checkpoint(tmp_path, "abc", "web")
    target = variables(0, size=4)
    with pytest.raises(TrainingError, match=r"same model and optimizer \(model\)"):
        newest_checkpoint(tmp_path, "abc").load(target)
    with pytest.raises(TrainingError, match=r"\(optimizer\)"):
        newest_checkpoint(tmp_path, "abc").load({"optimizer": []})
    assert values(target) == [0, 1, 2]


def test_unfinished_checkpoints_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in (".tmp-1", ".old-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.npz").write_bytes(b"half")
    assert newest_checkpoint(tmp_path, "abc").position == position(1)
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["epoch-0001"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limits the size of files, which has the effect of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_older_checkpoint_intact(tmp_path: Path) -> None:
    save(tmp_path, 1)
    large = snapshot(variables(2, size=100_000))
    for epoch in (1, 2):  # replaces it, and adds another
        with largest_file(100_000), pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, large, position(epoch), keep=1)
        assert names(tmp_path) == ["epoch-0001"]
    assert newest_checkpoint(tmp_path, "abc").position == position(1)


@pytest.mark.parametrize(
    ("epochs", "best", "limit", "expected"),
    [
        ([1, 8, 16, 24, 29, 30], 24, 4, [1, 16, 24, 30]),
        ([1, 8, 16, 29, 30], 30, 4, [1, 8, 16, 30]),  # the best is the last: another one fills the gap
        ([1, 16, 32, 47, 48, 50], 47, 4, [1, 32, 47, 50]),  # 32 is closer to 25 than 16 is
        ([1, 2, 3], 2, 4, [1, 2, 3]),
        ([2, 5], 1, 4, [2, 5]),  # the best one is not there
        ([7], 7, 4, [7]),
        ([], 0, 4, []),
        (range(1, 31), 24, 6, [1, 8, 15, 19, 24, 30]),
        (range(1, 31), 24, 1, [1]),
    ],
)
def test_the_first_middle_best_and_last_epochs_are_chosen(
    epochs: list[int], best: int, limit: int, expected: list[int]
) -> None:
    assert choose_epochs(epochs, best, limit) == expected
