"""Milestones: which epochs are kept, and that a run that was killed and resumed keeps the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.milestones import (
    find_milestone_epoch,
    find_obsolete_milestones,
    list_milestones,
    remove_obsolete_milestones,
    save_milestone,
)


def finish(folder: Path, epochs: range) -> None:
    """Does what a training does at the end of each epoch; the weights tell the epoch."""
    for epoch in epochs:
        save_milestone(folder, epoch, [np.full(3, epoch, np.float32)])
        remove_obsolete_milestones(folder, epoch)


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, set()),
        (1, {1}),
        (2, {1, 2}),
        (3, {1, 2}),
        (4, {1, 2, 4}),
        (7, {1, 2, 4}),
        (8, {1, 4, 8}),
        (30, {1, 8, 16}),
        (32, {1, 16, 32}),
    ],
)
def test_the_first_epoch_and_two_powers_of_two_are_kept(epoch: int, expected: set[int]) -> None:
    assert list_milestones(epoch) == expected


def test_one_of_them_is_always_in_the_middle_third() -> None:
    for epoch in range(2, 3000):
        assert any(epoch <= 3 * kept <= 2 * epoch for kept in list_milestones(epoch)), epoch


def test_what_is_kept_was_kept_before() -> None:
    """A milestone is the epoch itself, or was one after the epoch before: none has to be known in advance."""
    for epoch in range(1, 3000):
        assert list_milestones(epoch) <= list_milestones(epoch - 1) | {epoch}


def test_the_files_are_those_of_the_milestones(tmp_path: Path) -> None:
    folder = tmp_path / "milestones"
    finish(folder, range(1, 12))
    assert list_names(folder) == ["epoch-0001.npz", "epoch-0004.npz", "epoch-0008.npz"]
    for epoch in (1, 4, 8):
        with np.load(folder / f"epoch-{epoch:04d}.npz") as weights:
            np.testing.assert_array_equal(weights["0000"], np.full(3, epoch))


@pytest.mark.parametrize("killed_after", [1, 4, 5, 8])
@pytest.mark.parametrize("is_saved", [True, False])
def test_a_killed_run_keeps_the_same(tmp_path: Path, killed_after: int, is_saved: bool) -> None:
    """Killed after an epoch, before or after its milestone is saved, and resumed from the epoch before."""
    straight = tmp_path / "straight"
    finish(straight, range(1, 10))
    killed = tmp_path / "killed"
    finish(killed, range(1, killed_after))
    if is_saved:
        save_milestone(killed, killed_after, [np.zeros(3, np.float32)])
        (killed / ".tmp-left-epoch-0004.npz").write_bytes(b"half")
    finish(killed, range(killed_after, 10))
    assert list_names(killed) == list_names(straight)
    for name in list_names(straight):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()


def test_milestones_of_later_epochs_are_obsolete() -> None:
    """Training continues from an earlier checkpoint when the newest ones are damaged."""
    names = ["epoch-0001.npz", "epoch-0004.npz", "epoch-0008.npz", "notes.npz"]
    assert find_obsolete_milestones(names, 6) == ["epoch-0008.npz"]
    assert find_obsolete_milestones(names, 20) == ["epoch-0004.npz"]


def test_names_sort_and_parse_beyond_four_digits() -> None:
    assert find_milestone_epoch("epoch-16384.npz") == 16384
    assert find_milestone_epoch("epoch-0004-step-0000002.npz") == 0
    assert find_obsolete_milestones(["epoch-8192.npz", "epoch-16384.npz"], 20000) == []
