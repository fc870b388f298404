"""Checkpoints over training: the same images at several checkpoints of one run, or of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from service.checkpoint import Position, find_middle_epoch, list_run_checkpoints
from service.inference.classifier import load_model
from service.report.analysis.images import Images
from service.report.analysis.patterns import deprocess_patterns
from service.report.analysis.timeline import (
    CheckpointOutputs,
    compute_shared_limits,
    run_checkpoints,
    standardize_jointly,
)
from service.report.drawing.album import Album, Drawing, Picture
from service.report.drawing.colours import INACTIVE, SEQUENTIAL, quantize
from service.report.drawing.plots import Line, Plot
from service.report.drawing.sheets import draw_comparison_sheets, tile_images
from service.report.sections.examples import ShownExample
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section
from service.report.sections.training_images import select_rows
from service.runs import Run

IMAGES = 2
FILTERS = 8  # number of filter patterns per checkpoint, on the page that compares runs
ROLES = "abcdef"
MAP = "Grad-CAM"


@dataclass(frozen=True)
class ComparedRun:
    """A run to compare.

    Attributes:
        run: Run directory with the checkpoints.
        name: Name of the run on the page.
        model: Model of the run; its weights are replaced by those of the checkpoints.
        provenance: Model and shard set the pictures are recorded with in the manifest.
    """

    run: Run
    name: str
    model: keras.Model
    provenance: Provenance


@dataclass(frozen=True)
class ImageSelection:
    """The images that the outputs of every checkpoint are shown for.

    Attributes:
        images: Split the images are taken from.
        rows: Rows of the images in that split.
        classes: Class names; labels are indices into them.
        provenance: Model and shard set the pictures are recorded with in the manifest.
    """

    images: Images
    rows: tuple[int, ...]
    classes: Sequence[str]
    provenance: Provenance

    @property
    def labels(self) -> NDArray[np.int32]:
        """Labels of the selected images, int32 `[N]`."""
        return np.asarray(self.images.labels[list(self.rows)])

    def read(self) -> NDArray[np.uint8]:
        """Reads the selected images, uint8 `[N, H, W, C]`."""
        return self.images.read(self.rows)


@dataclass(frozen=True)
class RunTimeline:
    """Outputs of the checkpoints of one run.

    Attributes:
        name: Name of the run on the page.
        outputs: Outputs of each checkpoint, oldest first.
        damaged: Epochs whose checkpoints are damaged.
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.
        has_average: Whether the run evaluates a moving average of its weights.
    """

    name: str
    outputs: tuple[CheckpointOutputs, ...]
    damaged: tuple[int, ...] = ()
    epochs: tuple[dict[str, float], ...] = ()
    has_average: bool = False


@dataclass(frozen=True)
class CheckpointView:
    """One image at one checkpoint of one run, for the template.

    Attributes:
        predicted: Name of the predicted class.
        probability: Probability of the predicted class, in [0, 1].
        is_correct: Whether the predicted class is the true one.
        map: Heatmap for the true class; None for a model without convolutions.
        sheets: Titles and pictures of the channels and filter patterns.
    """

    predicted: str
    probability: float
    is_correct: bool
    map: Picture | None
    sheets: tuple[tuple[str, Picture], ...]


@dataclass(frozen=True)
class ShownCheckpoint:
    """One checkpoint of one run, for the template.

    Attributes:
        epoch: Epoch of the checkpoint.
        roles: Why it is shown, such as "first" or "best, last".
        training_accuracy: Training accuracy, a mean over the steps of that epoch; None if unknown.
        validation_accuracy: Validation accuracy that training measured after that epoch; None if it did not.
        views: The checkpoint's outputs for each image.
    """

    epoch: int
    roles: str
    training_accuracy: float | None
    validation_accuracy: float | None
    views: tuple[CheckpointView, ...]


def build_section(
    album: Album,
    provenance: Provenance,
    run: Run | None,
    images: Images,
    classes: Sequence[str],
    count: int,
) -> Section | None:
    """Builds the view of a run's checkpoints side by side.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        run: Run with the checkpoints; None for a model without a run.
        images: Split the images are taken from.
        classes: Class names; labels are indices into them.
        count: Largest number of checkpoints.

    Returns:
        The section; None if the run has fewer than two undamaged checkpoints.
    """
    if run is None or len(list_run_checkpoints(run, count)) < 2:
        return None
    selection = select_images(images, classes, provenance)
    # A second copy of the model: its weights are replaced, and other sections use the first.
    compared = ComparedRun(run, run.path.name, load_model(run.model_path, run.custom_objects()), provenance)
    timeline = compute_timeline(compared, selection, count)
    if len(timeline.outputs) < 2:
        return None
    return build_timelines(album, selection, [timeline])


def build_comparison(
    album: Album, runs: Sequence[ComparedRun], images: Images, classes: Sequence[str], count: int
) -> Section:
    """Builds the view of several runs' checkpoints, one run below the other.

    Args:
        album: Album the pictures are added to.
        runs: Runs to compare, at least one.
        images: Split of the first run's shard set that the images are taken from.
        classes: Class names; labels are indices into them.
        count: Largest number of checkpoints per run.

    Raises:
        ConfigError: A run has no undamaged checkpoint.
    """
    first = runs[0]
    selection = select_images(images, classes, first.provenance)
    timelines = []
    for compared in runs:
        timeline = compute_timeline(compared, selection, count, FILTERS)
        if not timeline.outputs:
            raise ConfigError(
                "runs with undamaged checkpoints",
                f"run={compared.run.path} (none)",
                "train it again, or leave it out",
            )
        timelines.append(timeline)
    return build_timelines(album, selection, timelines)


def select_images(images: Images, classes: Sequence[str], provenance: Provenance) -> ImageSelection:
    """Selects images of different classes, the same for every run on a shard set.

    Args:
        images: Split the images are taken from.
        classes: Class names; labels are indices into them.
        provenance: Model and shard set the pictures are recorded with in the manifest.
    """
    rows = tuple(int(row) for row in select_rows(images.labels, IMAGES))
    return ImageSelection(images, rows, classes, provenance)


def compute_timeline(
    compared: ComparedRun, selection: ImageSelection, count: int, filters: int = 0
) -> RunTimeline:
    """Computes the outputs of a run's checkpoints; the weights of its model are replaced.

    Args:
        compared: Run with its model.
        selection: Images the outputs are computed for.
        count: Largest number of checkpoints.
        filters: Number of filter patterns per checkpoint.
    """
    checkpoints = list_run_checkpoints(compared.run, count)
    outputs = run_checkpoints(
        compared.model,
        compared.provenance.scale,
        checkpoints,
        selection.read(),
        selection.labels,
        filters,
        offset=compared.provenance.offset,
        head=compared.provenance.head,
    )
    undamaged = {output.epoch for output in outputs}
    damaged = [checkpoint.epoch for checkpoint in checkpoints if checkpoint.epoch not in undamaged]
    return RunTimeline(
        compared.name,
        tuple(outputs),
        tuple(damaged),
        tuple(compared.run.metrics()),
        bool(compared.run.config().get("ema")),
    )


def build_timelines(album: Album, selection: ImageSelection, timelines: Sequence[RunTimeline]) -> Section:
    """Builds the section from computed timelines.

    Args:
        album: Album the pictures are added to.
        selection: Images the timelines were computed for.
        timelines: Outputs of each run's checkpoints, at least one each.
    """
    labels = selection.labels
    names = [selection.classes[label] for label in labels]
    axis = sorted({output.epoch for timeline in timelines for output in timeline.outputs})
    limits = compute_shared_limits([output.maps for timeline in timelines for output in timeline.outputs])
    split = selection.images.split
    photos = []
    for row, name, pixels in zip(selection.rows, names, selection.read(), strict=True):
        text = f"{split.capitalize()} image {row}, {name}"
        origin = selection.provenance.describe_images(split, [row])
        photos.append(album.add_photo(pixels, "example", text, **origin))
    runs = [
        {
            "name": timeline.name,
            "checkpoints": _build_checkpoints(album, selection, timeline, limits),
            "has_average": timeline.has_average,
        }
        for timeline in timelines
    ]
    last = timelines[0].outputs[-1]
    examples = tuple(
        ShownExample(
            photo=photo,
            title=f"row {row}",
            row=row,
            truth=name,
            predicted=selection.classes[int(probabilities.argmax())],
            probability=float(probabilities.max()),
        )
        for photo, row, name, probabilities in zip(
            photos, selection.rows, names, last.probabilities, strict=True
        )
    )
    values = {
        "examples": examples,
        "limits": limits.tolist(),
        "runs": runs,
        "plots": [
            _plot(n, name, label, timelines, axis)
            for n, (name, label) in enumerate(zip(names, labels, strict=True))
        ],
        "damaged": [(timeline.name, epoch) for timeline in timelines for epoch in timeline.damaged],
    }
    figures = {
        "rows": list(selection.rows),
        "limits": limits.tolist(),
        "runs": {timeline.name: _figures(timeline, labels) for timeline in timelines},
    }
    title = "Checkpoints over training" if len(timelines) == 1 else "Runs over their epochs"
    return Section("compare", title, values, figures, examples=examples)


def _build_checkpoints(
    album: Album, selection: ImageSelection, timeline: RunTimeline, limits: NDArray[np.float32]
) -> list[ShownCheckpoint]:
    """Builds the views of every image at every checkpoint of a run."""
    sheets = {}
    for layer in timeline.outputs[0].channels:
        channels = standardize_jointly([output.channels[layer] for output in timeline.outputs])
        sheets[layer] = [draw_comparison_sheets(levels, is_inactive) for levels, is_inactive in channels]
    checkpoints = []
    for number, output in enumerate(timeline.outputs):
        views = []
        for n, label in enumerate(selection.labels):
            sheets_of_image = {layer: by_checkpoint[number][n] for layer, by_checkpoint in sheets.items()}
            drawings = draw_checkpoint(selection, n, timeline.name, output, sheets_of_image, float(limits[n]))
            pictures = dict(zip(drawings, album.add_all(drawings.values()), strict=True))
            predicted = int(output.probabilities[n].argmax())
            views.append(
                CheckpointView(
                    selection.classes[predicted],
                    float(output.probabilities[n, predicted]),
                    predicted == int(label),
                    pictures.pop(MAP, None),
                    tuple(pictures.items()),
                )
            )
        metrics = {int(one["epoch"]): one for one in timeline.epochs}.get(output.epoch, {})
        checkpoints.append(
            ShownCheckpoint(
                output.epoch,
                describe_roles(output.epoch, timeline),
                metrics.get("accuracy"),
                metrics.get("val_accuracy"),
                tuple(views),
            )
        )
    return checkpoints


def describe_roles(epoch: int, timeline: RunTimeline) -> str:
    """Describes why a checkpoint is shown: it is the first, middle, best or last one, or lies between them.

    Args:
        epoch: Epoch of the checkpoint.
        timeline: Outputs of all checkpoints of the run.
    """
    shown = [output.epoch for output in timeline.outputs]
    by_role = {
        "first" if shown[0] == 1 else "first kept": shown[0],
        "middle": find_middle_epoch(shown),
        "best": Position("", timeline.epochs).best_epoch,
        "last": shown[-1],
    }
    roles = [role for role, epoch_of_role in by_role.items() if epoch_of_role == epoch]
    if len(roles) > 1 and "middle" in roles:
        roles.remove("middle")
    return ", ".join(roles) or "between"


def draw_checkpoint(
    selection: ImageSelection,
    n: int,
    run_name: str,
    output: CheckpointOutputs,
    sheets: dict[str, NDArray[np.uint8]],
    limit: float,
) -> dict[str, Drawing]:
    """Draws the outputs of a checkpoint for one image.

    Args:
        selection: Images the outputs were computed for.
        n: Index of the image among them.
        run_name: Name of the run on the page.
        output: Outputs of the checkpoint.
        sheets: Channels of the image by layer, uint8 `[height, width]`, palette indices.
        limit: Value of the heatmap that is drawn in the brightest colour.

    Returns:
        The drawings by their titles; the heatmap under `MAP`.
    """
    split = selection.images.split
    row = selection.rows[n]
    origin = selection.provenance.describe_images(split, [row], run=run_name, epoch=output.epoch)
    checkpoint = f"{run_name}, epoch {output.epoch}"
    image = f"{checkpoint}, {split} image {row}"
    drawings = {}
    for layer, pixels in sheets.items():
        alt = f"{layer}: first channels; {image}"
        drawings[layer] = Drawing(pixels, "channels", alt, origin | {"layer": layer}, "webp", SEQUENTIAL)
    if output.patterns is not None:
        layer = output.patterns.layer
        tiles = deprocess_patterns(output.patterns.images)
        # A flat grey instead of noise that did not change.
        tiles[output.patterns.is_unresponsive] = INACTIVE[0]
        if tiles.shape[3] == 1:
            tiles = tiles.repeat(3, axis=3)
        title = f"patterns of {len(tiles)} filters of {layer}"
        alt = f"{title.capitalize()}; {checkpoint}"
        drawings[title] = Drawing(tile_images(tiles, FILTERS), "patterns", alt, origin | {"layer": layer})
    if output.maps.size:
        values = output.maps[n]
        alt = f"Grad-CAM for the true class, highest value {values.max():.3g} of {limit:.3g}; {image}"
        drawings[MAP] = Drawing(
            quantize(values / limit), "map", alt, origin | {"limit": limit}, "map", SEQUENTIAL
        )
    return drawings


def _plot(n: int, name: str, label: int, timelines: Sequence[RunTimeline], axis: Sequence[int]) -> Plot:
    """Plots the probability of an image's true class over the epochs, one line per run."""
    lines = []
    for timeline, role in zip(timelines, ROLES * len(timelines), strict=False):
        by_epoch = {output.epoch: float(output.probabilities[n, label]) for output in timeline.outputs}
        lines.append(Line(timeline.name, [by_epoch.get(epoch, np.nan) for epoch in axis], role))
    return Plot(f"Image {n + 1}: probability of {name}", "epoch", list(axis), tuple(lines), percent=True)


def _figures(timeline: RunTimeline, labels: NDArray[np.int32]) -> list[dict[str, Any]]:
    images = np.arange(len(labels))
    return [
        {
            "epoch": output.epoch,
            "roles": describe_roles(output.epoch, timeline),
            "of_truth": output.probabilities[images, labels].tolist(),
        }
        for output in timeline.outputs
    ]
