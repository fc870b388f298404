"""Decides how pixels enter a model and what its outputs mean, by running it instead of naming its layers.

Pixels: in this order, what the user or the file says; what the graph does to known values before the first
weights; which input range gives the best accuracy on labelled images; else an assumption, which is stated.

Outputs: whether they stay in [0, 1], and rows sum to 1, on images and on extreme inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from service.inference.graph import activation_name, last_operation, run_to_first_weights
from service.inference.interpretation import (
    CANDIDATES,
    FIT_FIX,
    HEAD_FIX,
    PIXEL_FIX,
    STRETCH,
    Head,
    ImageFit,
    Interpretation,
    PixelTransform,
)
from service.inference.options import DEFAULT_OPTIONS, PredictOptions

# What first weights can have been trained on: at least 0 to 0.25, at most -150 to 150, and not a small
# variation around a large constant.
MIN_SPAN = 0.25
MAX_SPAN = 300.0
LEVELS = 9  # constant images per candidate range, evenly spaced
STANDARDIZED_RATIO = 0.5  # the mean over the deviation must be this much smaller than for other ranges

PROBE_IMAGES = 8  # images, and as many of noise, whose outputs are inspected
EXTREME = 1000.0  # factor on the inputs of the extreme probes
SUM_TOLERANCE = 1e-3
HALF_PRECISION_TOLERANCE = 2e-2

SAMPLE_BATCH = 64
SAMPLE_BATCHES = 8  # at most 512 labelled images are compared
SIGNIFICANCE = 0.001  # of the one-sided sign test between two input ranges


class LabelledImages(Protocol):
    """Images with labels, read by row.

    Attributes:
        labels: int `[N]`, the true classes in the order of the model's outputs.
    """

    labels: NDArray[Any]

    def read(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Reads some images, uint8 `[n, H, W, C]`."""


@dataclass(frozen=True)
class PixelEvidence:
    """The input ranges that the graph of a model allows.

    Attributes:
        candidates: The ranges, the most common one first; never empty.
        reason: What the graph shows, as a phrase.
    """

    candidates: tuple[PixelTransform, ...]
    reason: str

    @property
    def is_conclusive(self) -> bool:
        """Whether a single range is left."""
        return len(self.candidates) == 1


def interpret_model(
    model: keras.Model,
    options: PredictOptions = DEFAULT_OPTIONS,
    known: Interpretation | None = None,
    images: LabelledImages | None = None,
    pixels: NDArray[np.uint8] | None = None,
) -> Interpretation:
    """Decides how pixels enter a model and what its outputs mean.

    Args:
        model: Classifier with one input `[B, H, W, C]` and one output `[B, units]`.
        options: Options of the user, which take precedence.
        known: What the file of the model or its run says; None if it says nothing.
        images: Labelled images of the model's classes; None if there are none.
        pixels: Some images without labels, uint8 `[n, H, W, C]`; None if there are none.

    Raises:
        ConfigError: The outputs are neither probabilities nor logits, or it cannot be told which.
    """
    image_fit, fit_reason = decide_image_fit(options, known)
    if known is not None and options.pixels is None and options.head is None:
        return replace(known, image_fit=image_fit, fit_reason=fit_reason)
    sample = _draw_rows(images)
    if images is not None and len(sample):
        pixels = images.read(sample[:SAMPLE_BATCH])
    if known is not None and options.head is None:
        head = known.head
        head_reason = known.head_reason
        is_normalized = known.is_normalized
    else:
        head, head_reason, is_normalized = decide_head(model, options.head, pixels)

    if options.pixels is not None:
        transform = options.pixels
        reason = "as set by --scale and --offset"
    elif known is not None:
        transform = known.pixels
        reason = known.pixels_reason
    else:
        evidence = find_pixel_evidence(model, pixels)
        if images is not None and len(sample) and not evidence.is_conclusive:
            evidence = compare_accuracies(model, head, evidence, images, sample)
        transform = evidence.candidates[0]
        reason = evidence.reason
        if not evidence.is_conclusive:
            reason = f"assumed, because {reason}; {PIXEL_FIX}"
    return Interpretation(transform, head, reason, head_reason, is_normalized, image_fit, fit_reason)


def decide_image_fit(options: PredictOptions, known: Interpretation | None) -> tuple[ImageFit, str]:
    """Decides how images of other proportions are made to fit, and returns the reason as a phrase.

    Args:
        options: Options of the user, which take precedence.
        known: What the file of the model or its run says; None if it says nothing.
    """
    if options.image_fit is not None:
        return options.image_fit, "as set by --fit"
    if known is not None:
        return known.image_fit, known.fit_reason
    return STRETCH, f"assumed, because the model file does not say; {FIT_FIX}"


def find_pixel_evidence(model: keras.Model, images: NDArray[np.uint8] | None = None) -> PixelEvidence:
    """Finds the input ranges of which a model makes values that weights can be trained on.

    Constant images and a ramp, in each candidate range, are run through everything before the first weights.
    A range is possible if what the weights receive varies neither too little nor too much, nor around a
    distant constant. A model with `x / 255` in front, or with a subtraction of the ImageNet mean, thus takes
    0 to 255, and a batch normalization in front reveals the range by its moving statistics. A model that
    begins with weights allows every range.

    Args:
        model: A functional or Sequential model.
        images: Some images, uint8 `[n, H, W, C]`; they help where the graph subtracts a constant.
    """
    shape = tuple(model.input_shape[1:])
    levels = np.concatenate([_constant_images(shape), _ramp_image(shape)])  # [n, H, W, C], 0 to 1
    responses = []
    for candidate in CANDIDATES:
        values, layer = run_to_first_weights(model, tf.constant(candidate.apply(levels * 255)))
        responses.append(np.asarray(tf.cast(values, tf.float32)).reshape(len(levels), -1))
    pairs = list(zip(CANDIDATES, responses, strict=True))
    if all(_is_identity(candidate, levels, values) for candidate, values in pairs):
        return PixelEvidence(CANDIDATES, f"nothing before its first weights ({layer}) changes the pixels")

    spans = [_measure_span(values) for values in responses]
    possible = [candidate for candidate, span in zip(CANDIDATES, spans, strict=True) if span.is_plausible]
    if len(possible) > 1 and images is not None and len(images):
        possible = _prefer_standardized(model, possible, images)
    if len(possible) == 1:
        span = spans[CANDIDATES.index(possible[0])]
        received = f"{span.low:.4g} to {span.high:.4g}"
        reason = f"its graph turns this range into {received} before its first weights ({layer})"
        return PixelEvidence(tuple(possible), reason)
    if possible:
        ranges = " and ".join(candidate.range for candidate in possible)
        return PixelEvidence(tuple(possible), f"what its graph does before its first weights fits {ranges}")
    return PixelEvidence(CANDIDATES, f"its graph maps no common range to usual values before {layer}")


@dataclass(frozen=True)
class _Span:
    """Smallest and largest value that the first weights receive, where it depends on the pixels."""

    low: float
    high: float

    @property
    def is_plausible(self) -> bool:
        width = self.high - self.low
        centre = abs(self.high + self.low) / 2
        return MIN_SPAN <= width <= MAX_SPAN and centre <= width


def _constant_images(shape: tuple[int, ...]) -> NDArray[np.float32]:
    levels = np.linspace(0, 1, LEVELS, dtype=np.float32)
    return np.broadcast_to(levels[:, None, None, None], (LEVELS, *shape)).copy()


def _ramp_image(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns an image `[1, H, W, C]` that rises from 0 to 1 pixel by pixel."""
    pixels = np.linspace(0, 1, math.prod(shape[:2]), dtype=np.float32).reshape(1, *shape[:2], 1)
    return np.repeat(pixels, shape[2], axis=3)


def _is_identity(candidate: PixelTransform, levels: NDArray[np.float32], values: NDArray[np.float32]) -> bool:
    """Tells whether constant images leave the first operations unchanged, apart from padding with zeros."""
    inputs = candidate.apply(levels[:LEVELS, 0, 0, 0] * 255)[:, None]
    outputs = values[:LEVELS]
    is_same = np.isclose(outputs, inputs, rtol=1e-3, atol=1e-3 * np.abs(inputs).max()).all(axis=0)
    is_padding = (outputs == 0).all(axis=0)
    return bool((is_same | is_padding).all())


def _measure_span(values: NDArray[np.float32]) -> _Span:
    """Measures the range of values `[n, positions]` where they differ between images; 0 to 0 if nowhere."""
    finite = values[np.isfinite(values).all(axis=1)]
    if not len(finite):
        return _Span(0.0, 0.0)
    lowest = finite.min(axis=0)
    highest = finite.max(axis=0)
    responds = highest > lowest  # False for padding
    if not responds.any():
        return _Span(0.0, 0.0)
    return _Span(float(lowest[responds].min()), float(highest[responds].max()))


def _prefer_standardized(
    model: keras.Model, candidates: Sequence[PixelTransform], images: NDArray[np.uint8]
) -> list[PixelTransform]:
    """Returns the one range that a graph with a subtraction centres on zero much better than the others.

    Without a clear one, or without a subtraction, all of them are returned.
    """
    black = tf.zeros((1, *images.shape[1:]))
    at_zero = np.asarray(tf.cast(run_to_first_weights(model, black)[0], tf.float32))
    if not at_zero.any():
        return list(candidates)
    ratios = []
    for candidate in candidates:
        values, _ = run_to_first_weights(model, tf.constant(candidate.apply(images.astype(np.float32))))
        array = np.asarray(tf.cast(values, tf.float32))
        ratios.append(abs(float(array.mean())) / max(float(array.std()), 1e-6))
    best = int(np.argmin(ratios))
    others = [ratio for index, ratio in enumerate(ratios) if index != best]
    if ratios[best] < STANDARDIZED_RATIO * min(others):
        return [candidates[best]]
    return list(candidates)


def decide_head(
    model: keras.Model, requested: Head | None = None, images: NDArray[np.uint8] | None = None
) -> tuple[Head, str, bool]:
    """Decides whether the outputs of a model are probabilities or logits, from the outputs themselves.

    The model predicts images, noise, and noise of a thousand times the amplitude. Probabilities stay within
    [0, 1] whatever comes in; logits do not.

    Args:
        model: Classifier with an output `[B, units]`.
        requested: Choice of the user, which takes precedence.
        images: Some images, uint8 `[n, H, W, C]`; None for noise alone.

    Returns:
        The head, the reason, and whether rows of probabilities sum to 1.

    Raises:
        ConfigError: The outputs are neither, or it cannot be told which.
    """
    ordinary, extreme = _probe_outputs(model, images)
    units = model.output_shape[1]
    is_half = keras.backend.standardize_dtype(model.outputs[0].dtype) in ("float16", "bfloat16")
    tolerance = HALF_PRECISION_TOLERANCE if is_half else SUM_TOLERANCE
    outputs = np.concatenate([ordinary, extreme])
    sums_to_one = units == 1 or _sums_to_one(ordinary, tolerance)
    if requested is not None:
        if requested == "probabilities":
            _check_within_bounds(ordinary, tolerance)
        return requested, "as set by --head", sums_to_one
    probes = f"for {len(outputs)} images and noise, extreme inputs included"
    if not len(outputs):
        return "logits", f"assumed, because no output is finite; {HEAD_FIX}", True

    low = float(outputs.min())
    high = float(outputs.max())
    if low < -tolerance or high > 1 + tolerance:
        if max(-low, high) <= 1 + tolerance and max(-low, high) > 1 - tolerance:
            received = f"outputs that stay within -1 and 1 (from {low:.3g} to {high:.3g}), as of tanh"
            raise _refuse_head(units, received)
        return "logits", f"they reach from {low:.3g} to {high:.3g}", True
    if units == 1:
        if activation_name(last_operation(model)) == "softmax":
            raise _refuse_head(units, "softmax over one unit, which is 1 for every image")
        return "probabilities", f"one unit within 0 and 1 {probes}", True
    if sums_to_one:
        return "probabilities", f"values within 0 and 1, and rows that sum to 1, {probes}", True
    sums = ordinary.sum(axis=1)
    span = f"{sums.min():.3g} to {sums.max():.3g}" if len(sums) else "nothing finite"
    received = f"outputs within 0 and 1 whose rows sum to {span}, as of independent sigmoids"
    raise _refuse_head(units, received)


def _refuse_head(units: int, received: str) -> ConfigError:
    return ConfigError(
        "a model whose outputs are probabilities (rows that sum to 1, or one unit from 0 to 1) or logits",
        f"{units} units: {received}",
        "say which with --head logits, or --head probabilities (rows are divided by their sum); "
        "or end the model in softmax, in one sigmoid unit or without activation",
    )


def _check_within_bounds(outputs: NDArray[np.float32], tolerance: float) -> None:
    """Refuses outputs outside of [0, 1] that the user declares to be probabilities."""
    if len(outputs) and (outputs.min() < -tolerance or outputs.max() > 1 + tolerance):
        raise ConfigError(
            "probabilities from 0 to 1, as --head says",
            f"outputs from {outputs.min():.4g} to {outputs.max():.4g}",
            "pass --head logits, or leave --head out",
        )


def _sums_to_one(outputs: NDArray[np.float32], tolerance: float) -> bool:
    return bool(len(outputs)) and bool((np.abs(outputs.sum(axis=1) - 1) <= tolerance).all())


def _probe_outputs(
    model: keras.Model, images: NDArray[np.uint8] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the finite outputs for ordinary and for extreme inputs, float32 `[n, units]` each."""
    shape = tuple(model.input_shape[1:])
    draw = np.random.default_rng(0)
    noise = draw.random((PROBE_IMAGES, *shape), np.float32)
    ordinary: list[NDArray[Any]] = [noise, noise * 255]
    if images is not None and len(images):
        pixels = images[:PROBE_IMAGES].astype(np.float32)
        ordinary = [pixels / 255, pixels]
    inputs = np.concatenate([*ordinary, (noise * 2 - 1) * EXTREME])
    outputs = np.asarray(tf.cast(model(tf.constant(inputs), training=False), tf.float32))
    is_finite = np.isfinite(outputs).all(axis=1)
    is_extreme = np.arange(len(outputs)) >= len(outputs) - PROBE_IMAGES
    return outputs[is_finite & ~is_extreme], outputs[is_finite & is_extreme]


def compare_accuracies(
    model: keras.Model,
    head: Head,
    evidence: PixelEvidence,
    images: LabelledImages,
    rows: Sequence[int],
) -> PixelEvidence:
    """Compares the accuracies of a model for several input ranges on labelled images.

    A range is ruled out if the best one is correct significantly more often, by a one-sided sign test
    (McNemar's exact test) over the images on which exactly one of the two is correct; `SIGNIFICANCE` is its
    level. Images are added until one range is left, or all `rows` are used.

    Args:
        model: Classifier with an output `[B, units]`.
        head: Whether its outputs are probabilities or logits.
        evidence: Ranges to compare.
        images: Labelled images of the model's classes.
        rows: Rows of the images to use, in random order.
    """
    predict = _compile_classes(model, head)
    candidates = evidence.candidates
    correct: list[list[NDArray[np.bool_]]] = [[] for _ in candidates]
    count = 0
    remaining = list(range(len(candidates)))
    accuracies: list[float] = []
    for start in range(0, len(rows), SAMPLE_BATCH):
        batch = list(rows[start : start + SAMPLE_BATCH])
        pixels = images.read(batch)
        labels = np.asarray(images.labels)[batch]
        padded = np.zeros((SAMPLE_BATCH, *pixels.shape[1:]), np.uint8)
        padded[: len(batch)] = pixels
        for index, candidate in enumerate(candidates):
            predicted = predict(padded, candidate.scale, candidate.offset).numpy()[: len(batch)]
            correct[index].append(predicted == labels)
        count += len(batch)
        hits = np.array([np.concatenate(parts) for parts in correct])  # [candidates, count]
        accuracies = hits.mean(axis=1).tolist()
        best = int(np.argmax(accuracies))
        remaining = [index for index in range(len(candidates)) if not _is_worse(hits[index], hits[best])]
        if len(remaining) == 1:
            break
    pairs = zip(candidates, accuracies, strict=True)
    listing = ", ".join(f"{accuracy:.4f} at {candidate.range}" for candidate, accuracy in pairs)
    left = tuple(candidates[index] for index in remaining)
    reason = f"accuracy on {count} labelled images is {listing}"
    if len(left) > 1:
        reason = f"{reason}, which does not decide between {'; '.join(candidate.range for candidate in left)}"
    return PixelEvidence(left, reason)


def _is_worse(hits: NDArray[np.bool_], of_best: NDArray[np.bool_]) -> bool:
    """Applies the exact one-sided sign test to images on which exactly one of two ranges is correct."""
    wins = int((of_best & ~hits).sum())
    losses = int((hits & ~of_best).sum())
    discordant = wins + losses
    tail = sum(math.comb(discordant, k) for k in range(wins, discordant + 1))
    return discordant > 0 and tail / 2**discordant < SIGNIFICANCE


def _compile_classes(model: keras.Model, head: Head) -> Any:
    """Compiles a graph from uint8 images, scale and offset to the most probable classes, int64 `[B]`."""
    shape = tuple(model.input_shape[1:])
    threshold = 0.5 if head == "probabilities" else 0.0
    signature = [
        tf.TensorSpec((SAMPLE_BATCH, *shape), tf.uint8),
        tf.TensorSpec((), tf.float32),
        tf.TensorSpec((), tf.float32),
    ]

    def predict_classes(images: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
        outputs = model(tf.cast(images, tf.float32) * scale + offset, training=False)
        if outputs.shape[1] == 1:
            return tf.cast(outputs[:, 0] > threshold, tf.int64)
        return tf.argmax(outputs, axis=1)

    return tf.function(predict_classes, input_signature=signature, autograph=False)


def _draw_rows(images: LabelledImages | None) -> list[int]:
    """Draws the rows of the sample, in a random order that is always the same."""
    if images is None:
        return []
    order = np.random.default_rng(0).permutation(len(images.labels))
    return [int(row) for row in order[: SAMPLE_BATCH * SAMPLE_BATCHES]]
