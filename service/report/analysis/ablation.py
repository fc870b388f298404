"""Ablation: the accuracy of each class when one channel of the last feature map is set to zero.

See Morcos et al. (2018), "On the importance of single directions for generalization". The layers before the
feature map run once; only those after it, the head, run for every channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.inference.tracing import trace_once
from service.report.analysis.network import PASS_THROUGH_KINDS, LayerInfo, Network
from service.report.analysis.operation_graph import Node, count_positions, trace_graph

# Layers that compute each channel from the same channel alone.
CHANNELWISE_KINDS = PASS_THROUGH_KINDS | {
    "Activation",
    "AveragePooling2D",
    "BatchNormalization",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "LeakyReLU",
    "MaxPooling2D",
    "ReLU",
}
# Operations that all heads together may take: one or two seconds of a processor, or for a large network a
# share of what the forward passes of the images take.
BUDGET = 5e10
BUDGET_SHARE = 0.05
OUTPUT_COST = 30  # multiply-adds that take as long as writing one output
FEWEST_CHANNELS = 64  # ablated at least, unless the layer has fewer
FEWEST_IMAGES = 200  # before channels are left out
MAX_VALUES = 1 << 23  # largest number of outputs of an operation that are computed at a time
BATCH = 64  # images that run at a time
MAX_STORED = 1 << 25  # numbers of all stored features
TOLERANCE = 1e-2  # by which probabilities of the head may differ from those of the whole network

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Head:
    """The layers after a feature map.

    Attributes:
        layer: The feature map, of C channels.
        stored: Name of the operation whose output the head starts from: the feature map, or the last value
            before the first weights.
        first: The operation with these weights, if every operation between it and the feature map
            computes each channel by itself; the effect of a channel on it is then one product. Otherwise
            None.
        cost: Operations of the head for one image, as many as multiply-adds take that long.
        network_cost: The same of the whole network.
        width: Largest number of outputs of its operations for one image.
    """

    layer: LayerInfo
    stored: str
    first: Node | None
    cost: float
    network_cost: float
    width: int


@dataclass(frozen=True)
class Ablation:
    """Accuracy of K classes without each of A channels.

    Attributes:
        layer: Name of the feature map.
        channels: Ablated channels, int64 `[A]`.
        images: Number of images.
        accuracy: Accuracy of every class with all channels, float `[K]`; NaN for a class without images.
        without: Accuracy of every class without each channel, float `[A, K]`.
        mean_accuracy: Accuracy on all images.
        mean_without: Accuracy on all images without each channel, float `[A]`.
    """

    layer: str
    channels: np.ndarray
    images: int
    accuracy: Floats
    without: Floats
    mean_accuracy: float
    mean_without: Floats

    @property
    def change(self) -> Floats:
        """Change of every class's accuracy by removing each channel, float `[A, K]`; negative for a loss."""
        return self.without - self.accuracy


def find_head(network: Network) -> Head | None:
    """Finds the head after the last feature map; None for a network without one."""
    layer = network.last_feature_map
    if layer is None:
        return None
    nodes = trace_graph(network)
    after = nodes[[node.name for node in nodes].index(layer.name) + 1 :]
    cost = sum(_estimate_cost(node) for node in after)
    network_cost = sum(_estimate_cost(node) for node in nodes)
    current = layer.name
    for number, node in enumerate(after):
        if layer.has_tokens or node.sources != (current,):
            break
        if node.kind in CHANNELWISE_KINDS:
            current = node.name
            continue
        if _get_matrix(node) is not None:
            rest = sum(_estimate_cost(later) for later in after[number + 1 :])
            # Of the first weights, a channel needs only its own.
            own = math.prod(node.shape) * OUTPUT_COST + _count_weights(node) / layer.shape[2]
            return Head(layer, current, node, own + rest, network_cost, _find_width(after[number:]))
        break
    width = max(math.prod(layer.shape), _find_width(after))
    return Head(layer, layer.name, None, cost, network_cost, width)


def _estimate_cost(node: Node) -> float:
    """Estimates the cost of an operation: its weights at every position, and writing its output."""
    return count_positions(node.shape) * _count_weights(node) + math.prod(node.shape) * OUTPUT_COST


def _count_weights(node: Node) -> int:
    return sum(math.prod(weight.shape) for weight in getattr(node.operation, "weights", ()))


def _find_width(nodes: Sequence[Node]) -> int:
    """Finds the largest number of outputs of an operation."""
    return max(math.prod(node.shape) for node in nodes)


def _get_matrix(node: Node) -> Any:
    """Returns the kernel `[inputs, units]` of a dense layer or of a convolution of one pixel, else None."""
    shape = node.input_shapes[0]
    if node.kind == "Dense" and len(shape) == 1:
        return node.operation.kernel
    is_single = node.kind == "Conv2D" and shape[:2] == tuple(node.operation.kernel_size) == (1, 1)
    if is_single and node.operation.groups == 1:
        return node.operation.kernel[0, 0]
    return None


def count_stored_images(network: Network, head: Head) -> int:
    """Returns the number of images whose features fit into memory."""
    values = int(np.prod(network.symbolic_trace.outputs[head.stored].shape[1:]))
    return max(1, MAX_STORED // values)


def compute_ablation(
    network: Network, head: Head, features: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> Ablation | None:
    """Computes the accuracy without each channel.

    Where all channels of all images would exceed the budget, fewer images are used, spread evenly, and then
    only the channels with the largest mean activation.

    Args:
        network: The network under analysis.
        head: What follows its last feature map, see `find_head`.
        features: Output of `head.stored` for N images, float32 `[N, ...]`.
        labels: True classes, int `[N]`.
        probabilities: Predictions of the whole network for the same images, float `[N, K]`.

    Returns:
        The result; None without images, or if the head alone does not reproduce the predictions, because
        other layers bypass the feature map.
    """
    if not len(features):
        return None
    channels, images = _choose_subset(head, features)
    features = features[images]
    labels = labels[images]
    if head.first is None:
        run = _compile_head(network, head, features.shape[1:])
    else:
        run = _compile_linear_head(network, head, head.first, features.shape[1:])
    logits = _run_unchanged(network, head, features)
    expected = tf.nn.softmax(logits).numpy()
    if not np.abs(expected - probabilities[images]).max() <= TOLERANCE:  # or not finite
        return None
    is_correct = np.zeros((len(channels), len(labels)), bool)
    for channel_range, image_range in _split(head, len(channels), len(labels)):
        chunk = features[image_range]
        ablated = run(tf.constant(chunk), tf.constant(channels[channel_range], tf.int32)).numpy()
        predicted = ablated.reshape(-1, len(chunk), network.class_count).argmax(axis=-1)
        is_correct[channel_range, image_range] = predicted == labels[image_range]
    correct_unchanged = logits.numpy().argmax(axis=-1) == labels
    return Ablation(
        layer=head.layer.name,
        channels=channels,
        images=len(labels),
        accuracy=_average_by_class(correct_unchanged[None], labels, network.class_count)[0],
        without=_average_by_class(is_correct, labels, network.class_count),
        mean_accuracy=float(correct_unchanged.mean()),
        mean_without=is_correct.mean(axis=1),
    )


def _choose_subset(head: Head, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chooses channels and images within the budget: int64 `[A]` and `[N]`, in order."""
    count = head.layer.shape[2]
    budget = max(BUDGET, BUDGET_SHARE * len(features) * head.network_cost)
    pairs = int(budget // head.cost)
    fewest = min(FEWEST_IMAGES, len(features))
    channels = np.arange(count)
    kept = max(pairs // fewest, FEWEST_CHANNELS)
    if kept < count:
        strength = np.abs(features).reshape(-1, count).mean(axis=0)
        channels = np.sort(np.argsort(-strength, kind="stable")[:kept])
    number = min(max(pairs // len(channels), fewest), len(features))
    images = np.linspace(0, len(features) - 1, number).round().astype(np.int64)
    return channels, images


def _split(head: Head, channels: int, images: int) -> Iterator[tuple[slice, slice]]:
    """Splits channels and images into pieces of which at most `MAX_VALUES` numbers are computed."""
    pairs = max(1, MAX_VALUES // head.width)
    image_step = min(images, BATCH, pairs)
    channel_step = max(1, pairs // image_step)
    for first in range(0, channels, channel_step):
        for start in range(0, images, image_step):
            yield slice(first, first + channel_step), slice(start, start + image_step)


def _run_from(network: Network, name: str, values: tf.Tensor) -> tf.Tensor:
    """Computes logits from the output of one operation; nothing before it is computed."""
    unused = tf.zeros((tf.shape(values)[0], *network.shape))
    return network.run(unused, replacements={name: values}).logits


def _run_unchanged(network: Network, head: Head, features: np.ndarray) -> tf.Tensor:
    spec = tf.TensorSpec((None, *features.shape[1:]), tf.float32)
    graph = trace_once(lambda values: _run_from(network, head.stored, values), spec)
    pieces = [graph(tf.constant(features[start : start + BATCH])) for start in range(0, len(features), BATCH)]
    return tf.concat(pieces, axis=0)


def _trace_head(run: Callable[..., tf.Tensor], shape: Sequence[int]) -> Any:
    """Traces a function of features `[N, *shape]` and channels `[A]`."""
    return trace_once(run, tf.TensorSpec((None, *shape), tf.float32), tf.TensorSpec((None,), tf.int32))


def _compile_head(network: Network, head: Head, shape: Sequence[int]) -> Any:
    """Compiles a function of features `[N, *shape]` and channels `[A]` to logits `[A * N, K]`."""

    def run(features: tf.Tensor, channels: tf.Tensor) -> tf.Tensor:
        masks = 1 - tf.one_hot(channels, head.layer.shape[2])  # [A, C]
        rank = len(features.shape)
        masks = tf.reshape(masks, (-1, *[1] * (rank - 1), head.layer.shape[2]))
        ablated = features[None] * masks  # [A, N, ..., C]
        return _run_from(network, head.layer.name, tf.reshape(ablated, (-1, *features.shape[1:])))

    return _trace_head(run, shape)


def _compile_linear_head(network: Network, head: Head, first: Node, shape: Sequence[int]) -> Any:
    """Compiles the same for a head whose first weights see every channel separately.

    Setting channel c to zero changes only those entries of the first weights' input x that belong to c. The
    change of x W is therefore the product of the change of these entries with their rows of W.
    """
    operation = first.operation
    count = head.layer.shape[2]
    matrix = tf.cast(_get_matrix(first), tf.float32)  # [m * C, U]
    rows = tf.reshape(matrix, (-1, count, matrix.shape[1]))  # [m, C, U]
    zero = tf.reshape(_run_to_first_weights(network, head), (1, -1, count))  # [1, m, C]

    def run(features: tf.Tensor, channels: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(features, (-1, *rows.shape[:2]))  # [N, m, C]
        unchanged = tf.einsum("nmc,mcu->nu", x, rows)
        if operation.use_bias:
            unchanged += tf.cast(operation.bias, tf.float32)
        changed = tf.gather(zero - x, channels, axis=2)
        change = tf.einsum("nma,mau->anu", changed, tf.gather(rows, channels, axis=1))  # [A, N, U]
        y = tf.reshape(unchanged + change, (-1, *first.shape))
        if not network.runs_without_activation(operation):
            y = operation.activation(y)
        return _run_from(network, first.name, y)

    return _trace_head(run, shape)


def _run_to_first_weights(network: Network, head: Head) -> tf.Tensor:
    """Computes what the first weights receive from a feature map of zeros."""
    unused = tf.zeros((1, *network.shape))
    zeros = {head.layer.name: tf.zeros((1, *head.layer.shape))}
    return tf.cast(
        network.run(unused, stop_after=head.stored, replacements=zeros).outputs[head.stored], tf.float32
    )


def _average_by_class(is_correct: np.ndarray, labels: np.ndarray, classes: int) -> Floats:
    """Averages flags `[A, N]` over the images of every class, float `[A, K]`; NaN for none."""
    members = np.eye(classes)[labels]  # [N, K]
    counts = members.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(is_correct @ members / np.where(counts > 0, counts, np.nan))
