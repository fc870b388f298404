"""The list of source images that a shard set left out: `rejected.jsonl`, one line of JSON per image."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from pipelines.remote.errors import StoreError
from pipelines.remote.ranges import open_object
from pipelines.remote.uri import Location

REJECTED_FILE = "rejected.jsonl"
BUFFER_BYTES = 2**20  # read from a store at a time


def read_rejected_images(shards: Location, limit: int) -> tuple[tuple[str, str], ...]:
    """Reads ids and reasons of the first rejected images.

    The list is for information only: a missing one is empty, and a damaged one ends where the damage begins.

    Args:
        shards: Path or URI of the shard set.
        limit: Number of images to read at most.
    """
    return tuple(islice(_iterate_rejections(shards), limit))


def count_reasons(shards: Location) -> dict[str, int]:
    """Counts the rejected images by reason, the most frequent reason first.

    Args:
        shards: Path or URI of the shard set.

    Returns:
        Number of images by the part of their reason before a colon, which is the same for all such images.
    """
    counts = Counter(reason.partition(": ")[0] for _, reason in _iterate_rejections(shards))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _iterate_rejections(shards: Location) -> Iterator[tuple[str, str]]:
    try:
        with _open_lines(shards / REJECTED_FILE) as lines:
            for line in lines:
                entry = json.loads(line)
                yield str(entry["id"]), str(entry["reason"])
    except (OSError, StoreError, ValueError, KeyError, TypeError):
        return


def _open_lines(location: Location) -> TextIO:
    if isinstance(location, Path):
        return location.open(encoding="utf-8")
    return io.TextIOWrapper(open_object(location, BUFFER_BYTES), encoding="utf-8")
