"""What the passes and trainings of a host need in the shard cache, as other processes see it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.locks import try_lock
from pipelines.remote.needs import Need, Needs, add_needs, count_bytes


@dataclass(frozen=True)
class UserTable:
    """What a pass needs, as other processes see it.

    Attributes:
        pid: Process of the pass.
        command: Its command line, shortened.
        location: URI of the shard set.
        in_use: Keys of the files in use, which nobody evicts.
        next_use: Number of bytes that the pass needs before each file that it needs later.
        claim: What a whole training needs; None for a single pass.
    """

    pid: int
    command: str
    location: str
    in_use: tuple[str, ...] = ()
    next_use: dict[str, int] = field(default_factory=dict)
    claim: Claim | None = None

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


@dataclass(frozen=True)
class Claim:
    """What a training needs in the cache at the same time.

    Attributes:
        group: Name that the processes of a training share if they read the same shards; those count once.
        needs: Needs by location of the shard set.
        budget: Largest size of the cache in bytes, as this training is configured.
    """

    group: str
    needs: dict[str, Need]
    budget: int


def read_users(folder: Path) -> Iterator[UserTable]:
    """Yields the tables of all users that live; removes those of dead processes."""
    # Tables are written under the lock of the folder, so that these are of processes that were killed.
    for rest in folder.glob(".tmp-*"):
        rest.unlink(missing_ok=True)
    for lock in list(folder.glob("*.lock")):
        table = lock.with_suffix(".json")
        descriptor = try_lock(lock)
        if descriptor is not None:
            lock.unlink(missing_ok=True)
            table.unlink(missing_ok=True)
            os.close(descriptor)
            continue
        try:
            content = json.loads(table.read_text())
        except FileNotFoundError:  # it has just been closed
            continue
        yield UserTable(
            pid=content["pid"],
            command=content["command"],
            location=content["location"],
            in_use=tuple(content["in_use"]),
            next_use=content["next_use"],
            claim=_parse_claim(content.get("claim")),
        )


def count_claimed(claims: Iterable[Claim]) -> int:
    """Returns the bytes that some trainings need together; processes of the same group count once."""
    by_group: dict[str, list[Needs]] = {}
    for claim in claims:
        by_group.setdefault(claim.group, []).append(claim.needs)
    return count_bytes(add_needs(max(needs, key=count_bytes) for needs in by_group.values()))


def _parse_claim(content: dict[str, Any] | None) -> Claim | None:
    if content is None:
        return None
    needs = {location: Need(**need) for location, need in content["needs"].items()}
    return Claim(content["group"], needs, content["budget"])
