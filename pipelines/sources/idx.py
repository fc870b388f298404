"""Digits in the IDX format of MNIST (http://yann.lecun.com/exdb/mnist), two files per split."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example
from pipelines.remote.files import is_file, read_file
from pipelines.remote.store import stat
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.sources.base import SOURCES
from pipelines.sources.classes import build_empty_class_error
from pipelines.sources.locations import hash_version, parse_source_location

PREFIXES = {"train": "train", "validation": "t10k"}
UNSIGNED_BYTE = 0x08  # type of the values
MAX_DIMENSIONS = 3  # images: number, rows, columns
MAX_COMPRESSION = 1032  # bytes for which a byte of deflate can stand
DAMAGE_FIX = "copy the file again"

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class IdxSource:
    """A folder of IDX files, opened by `open_idx`.

    Attributes:
        name: Name of the source, `idx:DIR`.
        classes: The labels that occur in the train split, ascending, as text.
        files: Per split, the paths or URIs of the images and of the labels.
        sizes: Number of images per split.
        digest: SHA-256 over all pixels and labels.
        notes: Sentences about what was decided.
    """

    name: str
    classes: tuple[str, ...]
    files: Mapping[str, tuple[str, str]]
    sizes: Mapping[str, int]
    digest: str
    notes: tuple[str, ...] = ()

    def counts(self) -> Mapping[str, int]:
        """Returns the number of images per split."""
        return dict(self.sizes)

    def read(self, split: str, start: int, stop: int) -> Iterator[Example]:
        """Yields images `start` to `stop` in the order of the files, each as an 8-bit greyscale PNG."""
        images = _read_array(self.files[split][0])
        labels = self.labels(split)
        for index in range(start, min(stop, len(labels))):
            file = io.BytesIO()
            Image.fromarray(images[index]).save(file, "PNG")
            yield Example(file.getvalue(), int(labels[index]), f"{PREFIXES[split]}/{index:06d}")

    def labels(self, split: str) -> NDArray[np.int32]:
        """Returns the index of the class of every image: int32 `[n]`."""
        values = np.array([int(name) for name in self.classes])
        return np.searchsorted(values, _read_array(self.files[split][1])).astype(np.int32)

    def fingerprint(self) -> str:
        """Returns a digest over all pixels and labels; it does not depend on compression."""
        return self.digest


@SOURCES.register("idx")
def open_idx(argument: str) -> IdxSource:
    """Opens a folder with `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`.

    Files `t10k-*`, if there are any, are the validation split. Each file may have the suffix `.gz`. All files
    are read and checked completely.

    Args:
        argument: Path of the folder, or its URI in an object store.

    Raises:
        ConfigError: There is no such folder.
        DataError: A file is missing, damaged, or does not match its partner; there are fewer than two
            classes; or a label occurs in the validation split only.
    """
    root = parse_source_location("idx", argument)
    if isinstance(root, Path) and not root.is_dir():
        raise ConfigError("a folder", f"source=idx:{argument} (no such folder)", "check the path")
    digest = hashlib.sha256()
    files = {}
    sizes = {}
    values: dict[str, set[int]] = {}
    for split, prefix in PREFIXES.items():
        image_name = f"{prefix}-images-idx3-ubyte"
        label_name = f"{prefix}-labels-idx1-ubyte"
        image_path = _find(root, image_name)
        label_path = _find(root, label_name)
        if split != "train" and image_path is None and label_path is None:
            continue
        image_path = _require(image_path, root, image_name)
        label_path = _require(label_path, root, label_name)
        files[split] = (str(image_path), str(label_path))
        images, labels = _read_pair(*files[split])
        digest.update(repr((split, images.shape)).encode() + images.tobytes() + labels.tobytes())
        sizes[split] = len(labels)
        values[split] = set(np.unique(labels).tolist())
    if len(values["train"]) < 2:
        received = f"source={argument}: every label is {values['train'].pop()}"
        raise DataError("at least two classes", received, "use other labels")
    untrained = set().union(*values.values()) - values["train"]
    if untrained:
        raise build_empty_class_error(f"idx:{argument}", map(str, sorted(untrained)))
    classes = tuple(map(str, sorted(values["train"])))
    mapping = ", ".join(f"{split}={PREFIXES[split]}" for split in files)
    return IdxSource(f"idx:{argument}", classes, files, sizes, digest.hexdigest(), (f"splits: {mapping}",))


def _find(root: Location, name: str) -> Location | None:
    for path in (root / f"{name}.gz", root / name):
        if is_file(path):
            return path
    return None


def _require(path: Location | None, root: Location, name: str) -> Location:
    if path is None:
        raise DataError(
            f"a file {name}.gz or {name}",
            f"source=idx:{root} (missing)",
            "put all files of the data set into one folder",
        )
    return path


def _read_pair(image_path: str, label_path: str) -> tuple[Array, Array]:
    """Reads the images `[N, H, W]` and labels `[N]` of a split.

    Raises:
        DataError: Images and labels do not match.
    """
    images = _read_array(image_path)
    labels = _read_array(label_path)
    if images.ndim != 3 or 0 in images.shape:
        received = f"{image_path}: shape={images.shape}"
        raise DataError("images of rows x columns pixels, at least one", received, DAMAGE_FIX)
    if labels.shape != images.shape[:1]:
        expected = f"one label for each of the {len(images)} images"
        received = f"{label_path}: shape={labels.shape}"
        raise DataError(expected, received, "use files that belong together")
    return images, labels


def _read_array(path: str) -> Array:
    try:
        location = parse_location(path)
        if isinstance(location, Uri):
            return _parse(path, *_find_version(location))
        status = location.stat()
        return _parse(path, status.st_size, status.st_mtime_ns)
    except OSError as error:  # a bad gzip header is one too
        received = f"{path}: {error.strerror or error}"
        raise DataError("a readable IDX file", received, DAMAGE_FIX) from None


def _find_version(uri: Uri) -> tuple[int, int]:
    """Returns size and version of an object.

    Raises:
        DataError: It does not exist.
    """
    info = stat(uri)
    if info is None:
        raise DataError("a file that exists", f"{uri} (no such object)", DAMAGE_FIX)
    return info.size, hash_version(info)


@lru_cache(maxsize=2)  # the images and labels of one split, which many shards read
def _parse(path: str, size: int, version: int) -> Array:
    """Reads an IDX file of unsigned bytes.

    The file consists of two zeros, the type, the number of dimensions, each dimension as a big-endian
    uint32, and the values.

    Args:
        path: Path or URI of the file, with suffix `.gz` if it is compressed.
        size: Size of the file, part of the cache's key.
        version: Time of the last change or hash of the etag, part of the cache's key.
    """
    content = read_file(parse_location(path))
    if path.endswith(".gz"):
        try:
            content = _decompress(content)
        except (EOFError, zlib.error) as error:
            raise DataError("a whole gzip file", f"{path}: {error}", DAMAGE_FIX) from None
    if (
        len(content) < 4
        or content[:2] != b"\0\0"
        or content[2] != UNSIGNED_BYTE
        or not 1 <= content[3] <= MAX_DIMENSIONS
    ):
        received = f"{path}: its first bytes are {content[:4].hex(' ') or 'missing'}"
        raise DataError("an IDX file of unsigned bytes", received, DAMAGE_FIX)
    start, shape = _read_shape(content)
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(f"{expected} bytes for shape {shape}", f"{path}: bytes={len(content)}", DAMAGE_FIX)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_shape(content: bytes) -> tuple[int, tuple[int, ...]]:
    """Returns the position of the first value and the shape, from the first bytes of a file."""
    start = 4 + 4 * content[3]
    return start, tuple(int.from_bytes(content[offset : offset + 4], "big") for offset in range(4, start, 4))


def _decompress(content: bytes) -> bytes:
    """Decompresses a file, at most one byte more than its shape says: a few bytes can stand for gigabytes.

    Raises:
        EOFError: The file is cut off.
        zlib.error: It is damaged.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        head = file.read(4 + 4 * MAX_DIMENSIONS)
        if len(head) < 4:
            return head
        start, shape = _read_shape(head)
        rest = max(start + math.prod(shape) - len(head) + 1, 1)
        # `read` allocates what it is asked for; a damaged shape can be petabytes.
        return head + file.read(min(rest, MAX_COMPRESSION * len(content)))
