"""The record of a checkpoint, `checkpoint.json`: progress of the run, digests of the state and of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.storage import add_digest, parse_json, read_bounded, remove_digest

FILE_NAME = "checkpoint.json"
DIGEST = "record_sha256"  # key of the digest over all other entries
PATTERN = "epoch-*"
NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")


class CheckpointRecord(BaseModel):
    """What a checkpoint consists of besides its arrays.

    Attributes:
        data: Digest of the shard set's manifest.
        epoch: Number of finished epochs.
        step: Batches of the current epoch that have been trained on.
        history: Metrics of every finished epoch, oldest first.
        sums: Totals over the batches of the current epoch.
        seconds: Training time of these batches.
        skipped: Updates in these batches that were skipped because a gradient was not finite.
        squared_gradients: Sums over these batches, see `service.training.layer_norms.GradientNorms`.
        stage: Stage of the run, from 0.
        config: Configuration of the run.
        groups: Number of arrays of each group of variables, in their order.
        layers: Digest of the lines of `layers.jsonl` for the finished epochs; None in older versions.
        sha256: Digest of the file with the arrays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    history: tuple[dict[str, int | float], ...]
    sums: tuple[float, ...]
    seconds: float
    skipped: int = 0
    squared_gradients: tuple[float, ...] = ()
    stage: int = Field(ge=0)
    config: dict[str, Any] = {}
    groups: dict[str, int]
    layers: str | None = None
    sha256: str

    @model_validator(mode="after")
    def _check_epoch(self) -> CheckpointRecord:
        if self.epoch != len(self.history):
            raise ValueError(f"{self.epoch} epochs, but metrics of {len(self.history)}")
        return self

    @classmethod
    def from_json(cls, text: str | bytes) -> CheckpointRecord:
        """Parses the content of a record.

        Raises:
            ValueError: The record is damaged. Records of older versions have no digest of their own.
        """
        return cls.model_validate(remove_digest(parse_json(text), DIGEST))


def read_record(checkpoint: Path) -> CheckpointRecord | None:
    """Reads the record of a checkpoint; None if it is missing, damaged, or belongs to another checkpoint.

    Args:
        checkpoint: Directory of the checkpoint.
    """
    try:
        record = CheckpointRecord.from_json(read_bounded(checkpoint / FILE_NAME))
    except (OSError, ValueError):
        return None
    return record if parse_name(checkpoint.name) == (record.epoch, record.step) else None


def read_newest_record(directory: Path) -> CheckpointRecord | None:
    """Reads the record of the newest checkpoint whose record is undamaged; None if there is none.

    Args:
        directory: The run's `checkpoints`.
    """
    records = (read_record(path) for path in reversed(list_checkpoints(directory)))
    return next((record for record in records if record is not None), None)


def format_record(entries: dict[str, Any]) -> str:
    """Formats the entries of a record, with a digest over them."""
    return json.dumps(add_digest(entries, DIGEST), indent=2) + "\n"


def list_checkpoints(directory: Path) -> list[Path]:
    """Lists the directories of all checkpoints, damaged ones too, oldest first.

    Args:
        directory: The run's `checkpoints`.
    """
    names = [path.name for path in directory.glob(PATTERN)]
    return [directory / name for name in sort_checkpoints(names)]


def sort_checkpoints(names: Iterable[str]) -> list[str]:
    """Sorts names of checkpoints by their positions, oldest first; leaves out other names.

    Args:
        names: Names such as `epoch-0003` or `epoch-0003-step-0000120`.
    """
    positions = {name: parse_name(name) for name in names}
    return sorted((name for name in positions if positions[name]), key=lambda name: positions[name] or ())


def parse_name(name: str) -> tuple[int, int] | None:
    """Returns the finished epochs and the batches of the current one, from a checkpoint's name, else None."""
    match = NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None
