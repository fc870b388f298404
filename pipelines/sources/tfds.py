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
from pipelines.sources import SOURCES

FOLDER = "folder="


@dataclass(frozen=True)
class TfdsSource:
    """A prepared data set. Made by `open_tfds`.

    Attributes:
        name: `tfds:NAME`.
        classes: The class names of the label feature.
        directory: Where the data set lies.
        is_folder: Whether it is an `ImageFolder` instead of a prepared data set.
        keys: Names of the image and of the label feature.
        splits: Per split, the name of the data set's own split and its number of examples.
        digest: What `fingerprint` returns.
    """

    name: str
    classes: tuple[str, ...]
    directory: str
    is_folder: bool
    keys: tuple[str, str]
    splits: Mapping[str, tuple[str, int]]
    digest: str

    def counts(self) -> Mapping[str, int]:
        """Number of examples per split."""
        return {split: count for split, (_, count) in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields examples `start` to `stop` with the image bytes as they were stored, in the order of the files."""
        import tensorflow as tf

        name, count = self.splits[split]
        indices = range(start, min(stop, count))
        try:
            pairs = (self._files if self.is_folder else self._records)(name, indices.start, indices.stop)
            for index, (image, label) in zip(indices, pairs, strict=True):
                identifier = f"{name}/{index:06d}"
                if not 0 <= label < len(self.classes):
                    yield Rejected(identifier, f"no label: {label}")
                else:
                    yield Example(image, label, identifier)
        except (OSError, tf.errors.OpError) as error:
            received = f"{self.directory}: {str(error).splitlines()[0]}"
            raise DataError(
                "a data set that can be read", received, "prepare it again, or check its files"
            ) from None

    def fingerprint(self) -> str:
        """A digest over version, class names and shard sizes (an image folder: paths and sizes of the files)."""
        return self.digest

    def _records(self, split: str, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
        import tensorflow_datasets as tfds

        image, label = self.keys
        dataset = _builder(self.directory, False).as_dataset(
            split=f"{split}[{start}:{stop}]",
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(
                {image: True, label: True}, decoders={image: tfds.decode.SkipDecoding()}
            ),
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        for example in dataset.as_numpy_iterator():
            yield example[image], int(example[label])

    def _files(self, split: str, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
        for path, label in _listed(self.directory, split)[start:stop]:
            yield Path(path).read_bytes(), self.classes.index(label)


@SOURCES.register("tfds")
def open_tfds(argument: str) -> TfdsSource:
    """Opens `NAME`, `NAME/CONFIG` or `NAME:VERSION`, prepared under `TFDS_DATA_DIR`; or `folder=DIR` with `DIR/SPLIT/CLASS/*`.

    Nothing is downloaded. `validation`, or else `test`, is the validation split. Images without a label are rejected.

    Raises:
        ConfigError: `folder=DIR` names no folder.
        DataError: The data set is not prepared, has no train split, or is not one image and one class label.
    """
    is_folder = argument.startswith(FOLDER)
    directory = _folder(argument) if is_folder else _prepared(argument)
    info = _builder(directory, is_folder).info
    image, label = _keys(argument, info.features)
    classes = tuple(info.features[label].names)
    counts = {name: split.num_examples for name, split in info.splits.items()}
    own = {"train": "train", "validation": "validation" if "validation" in counts else "test"}
    splits = {split: (name, counts[name]) for split, name in own.items() if name in counts}
    if "train" not in splits or len(classes) < 2:
        received = f"source=tfds:{argument}: splits={', '.join(counts) or 'none'} classes={', '.join(classes) or 'none'}"
        raise DataError("a train split and at least two classes", received, "choose another data set")
    content: list[Any] = [
        str(info.version),
        classes,
        [(name, info.splits[name].shard_lengths) for name, _ in splits.values()],
    ]
    if is_folder:
        paths = [path for name, _ in splits.values() for path, _ in _listed(directory, name)]
        content.append([(os.path.relpath(path, directory), os.path.getsize(path)) for path in paths])
    digest = hashlib.sha256(repr((info.name, content)).encode()).hexdigest()
    return TfdsSource(f"tfds:{argument}", classes, directory, is_folder, (image, label), splits, digest)


def _folder(argument: str) -> str:
    path = Path(argument.removeprefix(FOLDER)).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError("a folder", f"source=tfds:{argument} (no such folder)", "check the path")
    return str(path)


def _prepared(argument: str) -> str:
    """Where a data set lies on disk. Looks at files only: the library's own look-up may reach for the network."""
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    data_dir = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    try:
        return str(
            read_only_builder.builder_from_files(argument, data_dir=os.path.expanduser(data_dir)).data_dir
        )
    except (DatasetNotFoundError, ValueError) as error:
        fix = "prepare it with 'tfds build' or tfds.load, and set TFDS_DATA_DIR to where it lies"
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"a data set prepared in {data_dir}", f"source=tfds:{argument} ({reason})", fix
        ) from None


def _keys(argument: str, features: Any) -> tuple[str, str]:
    """Names of the one image and the one class label."""
    import tensorflow_datasets as tfds

    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        received = f"source=tfds:{argument}: features={', '.join(features)}"
        raise DataError("a data set with one Image and one ClassLabel", received, "choose another data set")
    return images[0], labels[0]


@lru_cache(maxsize=2)  # opened once per process, not once per shard
def _builder(directory: str, is_folder: bool) -> Any:
    import tensorflow_datasets as tfds

    return tfds.folder_dataset.ImageFolder(directory) if is_folder else tfds.builder_from_directory(directory)


def _listed(directory: str, split: str) -> list[tuple[str, str]]:
    """Path and class of every file of a split. Private to the library, which can neither slice an ImageFolder nor list it."""
    return list(_builder(directory, True)._split_examples[split])
