"""Data sets prepared by tensorflow-datasets, and image folders as its `ImageFolder` lists them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.remote.uri import parse_location
from pipelines.sources.base import SOURCES
from pipelines.sources.splits import SPLITS, find_split_of_folder, join_names

FOLDER_PREFIX = "folder="


@dataclass(frozen=True)
class TfdsSource:
    """A prepared data set, opened by `open_tfds`. Every worker must see it under the same path.

    Attributes:
        name: Name of the source, `tfds:NAME`.
        classes: Class names of the label feature.
        directory: Directory of the prepared data set, or of the image folder.
        is_folder: Whether it is an `ImageFolder` instead of a prepared data set.
        keys: Names of the image feature and of the label feature.
        splits: Per split, the name of the data set's own split and its number of examples.
        digest: Digest that `fingerprint` returns.
        notes: Sentences about what was decided.
    """

    name: str
    classes: tuple[str, ...]
    directory: str
    is_folder: bool
    keys: tuple[str, str]
    splits: Mapping[str, tuple[str, int]]
    digest: str
    notes: tuple[str, ...] = ()

    def counts(self) -> Mapping[str, int]:
        """Returns the number of examples per split."""
        return {split: count for split, (_, count) in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields examples `start` to `stop` with the image bytes as stored, in the order of the files.

        Raises:
            DataError: A file cannot be read.
        """
        import tensorflow as tf

        name, count = self.splits[split]
        indices = range(start, min(stop, count))
        read_pairs = self._read_files if self.is_folder else self._read_records
        try:
            pairs = read_pairs(name, indices.start, indices.stop)
            for index, (image, label) in zip(indices, pairs, strict=True):
                identifier = f"{name}/{index:06d}"
                if not 0 <= label < len(self.classes):
                    yield Rejected(identifier, f"no label: {label}")
                else:
                    yield Example(image, label, identifier)
        except (OSError, tf.errors.OpError) as error:
            received = f"{self.directory}: {str(error).splitlines()[0]}"
            fix = "prepare it again, or check its files"
            raise DataError("a data set that can be read", received, fix) from None

    def fingerprint(self) -> str:
        """Returns a digest over version, class names and shard sizes, or over the image files."""
        return self.digest

    def _read_records(self, split: str, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
        import tensorflow_datasets as tfds

        image, label = self.keys
        decoders = tfds.decode.PartialDecoding(
            {image: True, label: True}, decoders={image: tfds.decode.SkipDecoding()}
        )
        dataset = _open_builder(self.directory, False).as_dataset(
            split=f"{split}[{start}:{stop}]",
            shuffle_files=False,
            decoders=decoders,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        for example in dataset.as_numpy_iterator():
            yield example[image], int(example[label])

    def _read_files(self, split: str, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
        for path, class_name in _list_files(self.directory, split)[start:stop]:
            yield Path(path).read_bytes(), self.classes.index(class_name)


@SOURCES.register("tfds")
def open_tfds(argument: str) -> TfdsSource:
    """Opens a data set that is prepared under `TFDS_DATA_DIR`, or an image folder.

    Nothing is downloaded. Splits are recognised by their names (see `pipelines.sources.splits`); others, such
    as `unsupervised`, are not read. Images without a label are rejected.

    Args:
        argument: `NAME`, `NAME/CONFIG` or `NAME:VERSION`; or `folder=DIR` with `DIR/SPLIT/CLASS/*`.

    Raises:
        ConfigError: `folder=DIR` does not name an existing folder.
        DataError: The data set is not prepared, has no train split, or does not have one image and one label.
    """
    is_folder = argument.startswith(FOLDER_PREFIX)
    directory = _find_folder(argument) if is_folder else _find_prepared(argument)
    info = _open_builder(directory, is_folder).info
    image, label = _find_keys(argument, info.features)
    classes = tuple(info.features[label].names)
    counts = {name: split.num_examples for name, split in info.splits.items()}
    own_names = _find_splits(argument, list(counts))
    splits = {split: (name, counts[name]) for split, name in own_names.items()}
    if "train" not in splits or len(classes) < 2:
        content_summary = f"splits={', '.join(counts) or 'none'} classes={', '.join(classes) or 'none'}"
        received = f"source=tfds:{argument}: {content_summary}"
        raise DataError("a train split and at least two classes", received, "choose another data set")

    names = [name for name, _ in splits.values()]
    lengths = [(name, info.splits[name].shard_lengths) for name in names]
    content: list[Any] = [str(info.version), classes, lengths]
    if is_folder:
        paths = [path for name in names for path, _ in _list_files(directory, name)]
        content.append([(os.path.relpath(path, directory), os.path.getsize(path)) for path in paths])
    digest = hashlib.sha256(repr((info.name, content)).encode()).hexdigest()
    notes = [f"splits: {', '.join(f'{split}={name}' for split, name in own_names.items())}"]
    unread = [name for name in counts if name not in own_names.values()]
    if unread:
        notes.append(f"splits not read: {join_names(unread)}")
    return TfdsSource(
        f"tfds:{argument}", classes, directory, is_folder, (image, label), splits, digest, tuple(notes)
    )


def _find_splits(argument: str, names: list[str]) -> dict[str, str]:
    """Returns the data set's own name of every split.

    Raises:
        DataError: Two names stand for the same split.
    """
    own_names: dict[str, str] = {}
    for split in SPLITS:
        fitting = [name for name in names if find_split_of_folder(name) == split]
        if split in fitting:
            fitting = [split]
        if len(fitting) > 1:
            received = f"source=tfds:{argument}: {' and '.join(fitting)}"
            raise DataError(f"one split for {split}", received, "rename or remove one of them")
        if fitting:
            own_names[split] = fitting[0]
    return own_names


def _find_folder(argument: str) -> str:
    location = parse_location(argument.removeprefix(FOLDER_PREFIX))
    if not isinstance(location, Path):
        fix = f"write folder:{location}, which reads the same layout"
        raise ConfigError("a folder on a disk", f"source=tfds:{argument}", fix)
    path = location.expanduser().absolute()
    if not path.is_dir():
        raise ConfigError("a folder", f"source=tfds:{argument} (no such folder)", "check the path")
    return str(path)


def _find_prepared(argument: str) -> str:
    """Returns the directory of a prepared data set.

    Only files are examined, because the library's own look-up may access the network.
    """
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    data_dir = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    try:
        builder = read_only_builder.builder_from_files(argument, data_dir=os.path.expanduser(data_dir))
    except (DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        received = f"source=tfds:{argument} ({reason})"
        fix = "prepare it with 'tfds build' or tfds.load, and set TFDS_DATA_DIR to its directory"
        raise DataError(f"a data set prepared in {data_dir}", received, fix) from None
    return str(builder.data_dir)


def _find_keys(argument: str, features: Any) -> tuple[str, str]:
    """Returns the names of the only image and the only class label.

    Raises:
        DataError: There is not exactly one of each.
    """
    import tensorflow_datasets as tfds

    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        received = f"source=tfds:{argument}: features={', '.join(features)}"
        raise DataError("a data set with one Image and one ClassLabel", received, "choose another data set")
    return images[0], labels[0]


def _open_builder(directory: str, is_folder: bool) -> Any:
    """Opens a data set; a folder of images again if images were added or removed."""
    version = _find_newest_change(Path(directory)) if is_folder else 0
    return _load_builder(directory, is_folder, version)


def _find_newest_change(root: Path) -> int:
    """Returns when files were last added to a folder of images, or removed, in nanoseconds."""
    folders = [root, *root.glob("*/"), *root.glob("*/*/")]
    return max(folder.stat().st_mtime_ns for folder in folders)


@lru_cache(maxsize=2)  # opened once per process, not once per shard
def _load_builder(directory: str, is_folder: bool, version: int) -> Any:
    """Loads a data set; `version`, the time of the last change, is part of the cache's key."""
    import tensorflow_datasets as tfds

    if is_folder:
        return tfds.folder_dataset.ImageFolder(directory)
    return tfds.builder_from_directory(directory)


def _list_files(directory: str, split: str) -> list[tuple[str, str]]:
    """Returns path and class of every file of a split."""
    # A private attribute: the library can neither slice an ImageFolder nor list its files.
    return list(_open_builder(directory, True)._split_examples[split])
