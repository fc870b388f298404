"""The list of source images that a shard set left out: `rejected.jsonl`, one line of JSON per image."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

REJECTED_FILE = "rejected.jsonl"


def read_rejected_images(shards: Path, limit: int) -> tuple[tuple[str, str], ...]:
    """Reads ids and reasons of the first rejected images.

    The list is for information only: a missing one is empty, and a damaged one ends where the damage begins.

    Args:
        shards: Directory of the shard set.
        limit: Number of images to read at most.
    """
    rejections: list[tuple[str, str]] = []
    try:
        with (shards / REJECTED_FILE).open(encoding="utf-8") as lines:
            for line in islice(lines, limit):
                entry = json.loads(line)
                rejections.append((str(entry["id"]), str(entry["reason"])))
    except (OSError, ValueError, KeyError, TypeError):
        return tuple(rejections)
    return tuple(rejections)
