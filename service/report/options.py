"""The options of a report: how many images, layers and filters it shows, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.spec import Positive, Spec


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
