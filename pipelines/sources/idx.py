"""Digits in the IDX format of MNIST (http://yann.lecun.com/exdb/mnist): two files per split, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
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
from pipelines.sources import SOURCES

PREFIXES = {"train": "train", "validation": "t10k"}
UNSIGNED_BYTE = 0x08
FIX = "copy the file again"

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class IdxSource:
    """A folder of IDX files. Made by `open_idx`.

    Attributes:
        name: `idx:DIR`.
        classes: The labels as words, from 0 to the largest one.
        files: Per split, the paths of the images and of the labels.
        sizes: Number of images per split.
        digest: SHA-256 over all pixels and labels.
    """

    name: str
    classes: tuple[str, ...]
    files: Mapping[str, tuple[str, str]]
    sizes: Mapping[str, int]
    digest: str

    def counts(self) -> Mapping[str, int]:
        """Number of images per split."""
        return dict(self.sizes)

    def read(self, split: str, start: int, stop: int) -> Iterator[Example]:
        """Yields images `start` to `stop` in the order of the files, each as an 8-bit greyscale PNG."""
        images, labels = (_open(path) for path in self.files[split])
        prefix = PREFIXES[split]
        for index in range(start, min(stop, len(labels))):
            file = io.BytesIO()
            Image.fromarray(images[index]).save(file, "PNG")
            yield Example(file.getvalue(), int(labels[index]), f"{prefix}/{index:06d}")

    def fingerprint(self) -> str:
        """A digest over the pixels and labels: any change is noticed, compressing the files is none."""
        return self.digest


@SOURCES.register("idx")
def open_idx(argument: str) -> IdxSource:
    """Opens `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and, where they are, `t10k-*`, each with or without `.gz`.

    `t10k` is the validation split. Every file is read and checked whole.

    Raises:
        ConfigError: There is no such folder.
        DataError: A file is missing, damaged, or does not fit its partner; or there are fewer than two classes.
    """
    root = Path(argument).expanduser().absolute()
    if not root.is_dir():
        raise ConfigError("a folder", f"source=idx:{argument} (no such folder)", "check the path")
    digest, files, sizes, top = hashlib.sha256(), {}, {}, 0
    for split, prefix in PREFIXES.items():
        images, labels = (
            _find(root, f"{prefix}-images-idx3-ubyte"),
            _find(root, f"{prefix}-labels-idx1-ubyte"),
        )
        if split != "train" and images is None and labels is None:
            continue
        files[split] = (
            str(_needed(images, root, f"{prefix}-images-idx3-ubyte")),
            str(_needed(labels, root, f"{prefix}-labels-idx1-ubyte")),
        )
        pixels, answers = _checked_pair(*files[split])
        digest.update(repr((split, pixels.shape)).encode() + pixels.tobytes() + answers.tobytes())
        sizes[split], top = len(answers), max(top, int(answers.max()))
    if top < 1:
        raise DataError("at least two classes", f"source={argument}: every label is 0", "use other labels")
    return IdxSource(f"idx:{argument}", tuple(map(str, range(top + 1))), files, sizes, digest.hexdigest())


def _find(root: Path, name: str) -> Path | None:
    return next((path for path in (root / f"{name}.gz", root / name) if path.is_file()), None)


def _needed(path: Path | None, root: Path, name: str) -> Path:
    if path is None:
        raise DataError(
            f"a file {name}.gz or {name}",
            f"source=idx:{root} (missing)",
            "put all files of the data set into one folder",
        )
    return path


def _checked_pair(images: str, labels: str) -> tuple[Array, Array]:
    pixels, answers = _open(images), _open(labels)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(
            "images of rows x columns pixels, at least one", f"{images}: shape={pixels.shape}", FIX
        )
    if answers.shape != pixels.shape[:1]:
        raise DataError(
            f"one label for each of the {len(pixels)} images",
            f"{labels}: shape={answers.shape}",
            "use files that belong together",
        )
    return pixels, answers


def _open(path: str) -> Array:
    try:
        stat = os.stat(path)
        return _parse(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:  # a bad gzip header is one too
        raise DataError("a readable IDX file", f"{path}: {error.strerror or error}", FIX) from None


@lru_cache(maxsize=2)  # the images and labels of one split: shards are read range by range
def _parse(path: str, size: int, mtime_ns: int) -> Array:
    """Reads an IDX file of unsigned bytes: two zeros, the type, the number of dimensions, each as a big-endian uint32, the data."""
    content = Path(path).read_bytes()
    if path.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error) as error:
            raise DataError("a whole gzip file", f"{path}: {error}", FIX) from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE or not 1 <= content[3] <= 3:
        raise DataError(
            "an IDX file of unsigned bytes",
            f"{path}: its first bytes are {content[:4].hex(' ') or 'missing'}",
            FIX,
        )
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(f"{expected} bytes for shape {shape}", f"{path}: bytes={len(content)}", FIX)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
