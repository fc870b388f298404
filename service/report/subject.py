"""What a report is about: a model, the images it is shown on, and how it was trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import keras
import numpy as np
from pydantic import Field

from pipelines.records import Batch, Box
from pipelines.spec import DataSpec, Positive, Spec
from service.inference import Predictions, predict
from service.report.network import Network
from service.report.pictures import Album

if TYPE_CHECKING:
    from service.report.look import Look
    from service.report.probes import Probe

BATCH = 64


class ReportOptions(Spec):
    """What a report shows.

    Attributes:
        training_images: Images in the grid of training images.
        predictions: Images in the grid of predictions.
        activation_images: Images whose activations are drawn, each of another class as far as there are classes.
        activation_rows: Rows of the split to look into, instead of a choice: for activations and heatmaps.
        heatmap_images: Images with heatmaps and saliency; the first are those with activations.
        heatmap_layers: Feature maps that heatmaps are made of: the last one, and others spread over the depth.
        sheets: How sheets of channels are encoded; `auto` takes JPEG for large maps and PNG, without loss, for small ones.
        patterns: Filters a layer that patterns are made for; 0 for none.
        trust_images: Images that the maps are put to the test on.
        seed: Of noise, of what is drawn for tests, and of the choice of images for them.
        samples: A folder of pictures from anywhere for the model to answer.
        scale: Factor on the pixels before they enter the model; None finds it out.
    """

    training_images: Positive = 24
    predictions: Positive = 24
    activation_images: Annotated[int, Field(ge=0)] = 2
    activation_rows: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    heatmap_images: Annotated[int, Field(ge=0)] = 4
    heatmap_layers: Positive = 3
    sheets: Literal["auto", "png", "jpeg", "webp"] = "auto"
    patterns: Annotated[int, Field(ge=0)] = 16
    trust_images: Annotated[int, Field(ge=0)] = 64
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    samples: Path | None = None
    scale: Annotated[float, Field(gt=0)] | None = None


class Images(Protocol):
    """One split of a shard set, at the size a model takes.

    Attributes:
        split: Its name.
        labels: int32 `[rows]`.
    """

    split: str
    labels: np.ndarray

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Some images, uint8 `[N, H, W, C]`."""

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Where those images came from."""

    def evidence(self, rows: Sequence[int]) -> list[Box | None]:
        """Boxes `(ymin, xmin, ymax, xmax)` in [0, 1] that decide the classes of those images, None where unknown."""

    def batches(self) -> Iterable[Batch]:
        """All images, in the order of the rows."""


class ShardImages:
    """`Images` of a shard set.

    Args:
        shards: The shard set.
        split: Which split.
        data: Size and channels the images are brought to.

    Raises:
        DataError: The shard set cannot be read.
    """

    def __init__(self, shards: Path, split: str, data: DataSpec) -> None:
        from pipelines.input.reader import ShardReader

        self.shards, self.split, self.data = shards, split, data
        self._reader = ShardReader(shards, split)
        self.labels = np.asarray(self._reader.labels)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Some images, uint8 `[N, H, W, C]`."""
        from pipelines.input.batches import read_rows

        return np.asarray(read_rows(self.shards, self.split, self.data, [int(row) for row in rows])["image"])[
            : len(rows)
        ]

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Where those images came from."""
        return self._reader.ids([int(row) for row in rows])

    def evidence(self, rows: Sequence[int]) -> list[Box | None]:
        """Boxes `(ymin, xmin, ymax, xmax)` in [0, 1] that decide the classes of those images, None where unknown."""
        return self._reader.evidence([int(row) for row in rows])

    def batches(self) -> Iterator[Batch]:
        """All images, in the order of the rows."""
        from pipelines.input.batches import Batches

        batches = Batches(self.shards, self.split, self.data, BATCH)
        with batches.data_errors():
            yield from batches.epoch(0)


@dataclass(frozen=True)
class Subject:
    """Everything a part of the page may look at.

    Attributes:
        name: Of the run, or of the model file.
        model: The trained classifier.
        model_digest: SHA-256 of the model file.
        shards_digest: Digest of the shard set's manifest.
        classes: Class names; labels are indices into them.
        training: The images it learned from.
        evaluation: The images it is judged on: validation, or training images where there are no others.
        scale: Factor on the pixels before they enter the model.
        options: What to show.
        epochs: Metrics per epoch, see `service.runs.Run.metrics`; empty for a model made elsewhere.
        config: How the run was started; empty for a model made elsewhere.
    """

    name: str
    model: keras.Model
    model_digest: str
    shards_digest: str
    classes: tuple[str, ...]
    training: Images
    evaluation: Images
    scale: float
    options: ReportOptions = field(default_factory=ReportOptions)
    epochs: tuple[dict[str, float], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def predictions(self) -> Predictions:
        """What the model answers for every image it is judged on."""
        return predict(self.model, self.evaluation.batches(), self.scale)

    @cached_property
    def network(self) -> Network:
        """The model as something to look into."""
        return Network(self.model, self.scale)

    @cached_property
    def probes(self) -> tuple[Probe, ...]:
        """The images that are looked into."""
        from service.report.probes import probes

        return probes(self)

    @cached_property
    def look(self) -> Look:
        """What the network makes of the probes."""
        from service.report.look import look

        return look(self)

    def origin(self, images: Images, rows: Sequence[int], **parameters: Any) -> dict[str, Any]:
        """What a picture was made from, for the manifest."""
        return {
            "shards": self.shards_digest,
            "split": images.split,
            "rows": [int(row) for row in rows],
            **parameters,
        }


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        id: Its anchor, and the name of its template.
        title: Its heading.
        values: What its template shows.
        figures: Every figure in it, for the manifest.
    """

    id: str
    title: str
    values: dict[str, Any]
    figures: dict[str, Any]


class Part(Protocol):
    """Makes a section, its pictures going into the album; None where the subject has nothing to show."""

    def __call__(self, subject: Subject, album: Album) -> Section | None:
        """Makes it."""
