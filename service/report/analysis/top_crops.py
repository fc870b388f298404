"""Top crops: the parts of images in a split that activate a channel most, one per image.

The idea is that of Zeiler and Fergus (2014), "Visualizing and understanding convolutional networks": the
images that excite a feature map most, cropped to the field of view of the position that they excite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from service.report.analysis.images import Images
from service.report.analysis.network import LayerInfo, Network
from service.report.analysis.receptive_field import ReceptiveField

COUNT = 9  # crops of a channel
BATCH = 64  # images that run at a time
PADDING = 128  # value of pixels beyond the edge of an image


@dataclass(frozen=True)
class TopPositions:
    """The positions of a layer that activate its first C channels most, in n images, strongest first.

    Attributes:
        activations: float32 `[C, n]`; -inf where fewer images have a strongest position.
        rows: Rows of the images in their split, int64 `[C, n]`.
        positions: Row and column in the feature map, int64 `[C, n, 2]`.
    """

    activations: np.ndarray
    rows: np.ndarray
    positions: np.ndarray

    def count(self, channel: int) -> int:
        """Returns the number of positions of a channel."""
        return int(np.isfinite(self.activations[channel]).sum())


class TopTracker:
    """Keeps the strongest positions of each channel while images pass by.

    Args:
        channels: Number of channels.
        count: Number of positions that are kept per channel.
    """

    def __init__(self, channels: int, count: int = COUNT) -> None:
        self._count = count
        self._top = TopPositions(
            np.zeros((channels, 0), np.float32),
            np.zeros((channels, 0), np.int64),
            np.zeros((channels, 0, 2), np.int64),
        )

    def update(self, activations: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> None:
        """Adds a batch of images.

        Args:
            activations: Largest activation per image and channel, float32 `[B, C]`; -inf for none.
            rows: Rows of the images, int64 `[B]`.
            positions: Where it is, row and column, int64 `[B, C, 2]`.
        """
        top = self._top
        repeated_rows = np.broadcast_to(rows, (len(top.rows), len(rows)))
        all_activations = np.concatenate([top.activations, activations.T], axis=1)  # [C, n + B]
        all_rows = np.concatenate([top.rows, repeated_rows], axis=1)
        all_positions = np.concatenate([top.positions, positions.swapaxes(0, 1)], axis=1)
        # Stable, so that of equal activations the one of the earlier image wins.
        best = np.argsort(-all_activations, axis=1, kind="stable")[:, : self._count]
        self._top = TopPositions(
            np.take_along_axis(all_activations, best, axis=1),
            np.take_along_axis(all_rows, best, axis=1),
            np.take_along_axis(all_positions, best[..., None], axis=1),
        )

    @property
    def top(self) -> TopPositions:
        """The strongest positions so far."""
        return self._top


@dataclass(frozen=True)
class Scan:
    """What one pass over N images of a split yields.

    Attributes:
        rows: Rows of the images, int64 `[N]`.
        tops: The strongest positions by name of the layer.
        feature_rows: Rows of the images with features, int64 `[n]`.
        features: Output of one operation for these images, float32 `[n, ...]`; None if not requested.
    """

    rows: np.ndarray
    tops: dict[str, TopPositions]
    feature_rows: np.ndarray
    features: np.ndarray | None


def select_rows(images: Images, limit: int) -> np.ndarray:
    """Selects the rows of a split that are searched: all, or `limit` of them spread evenly; int64 `[N]`."""
    return _spread(len(images.labels), limit)


def _spread(total: int, limit: int) -> np.ndarray:
    """Spreads at most `limit` indices evenly from the first to the last of `total`, int64 `[n]`."""
    count = min(limit, total)
    return np.linspace(0, total - 1, count).round().astype(np.int64) if count else np.zeros(0, np.int64)


def scan_images(
    network: Network,
    images: Images,
    rows: np.ndarray,
    channels: Mapping[str, int],
    features_of: str | None = None,
    feature_images: int | None = None,
) -> Scan:
    """Runs images through the network once, and keeps the strongest positions of channels.

    Memory does not grow with the number of images, except for `features_of`.

    Args:
        network: The network under analysis.
        images: Split that the rows belong to.
        rows: Rows of the images in it.
        channels: Number of channels, the first ones, by name of a layer with a feature map or tokens.
        features_of: Name of an operation whose outputs are kept.
        feature_images: Largest number of images whose outputs are kept, spread evenly; None for all.
    """
    layers = [network.find_layer(name) for name in channels]
    order = list(network.symbolic_trace.operations)
    names = [*channels, *([features_of] if features_of else [])]
    deepest = max(names, key=order.index)

    def compute(batch: tf.Tensor) -> tuple[list[tuple[tf.Tensor, tf.Tensor]], tf.Tensor]:
        outputs = network.run(batch, stop_after=deepest).outputs
        found = []
        for layer in layers:
            values = layer.arrange(outputs[layer.name])[..., : channels[layer.name]]
            found.append(_find_strongest(tf.cast(values, tf.float32)))
        return found, tf.cast(outputs[features_of], tf.float32) if features_of else tf.zeros(0)

    graph = network.compile_graph(compute)
    trackers = [TopTracker(count) for count in channels.values()]
    has_features = np.zeros(len(rows), bool)
    has_features[_spread(len(rows), len(rows) if feature_images is None else feature_images)] = True
    features = []
    for start in range(0, len(rows), BATCH):
        batch_rows = rows[start : start + BATCH]
        found, output = graph(images.read(batch_rows.tolist()))
        for layer, tracker, (activations, indices) in zip(layers, trackers, found, strict=True):
            positions = np.stack(np.divmod(indices.numpy().astype(np.int64), layer.shape[1]), axis=-1)
            tracker.update(activations.numpy(), batch_rows, positions)
        if features_of:
            features.append(output.numpy()[has_features[start : start + BATCH]])
    tops = {layer.name: tracker.top for layer, tracker in zip(layers, trackers, strict=True)}
    return Scan(rows, tops, rows[has_features], np.concatenate(features) if features else None)


def _find_strongest(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the largest value of every channel of `[B, h, w, C]`, and its index in the flattened map.

    Returns:
        float32 `[B, C]`, -inf for a channel that is the same everywhere, and int64 `[B, C]`.
    """
    positions = values.shape[1] * values.shape[2]
    flat = tf.reshape(values, (-1, positions, values.shape[3]))
    largest = tf.reduce_max(flat, axis=1)
    if positions > 1:
        largest = tf.where(largest > tf.reduce_min(flat, axis=1), largest, -np.inf)
    return largest, tf.argmax(flat, axis=1)


@dataclass(frozen=True)
class CropPlace:
    """The part of an image that is shown for a position of a feature map.

    Attributes:
        window: Top, left, bottom and right edge in pixels; outside of the image where the field is padding.
        mark: Place of the position in it, down and across from 0 to 1, if the window is not centred there.
    """

    window: tuple[int, int, int, int]
    mark: tuple[float, float] | None = None


def place_crop(
    layer: LayerInfo, field: ReceptiveField, position: Sequence[int], shape: Sequence[int]
) -> CropPlace:
    """Places the crop of a position: its receptive field, or the whole image where the field is no smaller.

    Tokens see the whole image after the first attention; before it, their patch.

    Args:
        layer: Layer whose output has the position.
        field: Its receptive fields.
        position: Row and column in the feature map.
        shape: Height and width of the image.
    """
    top, left, bottom, right = field.window(*position)
    sees_all = layer.has_tokens and field.is_global
    is_high = sees_all or bottom - top >= shape[0]
    is_wide = sees_all or right - left >= shape[1]
    window = (
        0 if is_high else top,
        0 if is_wide else left,
        shape[0] if is_high else bottom,
        shape[1] if is_wide else right,
    )
    if not is_high and not is_wide:
        return CropPlace(window)
    down = ((top + bottom) / 2 - window[0]) / (window[2] - window[0])
    across = ((left + right) / 2 - window[1]) / (window[3] - window[1])
    return CropPlace(window, (down, across))


def cut_crop(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Cuts a window out of an image `[H, W, C]`; what lies beyond its edges is grey."""
    top, left, bottom, right = window
    height, width = image.shape[:2]
    crop = np.full((bottom - top, right - left, image.shape[2]), PADDING, image.dtype)
    rows = slice(max(top, 0), min(bottom, height))
    columns = slice(max(left, 0), min(right, width))
    inside = image[rows, columns]
    y = rows.start - top
    x = columns.start - left
    crop[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return crop
