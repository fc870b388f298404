"""Reads images for inference in a fixed order, from a shard set or a source. TensorFlow is imported late."""

from __future__ import annotations

import logging
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from pipelines.cpus import count_process_cpus
from pipelines.errors import ConfigError, DataError
from pipelines.records import Record, Rejected
from pipelines.remote.files import is_file
from pipelines.remote.uri import Uri, is_uri, parse_location
from pipelines.shards.images import DEEP
from pipelines.shards.manifest import FILE_NAME, load_manifest
from pipelines.shards.task import prepare_examples
from pipelines.sources import Source, SourceOptions, open_source
from pipelines.sources.splits import find_split_of_folder
from pipelines.spec import DataSpec, ShardSpec
from service.inference.classes import ClassMatch

if TYPE_CHECKING:
    from pipelines.input.batches import Batches
    from pipelines.input.reader import ShardReader
    from service.models.metadata import ModelMetadata

T = TypeVar("T")
U = TypeVar("U")
D = TypeVar("D", bound="ImageDataset")

BATCH = 64  # images per batch
UNDECODABLE = "cannot be decoded"

logger = logging.getLogger(__name__)


class Block(NamedTuple):
    """Rows `start` to `stop` of a split; `start` is a multiple of `BATCH`."""

    split: str
    start: int
    stop: int


class InferenceBatch(NamedTuple):
    """One batch of images to predict.

    Attributes:
        images: uint8 `[BATCH, H, W, C]`; the n real images come first, the rest is padding.
        labels: int32 `[n]`, -1 if the class is unknown.
        ids: Ids of the n images in their source.
        rejected: Images between them that cannot be decoded.
    """

    images: Any
    labels: np.ndarray
    ids: list[str]
    rejected: list[Rejected]


class ImageDataset(Protocol):
    """Images in a fixed order. Implementations must be picklable: Ray workers receive a copy."""

    def rows(self) -> Mapping[str, int]:
        """Returns the number of images per split, in a fixed order of the splits."""

    def batches(self, block: Block, data: DataSpec) -> Iterator[InferenceBatch]:
        """Yields the images of a block at the size a model takes.

        Batch b of a split always starts with image `b * BATCH`, regardless of the blocks.

        Args:
            block: The rows to read.
            data: Size and channels of the images.
        """


def open_dataset(data: str, source_options: SourceOptions | None = None) -> ImageDataset:
    """Opens a shard set by its directory, or a source by its `kind:argument` name.

    Args:
        data: Path or URI of a shard set, or name of a source.
        source_options: Splits and columns that the user specified for a source.

    Raises:
        ConfigError: Neither a shard set nor a source has this name.
        DataError: The shard set or source cannot be used.
    """
    if is_shard_set_uri(data):
        return ShardDataset(data)
    path = Path(data)
    if not path.is_dir():
        options = replace(_allow_any_split(source_options), needs_labels=False)
        return SourceDataset(open_source(data, labelled=False, options=options))
    if not (path / FILE_NAME).is_file():
        raise ConfigError(
            "a shard set or a source",
            f"data={data} (a folder without {FILE_NAME})",
            f"pass {shlex.quote(f'photos:{data}')} to predict the images below it, "
            "or build a shard set with: "
            + shlex.join(["glassbox", "shards", "build", f"folder:{data}", "OUT"]),
        )
    return ShardDataset(str(path.absolute()))


def is_shard_set_uri(data: str) -> bool:
    """Tells whether a name is the URI of a shard set, neither a source nor an archive on the web.

    Raises:
        StoreError: The store denies access or does not respond.
    """
    if not is_uri(data) or data.lower().startswith(("http://", "https://")):
        return False
    location = parse_location(data)
    return isinstance(location, Uri) and is_file(location / FILE_NAME)


def _allow_any_split(options: SourceOptions | None) -> SourceOptions:
    """Returns the options for a source that may lack a train split, because nothing is learned from it."""
    return replace(options or SourceOptions(), needs_train=False)


def find_split(rows: Mapping[str, int], name: str) -> str:
    """Returns the split that a name stands for: itself, or `validation` for `val`, if there is such a split.

    Args:
        rows: Number of images per split.
        name: Name that the user specified.
    """
    usual_name = find_split_of_folder(name)
    if name not in rows and usual_name is not None and usual_name in rows:
        return usual_name
    return name


def use_levels(dataset: D, metadata: ModelMetadata | None) -> D:
    """Returns a dataset whose images of more than 8 bits are reduced like those that a model has learned.

    Images of a shard set are reduced already. If that was done otherwise, this is logged.

    Args:
        dataset: Images to predict.
        metadata: Metadata of the model; None if it has none.
    """
    if metadata is None:
        return dataset
    if isinstance(dataset, SourceDataset):
        return cast("D", replace(dataset, spec=ShardSpec(levels=metadata.levels)))
    if isinstance(dataset, ShardDataset):
        manifest = load_manifest(dataset.directory)
        count = manifest.notices.get(DEEP, 0)
        if count and manifest.levels != metadata.levels:
            logger.warning(
                "warning: %d images of more than 8 bits were reduced with levels %s, but the model was"
                " trained with levels %s; build the shard set with --levels %s",
                count,
                manifest.levels,
                metadata.levels,
                metadata.levels,
            )
    return dataset


def open_labelled_dataset(
    data: str | Path, source_options: SourceOptions | None = None
) -> ShardDataset | SourceDataset:
    """Opens a shard set by its directory, or a source with classes by its `kind:argument` name.

    Args:
        data: Path or URI of a shard set, or name of a source.
        source_options: Splits and columns that the user specified for a source.

    Raises:
        ConfigError: No source has this name.
        DataError: The shard set or source cannot be used, or the source has no labels.
    """
    if is_shard_set_uri(str(data)):
        return ShardDataset(str(data))
    if Path(data).is_dir() or ":" not in str(data):
        load_manifest(data)  # raises if there is none
        return ShardDataset(str(Path(data).absolute()))
    source = open_source(str(data), options=_allow_any_split(source_options))
    if getattr(source, "labels", None) is None:
        fix = "build a shard set with: " + shlex.join(["glassbox", "shards", "build", str(data), "OUT"])
        raise DataError("a source that knows its labels without reading images", f"data={data}", fix)
    return SourceDataset(source)


class ShardDataset:
    """The splits of a shard set; the one that was read last stays open.

    Args:
        directory: Path or URI of the shard set.
    """

    skips_rejected = False  # what a shard set took is readable, unless it is damaged

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._opened: tuple[tuple[str, DataSpec], Batches, ShardReader] | None = None

    def __reduce__(self) -> tuple[type[ShardDataset], tuple[str]]:
        return ShardDataset, (self.directory,)  # workers open the files themselves

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return load_manifest(self.directory).classes

    def compute_digest(self) -> str:
        """Returns the digest of the content."""
        return load_manifest(self.directory).digest()

    def open_labelled(self, split: str, data: DataSpec, match: ClassMatch) -> LabelledRows:
        """Opens a split for reading images with their labels by row."""
        return LabelledRows(self.directory, split, data, match)

    def rows(self) -> Mapping[str, int]:
        """Returns the number of rows per split."""
        return {name: split.rows for name, split in load_manifest(self.directory).splits.items()}

    def batches(self, block: Block, data: DataSpec) -> Iterator[InferenceBatch]:
        """Yields the images of a block; those that cannot be decoded are rejected.

        Raises:
            DataError: The shard set cannot be used, or a row does not match its checksum.
        """
        import tensorflow as tf

        batches, reader = self._open(block.split, data)
        step = block.start // BATCH
        last_step = -(-block.stop // BATCH)
        while step < last_step:
            try:
                for batch in batches.epoch(0, step, stop_step=last_step):
                    rows = np.asarray(batch["row"])
                    rows = rows[rows >= 0]  # padding has row -1
                    yield InferenceBatch(batch["image"], reader.read_labels(rows), reader.read_ids(rows), [])
                    step += 1
            except tf.errors.OpError:  # decode this batch image by image, then continue after it
                rows = np.arange(step * BATCH, min((step + 1) * BATCH, reader.rows))
                yield _decode_batch(
                    images=reader.read_images(rows),
                    shapes=reader.read_shapes(rows),
                    ids=reader.read_ids(rows),
                    labels=reader.read_labels(rows),
                    data=data,
                    encoding=reader.manifest.encoding,
                )
                step += 1

    def _open(self, split: str, data: DataSpec) -> tuple[Batches, ShardReader]:
        """Opens a split, unless it is open: the blocks of a split follow each other."""
        from pipelines.input.batches import Batches
        from pipelines.input.reader import ShardReader

        if self._opened is None or self._opened[0] != (split, data):
            batches = Batches(self.directory, split, data, BATCH)
            self._opened = ((split, data), batches, ShardReader(self.directory, split))
        return self._opened[1:]


class LabelledRows:
    """Images of a split with their labels, read by row.

    Args:
        directory: Path or URI of the shard set.
        split: Name of the split.
        data: Size and channels of the images.
        match: Maps labels of the shard set to outputs of the model.

    Attributes:
        labels: int32 `[N]`, the labels as indices of outputs.
    """

    def __init__(self, directory: str, split: str, data: DataSpec, match: ClassMatch) -> None:
        from pipelines.input.reader import ShardReader

        self._reader = ShardReader(directory, split)
        self._data = data
        self.labels = match.map_labels(self._reader.labels)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Reads some images, uint8 `[n, H, W, C]`; one that cannot be decoded is black."""
        indices = np.asarray(rows)
        places = [str(place) for place in range(len(indices))]
        batch = _decode_batch(
            images=self._reader.read_images(indices),
            shapes=self._reader.read_shapes(indices),
            ids=places,
            labels=self.labels[indices],
            data=self._data,
            encoding=self._reader.manifest.encoding,
        )
        images = np.zeros((len(indices), *batch.images.shape[1:]), np.uint8)
        for position, place in enumerate(batch.ids):
            images[int(place)] = batch.images[position]
        return images


class LabelledCandidates:
    """Images of a split of a source with their labels, read by row.

    Args:
        dataset: Images of the source.
        split: Name of the split.
        data: Size and channels of the images.
        match: Maps labels of the source to outputs of the model.

    Attributes:
        labels: int32 `[N]`, the labels of the usable images as indices of outputs.
    """

    def __init__(self, dataset: SourceDataset, split: str, data: DataSpec, match: ClassMatch) -> None:
        labels = np.asarray(dataset.source.labels(split), np.int32)  # type: ignore[attr-defined]
        self._candidates = np.flatnonzero(labels >= 0)
        self._dataset = dataset
        self._split = split
        self._data = data
        self.labels = match.map_labels(labels[self._candidates])

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Reads some images, uint8 `[n, H, W, C]`; one that cannot be used is black."""
        height, width = self._data.image_size
        images = np.zeros((len(rows), height, width, self._data.channels), np.uint8)
        for place, row in enumerate(rows):
            candidate = int(self._candidates[row])
            block = Block(self._split, candidate, candidate + 1)
            batch = next(iter(self._dataset.batches(block, self._data)))
            if batch.ids:
                images[place] = batch.images[0]
        return images


@dataclass(frozen=True)
class SourceDataset:
    """The images of a source, normalised as in a shard set and therefore predicted alike.

    Attributes:
        source: Source that the images are read from.
        spec: Settings of the shard set.
    """

    source: Source
    spec: ShardSpec = field(default_factory=ShardSpec)
    skips_rejected = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.source.classes

    def compute_digest(self) -> str:
        """Returns the digest of the content."""
        return self.source.fingerprint()

    def open_labelled(self, split: str, data: DataSpec, match: ClassMatch) -> LabelledCandidates:
        """Opens a split for reading images with their labels by row."""
        return LabelledCandidates(self, split, data, match)

    def rows(self) -> Mapping[str, int]:
        """Returns the number of images per split, including those that will be rejected."""
        return self.source.counts()

    def batches(self, block: Block, data: DataSpec) -> Iterator[InferenceBatch]:
        """Yields the images of a block; those that a shard set would not take are rejected.

        Raises:
            DataError: The source cannot be read.
        """

        def read_batch(start: int) -> InferenceBatch:
            stop = min(start + BATCH, block.stop)
            items = list(prepare_examples(self.source, block.split, start, stop, self.spec))
            rejected = [item for item in items if isinstance(item, Rejected)]
            records: list[Record] = [item[0] for item in items if not isinstance(item, Rejected)]
            batch = _decode_batch(
                images=[record.image for record in records],
                shapes=np.array([record.shape for record in records], np.int32).reshape(-1, 3),
                ids=[record.id for record in records],
                labels=np.array([record.label for record in records], np.int32),
                data=data,
                encoding=self.spec.encoding,
            )
            return batch._replace(rejected=rejected + batch.rejected)

        return _prefetch(read_batch, range(block.start, block.stop, BATCH))


def _decode_batch(
    images: Sequence[Any],
    shapes: np.ndarray,
    ids: list[str],
    labels: np.ndarray,
    data: DataSpec,
    encoding: str,
) -> InferenceBatch:
    """Decodes at most `BATCH` stored images, and rejects those that cannot be decoded."""
    import tensorflow as tf

    from pipelines.input import tfdata

    decodable = list(range(len(images)))
    try:
        pixels = tfdata.decode_all(images, shapes, data, encoding)
    except tf.errors.InvalidArgumentError:
        decodable = [i for i in decodable if _is_decodable(images[i], shapes[i], data, encoding)]
        pixels = tfdata.decode_all([images[i] for i in decodable], shapes[decodable], data, encoding)
    padded = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)  # [BATCH, H, W, C]
    padded[: len(decodable)] = pixels
    rejected = [Rejected(image_id, UNDECODABLE) for i, image_id in enumerate(ids) if i not in decodable]
    return InferenceBatch(padded, labels[decodable], [ids[i] for i in decodable], rejected)


def _is_decodable(image: Any, shape: np.ndarray, data: DataSpec, encoding: str) -> bool:
    import tensorflow as tf

    from pipelines.input import tfdata

    try:
        tfdata.decode_all([image], shape[None], data, encoding)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _prefetch(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yields `function(item)` in the order of the items, computed ahead of use in threads."""
    threads = count_process_cpus()
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[U]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
