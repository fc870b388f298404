"""What networks make of the same images at several moments, on scales that all moments share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.errors import TrainingError
from service.report.analysis.checkpoints import RunCheckpoint
from service.report.analysis.gradcam import Heatmaps
from service.report.analysis.network import Network, Tap
from service.report.analysis.patterns import patterns, pixels, shown_size
from service.report.drawing.album import enlarged, reduced
from service.report.drawing.colours import FLAT, FLAT_PLACE, FRAME_PLACE, shaded
from service.report.drawing.sheets import blank, levels

LAYERS, CHANNELS = 3, 16  # convolutions that are shown, channels of each
COLUMNS, TILE = 8, 48  # tiles a row, pixels of a tile's longer side as far as whole factors allow


@dataclass(frozen=True)
class Look:
    """What one network made of `B` images at one moment.

    Attributes:
        epoch: The moment.
        probabilities: float32 `[B, K]`.
        maps: float32 `[B, h, w]`, Grad-CAM for the true classes, at least 0; empty `[B, 0, 0]` without convolutions.
        channels: float32 `[B, H, W, <= CHANNELS]` by layer.
        patterns: A layer, and what its first filters look for, uint8 `[F, H, W, C]`, from the same noise at every moment; None
            where nobody asked.
    """

    epoch: int
    probabilities: np.ndarray
    maps: np.ndarray
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    patterns: tuple[str, np.ndarray] | None = None


def look(
    model: keras.Model,
    scale: float,
    moments: Sequence[RunCheckpoint],
    images: np.ndarray,
    truth: np.ndarray,
    filters: int = 0,
) -> list[Look]:
    """Runs a model with the weights of each moment; those whose checkpoint is damaged are left out.

    Args:
        model: Of the run; its weights are changed.
        scale: Factor on its pixels.
        moments: In order.
        images: uint8 `[B, H, W, C]`.
        truth: int `[B]`, the true classes.
        filters: How many patterns of filters of the last shown layer to make; takes longer than all else.
    """
    network = Network(model, scale)
    shown, last = shown_layers(network), network.last_map
    inner = network.compiled(lambda x: _inner(network, x, shown))
    maps = Heatmaps(network, [last.name]) if last else None
    found = []
    for moment in moments:
        try:
            moment.load(model)
        except TrainingError:
            continue
        logits, values = inner(images)
        heat = maps(images, truth[:, None]).maps if maps else {}
        of_truth = next(iter(heat.values()))[:, 0] if heat else np.zeros((len(images), 0, 0), np.float32)
        channels = {tap.name: value.numpy() for tap, value in zip(shown, values, strict=True)}
        made = _patterns(network, shown[-1], filters) if shown and filters else None
        found.append(Look(moment.epoch, tf.nn.softmax(logits).numpy(), of_truth, channels, made))
    return found


def shown_layers(network: Network) -> list[Tap]:
    """The first, a middle and the last convolution."""
    found = network.convolutions
    places = np.linspace(0, len(found) - 1, min(LAYERS, len(found)))
    return [found[round(place)] for place in places]


def shared_sheets(values: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Draws channels of several moments on one scale: mean and deviation of a channel are over all moments and images.

    Args:
        values: A float32 `[B, H, W, C]` a moment.

    Returns:
        For every moment and image uint8 `[height, width]`, places in a palette.
    """
    together = np.stack(values)  # [M, B, H, W, C]
    mean, deviation = together.mean(axis=(0, 1, 2, 3)), together.std(axis=(0, 1, 2, 3))
    drawn = []
    for moment in together:
        shares, flat = (
            levels(moment, mean, deviation).numpy().transpose(0, 3, 1, 2) / 255,
            blank(moment).numpy(),
        )  # [B, C, H, W], [B, C]
        drawn.append([_sheet(image, without) for image, without in zip(shares, flat, strict=True)])
    return drawn


def _sheet(shares: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Lays out channels `[C, H, W]`, 0 to 1, as tiles with a frame of a pixel; those that are `flat` in the colour for it."""
    places: np.ndarray = enlarged(shaded(reduced(shares, TILE)), TILE)
    places[flat] = FLAT_PLACE
    columns = min(COLUMNS, len(places))
    places = np.pad(places, ((0, -len(places) % columns), (0, 1), (0, 1)), constant_values=FRAME_PLACE)
    rows, (height, width) = len(places) // columns, places.shape[1:]
    return np.asarray(
        places.reshape(rows, columns, height, width)
        .transpose(0, 2, 1, 3)
        .reshape(rows * height, columns * width)
    )


def shared_limits(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The highest value of every image's maps over all moments, `[B]`; 1 where all are 0.

    Args:
        maps: A float32 `[B, h, w]` a moment, of sizes of their own.
    """
    highest = np.max([moment.reshape(len(moment), -1).max(axis=1, initial=0) for moment in maps], axis=0)
    return np.asarray(np.where(highest > 0, highest, 1), np.float32)


def _patterns(network: Network, tap: Tap, count: int) -> tuple[str, np.ndarray]:
    """The layer's name and patterns, grey where a filter never answered."""
    found = patterns(network, tap.name, range(min(count, tap.shape[2])), size=shown_size(network, tap.name))
    made = pixels(found.images)
    made[found.silent] = FLAT[0]
    return tap.name, made


def _inner(network: Network, images: Any, shown: Sequence[Tap]) -> tuple[Any, list[Any]]:
    trace = network.run(images)
    return trace.logits, [tf.cast(trace.outputs[tap.name][..., :CHANNELS], tf.float32) for tap in shown]
