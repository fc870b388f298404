"""The manifest of a shard set: its content and how to check it. Written last and atomically."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from pipelines.errors import DataError
from pipelines.remote.errors import ObjectMissingError
from pipelines.remote.files import read_file
from pipelines.remote.uri import Location, parse_location
from pipelines.settings import PlainName
from pipelines.spec import Spec
from pipelines.storage import add_digest, parse_json, remove_digest, write_atomically

VERSION = 3
INLINE_VERSION = 2  # lists the shards in the manifest itself
FILE_NAME = "manifest.json"
SHOWN_CLASSES = 10  # in descriptions for people; the others are counted
MAX_BYTES = 2**30  # of a manifest in a store; one of version 2 lists all shards
BUILD_AGAIN = "build the shard set again"
_SOURCE_NAME = re.compile(r"[a-z_]+:(?!//)")  # such as folder:photos, in contrast to s3://bucket/set


class StoredFile(Spec):
    """A file of the shard set, with the size and digest it was written with.

    Attributes:
        file: Name inside the directory of the shard set.
        bytes: Size of the file.
        sha256: Digest of the content in hexadecimal.
    """

    file: PlainName
    bytes: int
    sha256: str


class ShardFile(StoredFile):
    """One shard: its file and, if the format needs one, its index file.

    Attributes:
        rows: Number of examples; a shard with 0 rows has no files.
        index: File with the offsets of the images (TFRecord only).
    """

    rows: int
    index: StoredFile | None = None

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files of the shard."""
        if not self.rows:
            return ()
        return (self,) if self.index is None else (self.index, self)


class SplitManifest(Spec):
    """One split. Its size does not depend on the number of shards, which are listed in a sidecar.

    Attributes:
        rows: Number of examples in the split.
        shard_count: Number of shards that hold them.
        bytes: Size of all files of the shards.
        file_pattern: Names of the shard files, with the number of the shard as `{number:05d}`.
        table: Sidecar with one line per shard (see `pipelines.shards.split_index`).
        index: Sidecar with one line per row: label, position in the shard, checksum and shape.
        class_counts: Rows per class, in the order of the classes.
        mean: Mean of R, G and B, 0 to 255, before images are encoded again; all equal for greyscale images.
            Large images are sampled (see `pipelines.shards.codec.sum_pixels`). None if nothing was
            decoded.
        std: Standard deviation of the same pixels.
    """

    rows: int
    shard_count: int
    bytes: int
    file_pattern: Annotated[PlainName, Field(pattern=r"^[^{}]*\{number:05d\}[^{}]*$")]
    table: StoredFile
    index: StoredFile
    class_counts: tuple[int, ...]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None


class InlineSplit(Spec):
    """One split of a manifest of version 2, which lists the shards itself.

    Attributes:
        shards: Shards in row order.
        class_counts: Rows per class, in the order of the classes.
        mean: Mean of R, G and B, 0 to 255, before images are encoded again; all equal for greyscale images.
            Large images are sampled (see `pipelines.shards.codec.sum_pixels`). None if nothing was
            decoded.
        std: Standard deviation of the same pixels.
    """

    shards: tuple[ShardFile, ...]
    class_counts: tuple[int, ...]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None

    @property
    def rows(self) -> int:
        """Number of examples in the split."""
        return sum(shard.rows for shard in self.shards)

    @property
    def shard_count(self) -> int:
        """Number of shards that hold them."""
        return len(self.shards)

    @property
    def bytes(self) -> int:
        """Size of all files of the shards."""
        return sum(file.bytes for shard in self.shards for file in shard.files)


class Manifest(Spec):
    """Everything that readers need to know about a shard set.

    Attributes:
        version: Version of the file format; sets of version 2 are read, but no longer written.
        format: File format of the shards, `arrow` or `tfrecord`.
        encoding: Encoding of the images (see `pipelines.spec.ShardSpec`).
        store_size: Longest shorter side of the images in pixels, None for no limit.
        source: Name of the source the set was built from.
        fingerprint: Digest of the source's content.
        classes: Class names in the order of their labels.
        splits: Splits by name, `train` first.
        rejected: Number of source images that are not in the set.
        levels: Values that become 0 and 255 in images of more than 8 bits, `MIN:MAX`; `full` for the whole
            range.
        notes: What was decided when the source was read: splits, columns, classes, files not read.
        notices: Number of images per kind of change or peculiarity, such as `first frame used (GIF)`.
    """

    version: int
    format: str
    encoding: str
    store_size: int | None
    source: str
    fingerprint: str
    classes: tuple[str, ...]
    splits: dict[str, SplitManifest | InlineSplit]
    rejected: int
    levels: str = "full"
    notes: tuple[str, ...] = ()
    notices: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_splits(self) -> Manifest:
        """Makes sure that the splits are described as in the version of the manifest."""
        kind = InlineSplit if self.version == INLINE_VERSION else SplitManifest
        for name, split in self.splits.items():
            if not isinstance(split, kind):
                raise ValueError(f"splits.{name} is not described as in version {self.version}")
        return self

    @model_serializer(mode="wrap")
    def _omit_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out newer fields that say nothing, so that the digests of existing sets stay the same."""
        content: dict[str, Any] = serialize(self)
        for name in ("levels", "notes", "notices"):
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                content.pop(name)
        return content

    def save(self, directory: Path) -> None:
        """Writes the manifest, which commits the shard set; with a digest of its content."""
        content = self.model_dump(mode="json")
        if self.version != INLINE_VERSION:
            content = add_digest(content)
        write_atomically(directory / FILE_NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def digest(self) -> str:
        """Returns the SHA-256 of the content: shard sets with the same digest hold the same rows."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def get_split(self, name: str) -> SplitManifest | InlineSplit:
        """Returns a split by name.

        Raises:
            DataError: There is no such split.
        """
        if name not in self.splits:
            expected = f"a split named one of {', '.join(self.splits)}"
            raise DataError(expected, f"split={name}", "choose one of these")
        return self.splits[name]


def load_manifest(directory: str | Location) -> Manifest:
    """Reads the manifest of a shard set.

    Args:
        directory: Path or URI of the shard set.

    Raises:
        ConfigError: The scheme of the URI is unknown.
        DataError: There is no manifest, it is damaged, or a newer version of the project wrote it.
    """
    location = parse_location(directory)
    path = location / FILE_NAME
    is_missing = isinstance(path, Path) and not path.is_file()
    if is_missing and _SOURCE_NAME.match(str(directory)) and not Path(str(directory)).exists():
        fix = f"build one of it first: {shlex.join(['glassbox', 'shards', 'build', str(directory), 'OUT'])}"
        raise DataError("a shard set", f"data={directory} (a source)", fix)
    if is_missing:
        raise _build_missing_error(directory)
    try:
        content = parse_json(read_file(path, MAX_BYTES))
        version = content["version"]
        if version in (INLINE_VERSION, VERSION):
            return Manifest.model_validate(remove_digest(content), strict=False)
    except ObjectMissingError:
        raise _build_missing_error(directory) from None
    except (ValueError, TypeError, KeyError) as error:  # a ValidationError is a ValueError
        received = f"{path}: {_describe_error(error)}"
        raise DataError(f"a manifest of version {VERSION}", received, BUILD_AGAIN) from None

    received = f"{path}: version={version}"
    if isinstance(version, int) and version > VERSION:
        fix = "read it with the newer glassbox that wrote it, or build the shard set again with this one"
        raise DataError(f"a manifest of version {VERSION}", f"{received}, which is newer", fix)
    raise DataError(f"a manifest of version {VERSION}", received, BUILD_AGAIN)


def _build_missing_error(directory: str | Location) -> DataError:
    return DataError(
        "a complete shard set",
        f"data={directory} (no {FILE_NAME})",
        f"build it with: {shlex.join(['glassbox', 'shards', 'build', 'SOURCE', str(directory)])}",
    )


def _describe_error(error: Exception) -> str:
    """Returns a short text that says what is wrong with a manifest."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError | TypeError):
        return f"no version: {error}"
    return str(error)
