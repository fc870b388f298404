"""A real source over lists that a test gives it. Ray's workers cannot import it: see `by_value`."""

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
from pipelines.storage import hash_file

Candidate = Example | Rejected


def by_value(*modules: str) -> None:
    """Sends the classes of these modules and of this one to Ray's workers by value."""
    import ray.cloudpickle

    for name in (__name__, *modules):
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])


@dataclass(frozen=True)
class ListSource:
    """Yields what it is given; `meanwhile(index)` is called before candidate `index` is read."""

    splits: dict[str, list[Candidate]]
    classes: tuple[str, ...] = ("ant", "bee")
    name: str = "list:test"
    meanwhile: Callable[[int], None] | None = field(default=None, compare=False)

    def counts(self):
        return {split: len(items) for split, items in self.splits.items()}

    def read(self, split, start, stop):
        for index, item in enumerate(self.splits[split][start:stop], start):
            if self.meanwhile:
                self.meanwhile(index)
            yield item

    def fingerprint(self):
        return str(len(repr(self.splits)))


def png(*values: int) -> bytes:
    """One row of grey pixels."""
    file = io.BytesIO()
    Image.fromarray(np.array([values], np.uint8)).save(file, "PNG")
    return file.getvalue()


def noise(seed: int, side: int = 64) -> bytes:
    """A grey picture that nothing can compress."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(file, "PNG")
    return file.getvalue()


def examples(count: int, prefix: str = "") -> list[Candidate]:
    return [Example(png(index, index + 1), index % 2, f"{prefix}{index}.png") for index in range(count)]


def rows(directory: Path, manifest, split: str) -> list[dict]:
    tables = [pa.ipc.open_file(directory / shard.file).read_all() for shard in manifest.splits[split].shards]
    return pa.concat_tables(tables).to_pylist()


def snapshot(directory: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in directory.iterdir()}
