"""Reads and checks the text files of a run directory, which may have been cut short, damaged or edited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipelines.errors import DataError
from pipelines.settings import RelativePath
from pipelines.storage import add_digest, parse_json, read_bounded, remove_digest

T = TypeVar("T")

Number = int | Annotated[float, Field(allow_inf_nan=False)]
METRICS_LINE = TypeAdapter(dict[str, Number], config=ConfigDict(strict=True))


class Status(BaseModel):
    """State of a run, as its driver and its worker record it; entries of other versions are kept.

    Attributes:
        state: `starting`, `training`, `finished`, `interrupted` or `failed`.
        reason: Why the run ended in this state; None for an ordinary end.
        started: Time in ISO 8601 at which the newest process began.
        finished: Time in ISO 8601 at which it ended.
        progress: Position in the current epoch, for progress bars.
        caches: Cache tier of each split, by its name.
        notices: Sentences that are shown to the user once during training.
        timings: Seconds per phase.
        environment: Host, versions and devices.
        scale: What workers and devices were requested.
        store: Bytes, hit rate and waiting time, for shards on a store.
        mirror: Location and state of the copy, for runs on a store.
        world_size: Number of replicas.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    state: str | None = None
    reason: str | None = None
    started: str | None = None
    finished: str | None = None
    progress: dict[str, Any] | None = None
    caches: dict[str, str] | None = None
    notices: list[str] | None = None
    timings: dict[str, float] | None = None
    environment: dict[str, Any] | None = None
    scale: dict[str, Any] | None = None
    store: dict[str, Any] | None = None
    mirror: dict[str, Any] | None = None
    world_size: int | None = None


class LayersLine(BaseModel):
    """Norms of one epoch, see `service.runs.Run.layers`.

    Attributes:
        epoch: The epoch, from 1.
        layers: Norms of weights and gradients by layer and kind; NaN where they were not measured.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    epoch: int
    layers: dict[str, dict[str, float | None]]


class CodeManifest(BaseModel):
    """List of the user's code in a run.

    Attributes:
        files: SHA-256 of every file, by its path within `code/`.
        originals: Name in the user's configuration, by the path of the copy.
        installed: Installed packages that the configuration names, with a description of each.
        notes: What was inferred about the user's model.
    """

    model_config = ConfigDict(strict=True)

    files: dict[RelativePath, str] = {}
    originals: dict[RelativePath, str] = {}
    installed: dict[str, Any] = {}
    notes: list[str] = []


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        OSError: The file is missing, a directory, or cannot be read.
        ValueError: It holds anything but one JSON object.
    """
    content = parse_json(read_bounded(path))
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__} instead of an object")
    return content


def read_status(path: Path) -> dict[str, Any]:
    """Returns the entries of a status; none if it is missing or damaged, so that it is written anew.

    A status is not flushed to disk, so that a power failure may damage it. Nothing depends on it but what is
    shown of a run.
    """
    try:
        return parse_status(read_bounded(path))
    except (OSError, ValueError):
        return {}


def parse_status(text: bytes) -> dict[str, Any]:
    """Returns the entries of a status; none if it is damaged."""
    try:
        content = remove_digest(parse_json(text))
        Status.model_validate(content)
    except ValueError:
        return {}
    return content


def format_status(content: dict[str, Any]) -> str:
    """Formats a status with a digest of its entries."""
    return json.dumps(add_digest(content), indent=2) + "\n"


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file; none if it does not exist.

    Raises:
        DataError: The file cannot be read, or is not text.
    """
    try:
        return read_bounded(path).decode().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        raise DataError(
            "a file with one JSON object per line", f"file={path} ({reason})", "restore the file"
        ) from None


def parse_metrics(line: str, epoch: int) -> dict[str, float]:
    """Returns the metrics of an epoch.

    Args:
        line: A line of the file, with its end.
        epoch: Number of the line, from 1, which is that of the epoch.

    Raises:
        ValueError: The line is not a whole JSON object of finite numbers, or belongs to another epoch.
    """
    if not line.endswith("\n"):
        raise ValueError("cut short")
    metrics: dict[str, float] = METRICS_LINE.validate_json(line)
    if metrics.get("epoch", epoch) != epoch:
        raise ValueError(f"epoch {metrics['epoch']}")
    return metrics


def read_layers(path: Path) -> list[dict[str, Any]]:
    """Returns the norms of every recorded epoch; none if the file does not exist.

    Raises:
        DataError: A line is damaged.
    """
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            record = parse_json(line)
            LayersLine.model_validate(record)
        except ValueError:
            raise build_line_error(path, number, "remove the file: reports do without it") from None
        records.append(record)
    return records


def build_line_error(path: Path, number: int, fix: str, reason: str = "damaged") -> DataError:
    """Builds the error of a damaged line.

    Args:
        path: File that the line is in.
        number: Number of the line, from 1.
        fix: What the user can do about it.
        reason: What is wrong with the line.
    """
    return DataError("one JSON object per line, an epoch each", f"file={path}, line={number} ({reason})", fix)


def compare_metrics(epochs: Sequence[dict[str, float]], history: Sequence[dict[str, float]]) -> int | None:
    """Compares the metrics of a file with those that a checkpoint recorded.

    Args:
        epochs: Metrics from the file.
        history: Metrics from the checkpoint, of more or fewer epochs.

    Returns:
        Number of the first epoch that differs, from 1; None if all that both have are equal.
    """
    for number, (line, recorded) in enumerate(zip(epochs, history, strict=False), start=1):
        if line != recorded:
            return number
    return None
