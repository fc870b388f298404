"""What a report is about: a model, the images it is shown on, and how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import keras

from service.inference.classifier import Predictions, predict
from service.report.analysis.examples import ReportExample, select_examples
from service.report.analysis.forward import ForwardPass, forward, heatmap_layers
from service.report.analysis.images import Images
from service.report.analysis.network import Network
from service.report.drawing.album import Album
from service.report.options import ReportOptions


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
    def examples(self) -> tuple[ReportExample, ...]:
        """The images that several sections examine closely."""
        return select_examples(self.predictions, self.evaluation, self.classes, self.options)

    @cached_property
    def forward_pass(self) -> ForwardPass:
        """Logits, heatmaps and layer outputs of the examples."""
        layers = heatmap_layers(self.network, self.options.heatmap_layers)
        return forward(self.network, self.examples, layers)

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


class SectionBuilder(Protocol):
    """Makes a section, its pictures going into the album; None where the subject has nothing to show."""

    def __call__(self, subject: Subject, album: Album) -> Section | None:
        """Makes it."""
