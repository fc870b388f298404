"""Milestones: the weights after the first epoch and in the middle of a run, which show how it has learned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipelines.storage import replace_file
from service.array_file import save_arrays

NAME = re.compile(r"epoch-(\d+)\.npz")


def list_milestones(epoch: int) -> set[int]:
    """Lists the epochs whose weights a run keeps: the first one, and the two newest powers of two.

    The last epoch of a run is not known in advance, because it may stop early or be continued. Of the two
    newest powers of two, one always lies between a third and two thirds of the finished epochs (from the
    second epoch on), and neither has to be known before it is reached. The set depends on nothing but the
    number of epochs, so that a run that was killed and resumed keeps the same.

    Args:
        epoch: Number of finished epochs.
    """
    if epoch < 1:
        return set()
    newest = 1 << (epoch.bit_length() - 1)
    return {1, max(newest // 2, 1), newest}


def save_milestone(folder: Path, epoch: int, weights: Sequence[np.ndarray]) -> None:
    """Saves the weights of an epoch if it is a milestone; an older file of this epoch is replaced.

    Args:
        folder: The run's `milestones`.
        epoch: Number of finished epochs.
        weights: Variables of the model, in the order of `service.checkpoint.variables_of`.
    """
    if epoch not in list_milestones(epoch):
        return
    folder.mkdir(exist_ok=True)
    with replace_file(folder / f"epoch-{epoch:04d}.npz") as temporary:
        save_arrays(temporary, weights)


def remove_obsolete_milestones(folder: Path, epoch: int) -> None:
    """Removes the milestones that a run does not keep, and what a killed process has left behind.

    Args:
        folder: The run's `milestones`; it need not exist.
        epoch: Number of finished epochs.
    """
    names = [path.name for path in folder.glob("*.npz")]
    for name in find_obsolete_milestones(names, epoch):
        (folder / name).unlink()
    for path in folder.glob(".tmp-*"):
        path.unlink()


def find_obsolete_milestones(names: Iterable[str], epoch: int) -> list[str]:
    """Finds the milestones that a run does not keep; those of later epochs are among them.

    Args:
        names: Names of files such as `epoch-0004.npz`; other names are left alone.
        epoch: Number of finished epochs.
    """
    kept = list_milestones(epoch)
    return sorted(name for name in names if NAME.fullmatch(name) and find_milestone_epoch(name) not in kept)


def find_milestone_epoch(name: str) -> int:
    """Returns the number of finished epochs of a milestone, from the name of its file; 0 for other names."""
    match = NAME.fullmatch(name)
    return int(match[1]) if match else 0
