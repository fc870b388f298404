"""The manifest of a shard set: what is in it and how to check it. Written last, atomically."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError

from pipelines.errors import DataError
from pipelines.spec import Spec
from pipelines.storage import write_atomically

VERSION = 2
FILE_NAME = "manifest.json"


class StoredFile(Spec):
    """A file as it was written."""

    file: str
    bytes: int
    sha256: str


class ShardFile(StoredFile):
    """One shard: its file, and the index beside it where the format needs one."""

    rows: int
    index: StoredFile | None = None

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Every file of the shard; none where it has no rows."""
        return tuple(file for file in (self.index, self) if file and self.rows)


class SplitManifest(Spec):
    """One split.

    Attributes:
        shards: The files, in row order.
        class_counts: Rows per class, in the order of the classes.
        mean: Mean of R, G and B, 0 to 255, before images are encoded again; equal for greyscale images. Large images are sampled
            (see `pipelines.shards.codec.sum_pixels`). None where nothing was decoded.
        std: Standard deviation of the same.
    """

    shards: tuple[ShardFile, ...]
    class_counts: tuple[int, ...]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None

    @property
    def rows(self) -> int:
        """Number of examples in the split."""
        return sum(shard.rows for shard in self.shards)


class Manifest(Spec):
    """Everything a reader needs to know about a shard set."""

    version: int
    format: str
    encoding: str
    store_size: int | None
    source: str
    fingerprint: str
    classes: tuple[str, ...]
    splits: dict[str, SplitManifest]
    rejected: int

    def save(self, directory: Path) -> None:
        """Writes the manifest, which commits the shard set."""
        write_atomically(directory / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    def digest(self) -> str:
        """SHA-256 over the content: two shard sets with the same digest hold the same rows."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def split(self, name: str) -> SplitManifest:
        """One split by name.

        Raises:
            DataError: There is no such split.
        """
        if name not in self.splits:
            raise DataError(
                f"a split named one of {', '.join(self.splits)}", f"split={name}", "pick one of these"
            )
        return self.splits[name]


def load_manifest(directory: str | Path) -> Manifest:
    """Reads the manifest of a shard set.

    Raises:
        DataError: There is none, it is damaged, or a newer version of the project wrote it.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise DataError(
            "a finished shard set",
            f"data={directory} (no {FILE_NAME})",
            "build it with 'glassbox shards build SOURCE OUT'",
        )
    try:
        content = json.loads(path.read_bytes())
        version = content["version"]
        if version == VERSION:
            return Manifest.model_validate(content, strict=False)
    except (ValueError, TypeError, KeyError) as error:  # a ValidationError is a ValueError
        raise DataError(
            f"a manifest of version {VERSION}", f"{path}: {_reason(error)}", "build the shard set again"
        ) from None
    if isinstance(version, int) and version > VERSION:
        fix = "read it with the newer glassbox that wrote it, or build the shard set again with this one"
        raise DataError(f"a manifest of version {VERSION}", f"{path}: version={version}, which is newer", fix)
    raise DataError(
        f"a manifest of version {VERSION}", f"{path}: version={version}", "build the shard set again"
    )


def _reason(error: Exception) -> str:
    """What is wrong with a manifest, in a few words."""
    if not isinstance(error, ValidationError):
        return f"no version: {error}" if isinstance(error, KeyError | TypeError) else str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
