"""Reads learning curves from files: the `metrics.jsonl` of a run, or JSON files with Keras histories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError

OLD_KERAS_NAMES = {"acc": "accuracy", "val_acc": "val_accuracy"}
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
Epochs = list[dict[str, float]]


def read_histories(path: Path) -> dict[str, Epochs]:
    """Reads the histories in a file.

    Args:
        path: A `.jsonl` file with one object per epoch; or a JSON file with such a list, with one Keras
            history (lists by metric), or with several of either by name.

    Returns:
        The metrics per epoch of each history, by name. A single history has the name of the file.

    Raises:
        ConfigError: The file does not exist or holds no history.
    """
    if not path.is_file():
        raise ConfigError(
            "a run directory or a file of metrics",
            f"run={path} (no such file)",
            "name the --out of a 'glassbox train', its metrics.jsonl, or a JSON file with a Keras history",
        )
    try:
        histories = {str(name): _to_epochs(history) for name, history in _load(path).items()}
    except (ValueError, TypeError, AttributeError):
        histories = {}
    if not histories:
        example = '{"loss": [...], "accuracy": [...], "val_loss": [...], "val_accuracy": [...]}'
        raise ConfigError(
            f"one JSON object per epoch, or a history like {example}",
            f"file={path}",
            "export it in this form",
        )
    return histories


def _load(path: Path) -> dict[str, Any]:
    """Reads the content of a file as histories by name, without validating them."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return {path.stem: [json.loads(line) for line in text.splitlines() if line]}
    content = json.loads(text)
    is_single = isinstance(content, list) or any(isinstance(value, list) for value in content.values())
    return {path.stem: content} if is_single else content


def _to_epochs(history: Any) -> Epochs:
    """Converts a list with one entry per epoch, or lists by metric, to one entry per epoch.

    Raises:
        ValueError: The history is neither, or holds none of the metrics.
    """
    if isinstance(history, list):
        rows = [dict(row) for row in history]
    else:
        columns = {OLD_KERAS_NAMES.get(key, key): values for key, values in history.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    epochs = [{key: float(row[key]) for key in METRICS if row.get(key) is not None} for row in rows]
    if not any(epochs):
        raise ValueError("no metrics")
    return epochs
