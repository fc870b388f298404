"""Filter patterns in a decorrelated Fourier basis: what a filter looks for, without the noise.

The method is that of Olah, Mordvintsev and Schubert (2017), "Feature Visualization", Distill: gradient ascent
on the Fourier coefficients of an image instead of its pixels, with frequencies and colours scaled as in
natural images, while the image is shifted, scaled and rotated by a little. High frequencies, which a gradient
on pixels favours, then grow no faster than others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.inference.tracing import trace_once
from service.report.analysis.network import Network
from service.report.analysis.patterns import FilterPatterns, compute_objective
from service.report.analysis.receptive_field import ReceptiveField

STEPS = 36
BATCH = 16  # filters that run at a time
LEARNING_RATE = 0.06
# Adam's decay of the first and second moment (Kingma and Ba, 2015), and the summand of its denominator.
BETA_1 = 0.9
BETA_2 = 0.99
EPSILON = 1e-8
# Standard deviation of the coefficients that every image starts from, before they are scaled.
NOISE = 0.02
# Largest shift as a share of the side, largest logarithm of the scale, and largest rotation in radians.
SHIFT = 1 / 4
SCALE = 0.1
ROTATION = math.radians(8)
# Longer side of an image in receptive fields, and its limits in pixels.
FIELDS = 4
MIN_SIDE = 48
MAX_SIDE = 96
# Smallest deviation of a colour axis, of the largest one: filters may look for colours that no image has.
MIN_COLOUR = 0.2

Floats = NDArray[np.floating]


def compute_fourier_patterns(
    network: Network,
    layer: str,
    filters: Sequence[int],
    colours: Floats,
    field: ReceptiveField,
    steps: int = STEPS,
    seed: int = 0,
) -> FilterPatterns:
    """Computes the patterns of some filters: of each, the image with the largest mean activation.

    Args:
        network: The network under analysis.
        layer: Name of a layer with a feature map or tokens.
        filters: Indices of the filters, or channels, of that layer.
        colours: Axes of the colours, see `measure_colours`.
        field: Receptive fields of the layer, which the size of the images depends on. Where they are patches
            side by side, shifts are by whole patches, and nothing is scaled or rotated.
        steps: Number of steps of gradient ascent.
        seed: Seed of the first image and of the transformations, which are the same for every filter.

    Returns:
        The patterns; their images have pixel values from 0 to 255, and are not transformed.

    Raises:
        ConfigError: The network has no such layer.
    """
    network.find_layer(layer)
    height, width = choose_fourier_size(network, layer, field)
    patch = find_patch(field)
    generator = np.random.default_rng(seed)
    shape = (1, 2, network.shape[2], height, width // 2 + 1)  # real and imaginary parts
    first = generator.normal(0, NOISE, shape).astype(np.float32)
    transforms = draw_transforms(generator, steps, height, width)
    shifts = draw_shifts(generator, steps, height, width)
    if patch is not None:
        transforms = np.tile(build_transform(1, 0, height, width).astype(np.float32), (steps, 1))
        sides = np.array(patch, np.int32)
        shifts = shifts // sides * sides
    decoder = ImageDecoder(height, width, colours)

    def ascend(
        state: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
        step: tf.Tensor,
        shift: tf.Tensor,
        transform: tf.Tensor,
        indices: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        coefficients, mean, square = state
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(coefficients)
            shifted = tf.roll(decoder(coefficients), shift, (1, 2))
            images = transform_images(shifted, transform)
            objective, _ = compute_objective(network, layer, images, indices)
        gradient = _normalize(tape.gradient(objective, coefficients))
        mean = BETA_1 * mean + (1 - BETA_1) * gradient
        square = BETA_2 * square + (1 - BETA_2) * tf.square(gradient)
        unbiased_mean = mean / (1 - BETA_1**step)
        unbiased_square = square / (1 - BETA_2**step)
        change = LEARNING_RATE * unbiased_mean / (tf.sqrt(unbiased_square) + EPSILON)
        return coefficients + change, mean, square

    def measure(coefficients: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = decoder(coefficients)
        return images, compute_objective(network, layer, images, indices)[1]

    coefficients_spec = tf.TensorSpec((None, *shape[1:]), tf.float32)
    indices_spec = tf.TensorSpec((None,), tf.int32)
    compiled_ascend = trace_once(
        ascend,
        (coefficients_spec,) * 3,
        tf.TensorSpec((), tf.float32),
        tf.TensorSpec((2,), tf.int32),
        tf.TensorSpec((8,), tf.float32),
        indices_spec,
    )
    compiled_measure = trace_once(measure, coefficients_spec, indices_spec)
    images = []
    initial_activation = []
    final_activation = []
    for start in range(0, len(filters), BATCH):
        indices = tf.constant(filters[start : start + BATCH], tf.int32)
        coefficients = tf.tile(first, (len(indices), 1, 1, 1, 1))
        initial_activation.append(compiled_measure(coefficients, indices)[1].numpy())
        state = (coefficients, tf.zeros_like(coefficients), tf.zeros_like(coefficients))
        for step in range(steps):
            number = tf.constant(step + 1, tf.float32)
            state = compiled_ascend(
                state, number, tf.constant(shifts[step]), tf.constant(transforms[step]), indices
            )
        batch, activation = compiled_measure(state[0], indices)
        images.append(batch.numpy())
        final_activation.append(activation.numpy())
    return FilterPatterns(
        layer=layer,
        filters=tuple(filters),
        images=np.concatenate(images),
        initial_activation=np.concatenate(initial_activation),
        final_activation=np.concatenate(final_activation),
    )


def _normalize(gradient: tf.Tensor) -> tf.Tensor:
    """Divides the gradient of each image by its root mean square: activations may be of any scale."""
    largest = tf.reduce_max(tf.abs(gradient), axis=(1, 2, 3, 4), keepdims=True)
    scaled = tf.math.divide_no_nan(gradient, largest)  # squares of small numbers would vanish
    root_mean_square = tf.sqrt(tf.reduce_mean(tf.square(scaled), axis=(1, 2, 3, 4), keepdims=True))
    return tf.math.divide_no_nan(scaled, root_mean_square)


def choose_fourier_size(network: Network, layer: str, field: ReceptiveField) -> tuple[int, int]:
    """Chooses the size of a layer's patterns: about four receptive fields, if the layer allows it.

    Small images show the patterns of early layers enlarged, and cost little.
    """
    height, width = network.shape[:2]
    if not network.is_size_independent(layer):
        return height, width
    side = min(max(FIELDS * max(field.size), MIN_SIDE), MAX_SIDE)
    factor = side / max(height, width)
    if factor >= 1:
        return height, width
    return round(height * factor), round(width * factor)


def find_patch(field: ReceptiveField) -> tuple[int, int] | None:
    """Finds the patches that a layer cuts an image into; None if windows overlap, or patches were mixed."""
    if field.is_global or field.size != field.stride or max(field.stride) <= 1:
        return None
    return round(field.stride[0]), round(field.stride[1])


class ImageDecoder:
    """Decodes images from Fourier coefficients in decorrelated colours.

    Args:
        height: Height of the images.
        width: Width of the images.
        colours: Axes of the colours, see `measure_colours`.
    """

    def __init__(self, height: int, width: int, colours: Floats) -> None:
        self._size = (height, width)
        self._scale = tf.constant(compute_scales(height, width), tf.complex64)
        self._colours = tf.constant(colours.T, tf.float32)

    def __call__(self, coefficients: tf.Tensor) -> tf.Tensor:
        """Decodes a batch.

        Args:
            coefficients: float32 `[F, 2, C, H, W // 2 + 1]`, real and imaginary parts.

        Returns:
            Images, float32 `[F, H, W, C]`, from 0 to 255; grey for coefficients of zero.
        """
        spectrum = tf.complex(coefficients[:, 0], coefficients[:, 1]) * self._scale
        axes = tf.transpose(tf.signal.irfft2d(spectrum, self._size), (0, 2, 3, 1))  # [F, H, W, C]
        # Not matmul: its gradient corrupts memory for images of one row (TensorFlow 2.21 with oneDNN).
        return 255 * tf.sigmoid(tf.tensordot(axes, self._colours, axes=1))


def compute_scales(height: int, width: int) -> Floats:
    """Computes the scale of every Fourier coefficient: the inverse of its frequency, as in natural images.

    The spectrum of photos falls with the inverse of the frequency (Field, 1987). The constant part is scaled
    like the lowest frequency. Coefficients of one size give images of one contrast, whatever their size.

    Returns:
        float `[height, width // 2 + 1]`.
    """
    vertical = np.fft.fftfreq(height)[:, None]  # cycles per pixel
    horizontal = np.fft.rfftfreq(width)[None, :]
    frequencies = np.hypot(vertical, horizontal)
    lowest = 1 / max(height, width)
    return np.asarray(math.sqrt(height * width) / 4 / np.maximum(frequencies, lowest))


def measure_colours(pixels: np.ndarray) -> Floats:
    """Measures the axes along which the colours of images vary independently.

    They are the principal components of the pixels: brightness first, then in photos blue to yellow and red
    to green.

    Args:
        pixels: Images, uint8 `[N, H, W, C]`.

    Returns:
        float `[C, C]`, an axis per column, as long as its standard deviation relative to the largest one.
    """
    channels = pixels.shape[-1]
    values = pixels.reshape(-1, channels).astype(np.float64)
    covariance = np.atleast_2d(np.cov(values, rowvar=False)) if len(values) > 1 else np.eye(channels)
    variances, axes = np.linalg.eigh(covariance)
    order = np.argsort(-variances, kind="stable")
    axes = axes[:, order]
    deviations = np.sqrt(np.maximum(variances[order], 0))
    lengths = np.maximum(deviations / (deviations[0] or 1.0), MIN_COLOUR)
    lengths[0] = 1.0
    strongest = np.abs(axes).argmax(axis=0)
    signs = np.sign(axes[strongest, np.arange(channels)])  # an axis points to brighter values
    return np.asarray(axes * signs * lengths)


def draw_shifts(generator: np.random.Generator, steps: int, height: int, width: int) -> NDArray[np.int32]:
    """Draws a shift in whole pixels for every step, down and to the right; int32 `[steps, 2]`.

    What leaves the image on one side enters it on the other: the images are periodic, like all sums of waves.
    """
    reach = np.array([height, width]) * SHIFT
    return np.asarray(generator.uniform(-reach, reach, (steps, 2)).round(), np.int32)


def draw_transforms(
    generator: np.random.Generator, steps: int, height: int, width: int
) -> NDArray[np.float32]:
    """Draws a scale and a rotation for every step, see `build_transform`; float32 `[steps, 8]`."""
    scales = np.exp(generator.uniform(-SCALE, SCALE, steps))
    angles = generator.uniform(-ROTATION, ROTATION, steps)
    transforms = [
        build_transform(scale, angle, height, width) for scale, angle in zip(scales, angles, strict=True)
    ]
    return np.array(transforms, np.float32).reshape(steps, 8)


def build_transform(scale: float, angle: float, height: int, width: int) -> Floats:
    """Builds the map from positions in the result to positions in the image.

    Args:
        scale: Enlargement of the content about the centre.
        angle: Rotation of the content about the centre, counterclockwise, in radians.
        height: Height of the images.
        width: Width of the images.

    Returns:
        float `[8]`: the first two rows of the projective matrix for (x, y, 1), and two zeros.
    """
    cosine = math.cos(angle) / scale
    sine = math.sin(angle) / scale
    x = (width - 1) / 2
    y = (height - 1) / 2
    return np.array([cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y, 0, 0])


def transform_images(images: tf.Tensor, transform: tf.Tensor) -> tf.Tensor:
    """Transforms images bilinearly, mirrored at their edges.

    Args:
        images: float32 `[B, H, W, C]`.
        transform: Map from result to image, see `build_transform`, float32 `[8]`.
    """
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transform[None],
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
