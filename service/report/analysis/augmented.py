"""Augments images exactly as training does, for several epochs, with descriptions of the drawn parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import Fact
from pipelines.augment.describe import describe_draws
from pipelines.augment.draw import draw
from pipelines.input.geometry import Boxes
from pipelines.input.mix import AnyReader, read_padded_shapes
from pipelines.input.order import PADDING, EpochOrder
from pipelines.input.passes import build_order
from pipelines.input.windows import Rows
from pipelines.remote.uri import Location
from pipelines.spec import AugmentSpec, DataSpec, Positive, Spec

SEARCH_STEPS = 256  # steps whose rows are in memory while an image is searched for


class PreviewOptions(Spec):
    """Images and epochs that a preview shows.

    Attributes:
        split: Name of the split.
        seed: Seed of the training run.
        epoch: Number of the first epoch shown.
        rows: Number of images: the first ones of that epoch.
        versions: Number of epochs in which each image is shown.
        global_batch: Images per step of the training run, in which images are mixed in pairs.
    """

    split: str = "train"
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    epoch: Annotated[int, Field(ge=0, lt=2**31)] = 1
    rows: Positive = 8
    versions: Positive = 4
    global_batch: Positive = 32


@dataclass(frozen=True)
class AugmentedVersion:
    """An image as augmented in one epoch.

    Attributes:
        epoch: Number of the epoch.
        pixels: uint8 `[H, W, C]`.
        facts: Descriptions of the drawn parameters, one for each augmentation that is on.
        parameters: Drawn parameters by name, as lists.
    """

    epoch: int
    pixels: NDArray[np.uint8]
    facts: tuple[Fact, ...]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class AugmentedImage:
    """An image of a shard set, with its augmented versions.

    Attributes:
        row: Row of the image in its split.
        id: Identifier of the image in its source.
        label: Name of its class.
        pixels: The image as stored, uint8 `[H, W, C]`.
        versions: The image in each of the epochs that train on it; of a mix of sets, an epoch may leave out
            images.
    """

    row: int
    id: str
    label: str
    pixels: NDArray[np.uint8]
    versions: tuple[AugmentedVersion, ...]


def augment_images(
    shards: Location, reader: AnyReader, data: DataSpec, augment: AugmentSpec, options: PreviewOptions
) -> list[AugmentedImage]:
    """Augments the first images of an epoch exactly as training does, in this epoch and the following ones.

    Args:
        shards: Path or URI of the shard set.
        reader: Reader of the split.
        data: Size and channels of the images.
        augment: Ranges that the parameters are drawn from.
        options: Number of images, epochs and the seed.
    """
    order = _open_order(reader, data, options, options.epoch)
    steps = range(min(order.steps, -(-options.rows // options.global_batch)))
    rows = order.find_rows(steps).reshape(-1)
    rows = rows[rows != PADDING][: options.rows]
    epochs = range(options.epoch, options.epoch + options.versions)
    by_epoch = [_augment_rows(shards, reader, data, augment, options, rows, epoch) for epoch in epochs]
    ids = reader.read_ids(rows)
    labels = reader.read_labels(rows)
    originals = _read_images(shards, options.split, data, rows)
    images = []
    for index, row in enumerate(rows.tolist()):
        label = reader.manifest.classes[labels[index]]
        versions = tuple(versions[index] for versions in by_epoch if index in versions)
        images.append(AugmentedImage(row, ids[index], label, originals[index], versions))
    return images


def _augment_rows(
    shards: Location,
    reader: AnyReader,
    data: DataSpec,
    augment: AugmentSpec,
    options: PreviewOptions,
    rows: Rows,
    epoch: int,
) -> dict[int, AugmentedVersion]:
    """Augments some rows as in one epoch; returns those that it trains on, by their index."""
    from pipelines.augment.apply import apply_augmentations

    neighbours, is_drawn = _find_neighbours(_open_order(reader, data, options, epoch), rows)
    # Images are mixed in pairs: each image at 2i, its neighbour at 2i + 1.
    pairs = np.stack([rows, neighbours], axis=1).reshape(-1)
    shapes = read_padded_shapes(reader, pairs)
    parameters = draw(augment, options.seed, epoch, pairs, data, shapes)
    windows = parameters.get("window")
    size = augment.size if windows is not None and augment.size else data.image_size
    decoded = data.model_copy(update={"image_size": size})
    batch = {"image": _read_images(shards, options.split, decoded, pairs, windows)} | parameters
    augmented, tensor_shares = apply_augmentations(batch, augment)
    pixels = np.clip(np.rint(np.asarray(augmented)), 0, 255).astype(np.uint8)
    shares = None if tensor_shares is None else np.asarray(tensor_shares)
    facts = describe_draws(augment, options.seed, epoch, pairs, data, shares, shapes)
    versions = {}
    for index in np.flatnonzero(is_drawn).tolist():
        place = 2 * index
        neighbour = int(neighbours[index])
        versions[index] = AugmentedVersion(
            epoch=epoch,
            pixels=pixels[place],
            facts=tuple(_name_neighbour(fact, reader, neighbour) for fact in facts[place]),
            parameters={name: values[place].tolist() for name, values in parameters.items()},
        )
    return versions


def _name_neighbour(fact: Fact, reader: AnyReader, neighbour: int) -> Fact:
    """Adds the class and the file of the neighbour to a fact about the image mixed in."""
    if not fact.of_neighbour:
        return fact
    label = reader.manifest.classes[reader.read_labels([neighbour])[0]]
    file = PurePosixPath(reader.read_ids([neighbour])[0]).name
    return replace(fact, value=f"{fact.value} {label}, {file}", of_neighbour=False)


def _open_order(reader: AnyReader, data: DataSpec, options: PreviewOptions, epoch: int) -> EpochOrder:
    return EpochOrder(build_order(reader, data, options.global_batch, options.seed), epoch)


def _find_neighbours(order: EpochOrder, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
    """Finds the row that each row is mixed with in an epoch.

    Returns:
        The neighbours, int64 `[rows]`, padding for a row without one; and whether the epoch trains on each
        row, `[rows]`.
    """
    neighbours = np.full(len(rows), PADDING)
    missing = set(rows.tolist())
    for start in range(0, order.steps, SEARCH_STEPS):
        batches = order.find_rows(range(start, min(start + SEARCH_STEPS, order.steps)))
        # A batch is mixed in pairs: its rows at 2i and 2i + 1.
        paired = np.pad(batches, ((0, 0), (0, batches.shape[1] % 2)), constant_values=PADDING)
        for step, position in zip(*np.isin(batches, list(missing)).nonzero(), strict=True):
            row = int(batches[step, position])
            if row not in missing:
                continue  # another copy of a row that is repeated
            neighbours[rows == row] = paired[step, position ^ 1]
            missing.discard(row)
        if not missing:
            break
    return neighbours, ~np.isin(rows, list(missing))


def _read_images(
    shards: Location, split: str, data: DataSpec, rows: Rows, windows: Boxes | None = None
) -> NDArray[np.uint8]:
    """Reads decoded images or windows of them, uint8 `[n, H, W, C]`; black for padding."""
    from pipelines.input.batches import read_rows

    is_image = rows != PADDING
    used = None if windows is None else windows[is_image]
    decoded = np.asarray(read_rows(shards, split, data, rows[is_image].tolist(), used)["image"])
    images = np.zeros((len(rows), *decoded.shape[1:]), np.uint8)
    images[is_image] = decoded
    return images
