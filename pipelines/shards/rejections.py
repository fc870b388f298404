"""The list of source images that a shard set left out: `rejected.jsonl`, one line of JSON per image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
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
    return tuple(islice(_iterate_rejections(shards), limit))


def count_reasons(shards: Path) -> dict[str, int]:
    """Counts the rejected images by reason, the most frequent reason first.

    Args:
        shards: Directory of the shard set.

    Returns:
        Number of images by the part of their reason before a colon, which is the same for all such images.
    """
    counts = Counter(reason.partition(": ")[0] for _, reason in _iterate_rejections(shards))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _iterate_rejections(shards: Path) -> Iterator[tuple[str, str]]:
    try:
        with (shards / REJECTED_FILE).open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                yield str(entry["id"]), str(entry["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return
