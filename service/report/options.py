"""The options of a report: its content, and the format of the page; and what `glassbox look` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.errors import ConfigError
from pipelines.remote.uri import Location, Uri
from pipelines.spec import Fit, Positive, Spec
from service.inference.interpretation import Head
from service.inference.options import DEFAULT_OPTIONS, PredictOptions


class ReportOptions(Spec):
    """Content of a report.

    Attributes:
        training_images: Number of images in the grid of training images.
        predictions: Number of images in the grid of predictions.
        activation_images: Number of examples whose activations are drawn, of different classes if possible.
        activation_rows: Rows of the evaluated split to use as examples; None selects them by class and
            probability.
        heatmap_images: Number of examples with heatmaps and saliency maps; the first of them are those with
            activations.
        heatmap_layers: Number of layers that heatmaps are computed for: the last feature map, and others
            spread over the depth.
        sheets: Encoding of activation sheets; `auto` selects JPEG for large maps and PNG for small ones.
        patterns: Number of filters per layer in the filter patterns; 0 leaves them, crops and ablation out.
        filters: Number of filters per layer that are shown in detail: pattern in the Fourier basis, strongest
            crops, kernel; at most `patterns`.
        scanned_images: Largest number of images of the evaluated split, spread evenly, that are searched for
            the strongest crops, and that the ablation is measured on; 0 leaves both out.
        checkpoints: Largest number of checkpoints of the run that are shown: the first, the middle, the best
            and the last one, then others far from these, as far as the run keeps them.
        layer_times: Whether to measure how long every layer takes. Measured times differ from one rendering
            to the next; without them, a page is the same to the byte for the same inputs.
        trust_images: Number of images in the sanity checks of the heatmaps; 0 leaves the section out.
        embedding: Method of the map of the images: `pca`, or `tsne`, which takes longer and needs the
            extra `embedding` (scikit-learn).
        seed: Seed of noise, of random baselines and of every random choice of images.
        samples: Folder of images from outside the data set to predict; None leaves the section out.
        scale: Factor on the pixels before they enter the model; None infers it from the model.
        offset: Summand after the multiplication; requires `scale`.
        head: Whether the outputs are `probabilities` or `logits`; None infers it from the outputs.
        fit: How images of other proportions are made to fit; None for what the model was trained with.
        resize: With `fit` crop, the length that the shorter side is resized to first.
        antialias: With `fit`, whether images that are made smaller are low-pass filtered.
    """

    training_images: Positive = 24
    predictions: Positive = 24
    activation_images: Annotated[int, Field(ge=0)] = 2
    activation_rows: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    heatmap_images: Annotated[int, Field(ge=0)] = 4
    heatmap_layers: Positive = 3
    sheets: Literal["auto", "png", "jpeg", "webp"] = "auto"
    patterns: Annotated[int, Field(ge=0)] = 16
    filters: Annotated[int, Field(ge=0)] = 8
    scanned_images: Annotated[int, Field(ge=0)] = 2000
    checkpoints: Positive = 4
    layer_times: bool = True
    trust_images: Annotated[int, Field(ge=0)] = 64
    embedding: Literal["pca", "tsne"] = "pca"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    samples: Path | None = None
    scale: Annotated[float, Field(gt=0)] | None = None
    offset: float | None = None
    head: Head | None = None
    fit: Fit | None = None
    resize: Positive | None = None
    antialias: bool = False

    @property
    def predict_options(self) -> PredictOptions:
        """The options on how images enter the model and what its outputs mean."""
        return PredictOptions(
            scale=self.scale,
            offset=self.offset,
            head=self.head,
            fit=self.fit,
            resize=self.resize,
            antialias=self.antialias,
        )


@dataclass(frozen=True)
class PageOptions:
    """Format of a page.

    Attributes:
        single_file: Whether pictures are embedded in the HTML instead of stored next to it.
        home: Relative link to the index page of all runs; empty for none.
    """

    single_file: bool = False
    home: str = ""


@dataclass(frozen=True)
class LookRequest:
    """What `glassbox look` shows.

    Attributes:
        model: A run directory or a model file; path or URI.
        images: Image files, and folders of images.
        rows: Rows of the evaluated split of the shard set, instead of images.
        label: Name of the true class of all images; None if it is not known. Rows have their own.
        data: Shard set of the rows; None for that of the run.
        classes: Class names; None for those of the model, else `class_0`, `class_1` and so on.
        options: How pixels and outputs are interpreted, where the user specified it.
        custom_objects: Modules that define the custom layers of the model.

    Raises:
        ConfigError: There are neither images nor rows, or both.
    """

    model: str | Path | Uri
    images: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    label: str | None = None
    data: Location | None = None
    classes: tuple[str, ...] | None = None
    options: PredictOptions = DEFAULT_OPTIONS
    custom_objects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.images) == bool(self.rows):
            raise ConfigError(
                "images, or rows of the shard set",
                f"images={len(self.images)} rows={len(self.rows)}",
                "name image files or folders, or pass --rows 3,17",
            )
        if self.rows and self.label is not None:
            raise ConfigError(
                "--label with images alone", f"label={self.label}", "leave it out: the rows have labels"
            )
        if self.rows and self.classes is not None:
            raise ConfigError(
                "--classes with images alone",
                f"classes={' '.join(self.classes)}",
                "leave it out: the shard set of the rows has class names",
            )
        if self.images and self.data is not None:
            raise ConfigError(
                "--data with --rows alone",
                f"data={self.data}",
                "leave it out, or name rows instead of images",
            )
