"""What trainings need in the shard cache at the same time; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# An index of rows up to this size is fetched whole; of a larger one, the parts that are needed are read.
WHOLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Need:
    """What must fit into the cache of one shard set, so that it can be read to the end.

    Attributes:
        shards: Bytes of the shards that are in use at the same time.
        sidecars: Bytes of the tables and indices, which all passes over the set share.
        total: Bytes of all shards of the set, which no number of passes exceeds.
    """

    shards: int
    sidecars: int
    total: int

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return min(self.shards, self.total) + self.sidecars

    def __add__(self, other: Need) -> Need:
        """Returns the need of passes over the same set that go on at the same time."""
        return Need(
            self.shards + other.shards, max(self.sidecars, other.sidecars), max(self.total, other.total)
        )


Needs = Mapping[str, Need]  # by location of the shard set


def add_needs(parts: Iterable[Needs]) -> dict[str, Need]:
    """Adds the needs of passes that go on at the same time, over the same sets and over different ones."""
    total: dict[str, Need] = {}
    for needs in parts:
        for location, need in needs.items():
            total[location] = total[location] + need if location in total else need
    return total


def count_bytes(needs: Needs) -> int:
    """Returns the bytes of all sets together."""
    return sum(need.bytes for need in needs.values())
