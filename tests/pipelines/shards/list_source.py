"""A source that yields given lists. Ray's workers cannot import it: see `register_by_value`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.records import Example, Rejected
from pipelines.shards.files import open_files
from pipelines.shards.manifest import ShardFile
from pipelines.shards.split_index import open_table
from pipelines.storage import hash_file

Candidate = Example | Rejected


def register_by_value(*modules: str) -> None:
    """Makes Ray send the classes of these modules and of this one with their code."""
    import ray.cloudpickle

    for name in (__name__, *modules):
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])


@dataclass(frozen=True)
class ListSource:
    """Yields the given candidates; `before_read(index)` is called before each is read."""

    splits: dict[str, list[Candidate]]
    classes: tuple[str, ...] = ("ant", "bee")
    name: str = "list:test"
    before_read: Callable[[int], None] | None = field(default=None, compare=False)

    def counts(self):
        return {split: len(items) for split, items in self.splits.items()}

    def read(self, split, start, stop):
        for index, item in enumerate(self.splits[split][start:stop], start):
            if self.before_read:
                self.before_read(index)
            yield item

    def fingerprint(self):
        return str(len(repr(self.splits)))


def encode_row(*values: int) -> bytes:
    """Encodes one row of grey pixels as PNG."""
    file = io.BytesIO()
    Image.fromarray(np.array([values], np.uint8)).save(file, "PNG")
    return file.getvalue()


def encode_noise(seed: int, side: int = 64) -> bytes:
    """Encodes a grey picture that does not compress as PNG."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_examples(count: int) -> list[Candidate]:
    """Makes examples of 1 x 2 pixels in alternating classes."""
    return [Example(encode_row(index, index + 1), index % 2, f"{index}.png") for index in range(count)]


def list_shards(directory: Path, manifest, split: str) -> list[ShardFile]:
    """Lists the shards of a split that have rows."""
    table = open_table(open_files(directory), manifest, split)
    return [table.get_shard(number) for number in range(len(table.rows))]


def read_rows(directory: Path, manifest, split: str) -> list[dict]:
    shards = list_shards(directory, manifest, split)
    tables = [pa.ipc.open_file(directory / shard.file).read_all() for shard in shards]
    return pa.concat_tables(tables).to_pylist()


def snapshot(directory: Path) -> dict[str, str]:
    """Returns the digest of every file in a directory by its name."""
    return {path.name: hash_file(path) for path in directory.iterdir()}
