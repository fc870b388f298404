"""Applies drawn parameters to images on the device: one warp, then one compiled pass for all the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import tensorflow as tf

from pipelines.augment.base import Augmentation, MixingAugmentation, PixelAugmentation
from pipelines.augment.spec import list_augmentations
from pipelines.augment.warp import warp
from pipelines.spec import AugmentSpec

COLOUR = "colour"  # name of the composed colour maps in a batch
Parameters = dict[str, tf.Tensor]
Pass = Callable[[tf.Tensor, Parameters], tuple[tf.Tensor, tf.Tensor | None]]


def apply_augmentations(batch: Any, spec: AugmentSpec | None = None) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Applies the parameters that a batch carries: warp, colour, pixels, mixing.

    Args:
        batch: `image` uint8 `[B, H, W, C]`, and the parameters that were drawn (see
            `pipelines.records.Batch`). If images are mixed, B is even.
        spec: Settings of all augmentations.

    Returns:
        A tuple `(images, shares)`. Images are float32 `[B, H, W, C]` in 0 to 255, not rounded; H and W are
        those of `spec.size` if it is set. Shares, float32 `[B]`, tell how much of each mixture is the image
        itself; the rest is its neighbour (see `swap_neighbours`). None if images are not mixed.
    """
    spec = spec or AugmentSpec()
    images = batch["image"]
    if "affine" in batch:
        images = warp(images, batch["affine"], spec.fill, spec.fill_value, spec.size)
    share = None
    for run_pass, keys in _build_passes(list_augmentations(spec), tuple(batch)):
        images, share = run_pass(images, {key: batch[key] for key in keys})
    return tf.cast(images, tf.float32), share


def swap_neighbours(values: tf.Tensor) -> tf.Tensor:
    """Swaps positions 2i and 2i + 1 of a batch, `[B, ...]` with B even: what each image is mixed with."""
    pairs = tf.reshape(values, [-1, 2, *values.shape[1:]])
    return tf.reshape(tf.reverse(pairs, [1]), [-1, *values.shape[1:]])


@lru_cache(maxsize=256)
def _build_passes(
    augmentations: tuple[Augmentation, ...], names: tuple[str, ...]
) -> tuple[tuple[Pass, tuple[str, ...]], ...]:
    """Groups the changes after the warp into passes, each compiled by XLA as a whole or not at all.

    With the augmentations of this package alone, that is one pass. Equal augmentations yield the same cached
    functions, which are therefore traced once.

    Args:
        augmentations: All augmentations, on or off.
        names: Keys of a batch; only changes whose parameters are among them are made.

    Returns:
        The passes in their order, each with the keys of the parameters that it takes.
    """
    changes = [a for a in augmentations if isinstance(a, PixelAugmentation) and a.key in names]
    mixing = [a for a in augmentations if isinstance(a, MixingAugmentation) and a.key in names]
    # (is compiled, key, change), in the order in which they are made
    steps: list[tuple[bool, str, Any]] = []
    if COLOUR in names:
        steps.append((True, COLOUR, None))
    steps += [(a.is_compiled, a.key, a) for a in changes]
    # Images are mixed with their neighbours before any mixing, so all mixing is in one pass.
    is_mixing_compiled = all(a.is_compiled for a in mixing)
    steps += [(is_mixing_compiled, a.key, a) for a in mixing]

    passes = []
    for is_compiled, group in groupby(steps, key=lambda step: step[0]):
        members = [(key, change) for _, key, change in group]
        passes.append((_build_pass(members, is_compiled), tuple(key for key, _ in members)))
    return tuple(passes)


def _build_pass(members: Sequence[tuple[str, Any]], is_compiled: bool) -> Pass:
    """Builds one pass.

    Args:
        members: Changes in their order, each with the key of its parameters; None means the colour maps.
        is_compiled: Whether XLA compiles the pass.
    """

    def run(images: tf.Tensor, parameters: Parameters) -> tuple[tf.Tensor, tf.Tensor | None]:
        images = tf.cast(images, tf.float32)
        neighbours = None
        share = None
        for key, change in members:
            if change is None:
                images = _apply_colour(images, parameters[key])
            elif isinstance(change, PixelAugmentation):
                images = change.apply(images, parameters[key])
            else:
                neighbours = swap_neighbours(images) if neighbours is None else neighbours
                images, new_share = change.mix(images, neighbours, parameters[key])
                share = new_share if share is None else share * new_share
        return images, share

    return tf.function(run, jit_compile=True, autograph=False) if is_compiled else run


def _apply_colour(images: tf.Tensor, colour: tf.Tensor) -> tf.Tensor:
    """Applies the linear map of each image, `[B, C, C + 1]`, and clips to 0 to 255."""
    # [B, 1, 1, C] each: the weights of one channel in all new ones, and the offset
    *weights, offset = tf.unstack(colour[:, None, None], axis=-1)
    channels = tf.split(images, len(weights), axis=-1)  # [B, H, W, 1] each
    terms = [weight * channel for weight, channel in zip(weights, channels, strict=True)]
    return tf.clip_by_value(tf.add_n(terms) + offset, 0.0, 255.0)
