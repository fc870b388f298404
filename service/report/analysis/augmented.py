"""The preview of an augmentation: pictures as training would see them, beside the originals and with what was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import Fact
from pipelines.augment.describe import describe_draws
from pipelines.augment.draw import draw
from pipelines.input.order import PADDING, Rows, epoch_order
from pipelines.input.reader import ShardReader
from pipelines.spec import AugmentSpec, DataSpec, Positive, Spec
from pipelines.storage import write_atomically
from service.report.drawing.album import Album, Picture
from service.report.pages import page
from service.report.publish import MANIFEST, PAGE

KIND = "glassbox preview"


VERSION = 1


class PreviewOptions(Spec):
    """Which images a preview shows, and of which epochs.

    Attributes:
        split: Which split.
        seed: That of the training run.
        epoch: The first epoch shown.
        rows: How many images: the first ones of that epoch.
        versions: How many epochs of each.
    """

    split: str = "train"
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    epoch: Annotated[int, Field(ge=0, lt=2**31)] = 1
    rows: Positive = 8
    versions: Positive = 4


@dataclass(frozen=True)
class Version:
    """An image as one epoch sees it."""

    epoch: int
    picture: Picture
    facts: tuple[Fact, ...]
    matrix: list[list[float]] | None


@dataclass(frozen=True)
class Shown:
    """An image beside what the epochs make of it."""

    row: int
    id: str
    label: str
    original: Picture
    versions: list[Version]


class Previewer:
    """Draws and applies what training would, for a few images.

    Args:
        shards: The shard set.
        reader: Of the split.
        data: Size and channels of the images.
        augment: The ranges.
        options: Which images, and of which epochs.
    """

    def __init__(
        self, shards: Path, reader: ShardReader, data: DataSpec, augment: AugmentSpec, options: PreviewOptions
    ) -> None:
        self._shards, self._reader, self._data, self._augment, self._options = (
            shards,
            reader,
            data,
            augment,
            options,
        )
        self.epochs = range(options.epoch, options.epoch + options.versions)
        self.rows = self._order(options.epoch)[: options.rows]

    def write(self, directory: Path) -> None:
        """Writes `index.html`, `manifest.json` and the pictures. Same content, same bytes."""
        album = Album(directory)
        html = page.render(
            "preview.html",
            [],
            shown=self.show(album),
            ranges=self.ranges,
            options=self._options,
            rows=self._reader.rows,
        )
        write_atomically(directory / PAGE, html)
        manifest = {
            "kind": KIND,
            "version": VERSION,
            "shards": self._reader.manifest.digest(),
            "data": self._data.model_dump(mode="json"),
            "augment": self._augment.model_dump(mode="json"),
            "options": self._options.model_dump(mode="json"),
            "pictures": [album.entries[file] for file in sorted(album.entries)],
        }
        page.write_json(directory / MANIFEST, manifest)

    @property
    def ranges(self) -> list[tuple[str, object]]:
        """What is drawn from, where that is not the standard."""
        return self._augment.list_changed()

    def show(self, album: Album) -> list[Shown]:
        """Every image with its versions, their pictures in the album."""
        versions = {epoch: self._versions(epoch, album) for epoch in self.epochs}
        names, classes = self._reader.ids(self.rows), self._reader.manifest.classes
        shown = []
        for place, (row, name, pixels) in enumerate(
            zip(self.rows.tolist(), names, self._images(self.rows), strict=True)
        ):
            label = classes[self._reader.labels[row]]
            original = album.add_photo(
                pixels, "original", f"{label}, {name}, as stored", **self._origin(row), id=name
            )
            shown.append(Shown(row, name, label, original, [versions[epoch][place] for epoch in self.epochs]))
        return shown

    def _versions(self, epoch: int, album: Album) -> list[Version]:
        """The images as one epoch sees them."""
        from pipelines.augment.apply import apply_augmentations

        rows = np.stack([self.rows, self._neighbours(epoch)], axis=1).reshape(
            -1
        )  # an image at 2i, who it is mixed with at 2i + 1
        drawn = draw(self._augment, self._options.seed, epoch, rows, self._data)
        images, shares = apply_augmentations({"image": self._images(rows)} | drawn, self._augment)
        pixels = np.clip(np.rint(np.asarray(images)), 0, 255).astype(np.uint8)
        words = describe_draws(
            self._augment,
            self._options.seed,
            epoch,
            rows,
            self._data,
            None if shares is None else np.asarray(shares),
        )
        versions = []
        for place in range(0, len(rows), 2):
            facts = tuple(self._named(fact, rows[place + 1]) for fact in words[place])
            alt = ", ".join([f"the same in epoch {epoch}", *(f"{fact.name} {fact.value}" for fact in facts)])
            parameters = {name: values[place].tolist() for name, values in drawn.items()}
            origin = self._origin(int(rows[place]))
            picture = album.add_photo(
                pixels[place], "version", alt, **origin, epoch=epoch, parameters=parameters
            )
            versions.append(Version(epoch, picture, facts, parameters.get("affine")))
        return versions

    def _origin(self, row: int) -> dict[str, Any]:
        """What a picture was made from, for the manifest."""
        return {"shards": self._reader.manifest.digest(), "split": self._options.split, "row": row}

    def _named(self, fact: Fact, neighbour: int) -> Fact:
        """The same fact with the class and the file of the neighbour, where it is about one."""
        if not fact.of_neighbour:
            return fact
        file = PurePosixPath(self._reader.ids([int(neighbour)])[0]).name
        return Fact(
            fact.name, f"{fact.value} {self._reader.manifest.classes[self._reader.labels[neighbour]]}, {file}"
        )

    def _order(self, epoch: int) -> Rows:
        return epoch_order(
            self._reader.rows, self._options.seed, epoch, self._reader.shard_rows, self._data.window
        )

    def _neighbours(self, epoch: int) -> Rows:
        """Who stands beside each image in the order of an epoch, `[rows]`; padding where nobody does."""
        order = self._order(epoch)
        places = np.argsort(order)[self.rows] ^ 1
        return np.asarray(np.append(order, PADDING)[np.minimum(places, len(order))])

    def _images(self, rows: Rows) -> NDArray[np.uint8]:
        """Decoded images, uint8 `[n, H, W, C]`; black where there is none."""
        from pipelines.input.batches import read_rows

        found = np.asarray(
            read_rows(self._shards, self._options.split, self._data, rows[rows != PADDING].tolist())["image"]
        )
        images = np.zeros((len(rows), *found.shape[1:]), np.uint8)
        images[rows != PADDING] = found
        return images
