"""RandAugment: two random changes of geometry or colour, as timm trains ImageNet with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import Fact, GeometricAugmentation, ImageShape, PixelAugmentation, RandomNumbers
from pipelines.augment.colour import LUMA
from pipelines.augment.geometry import IDENTITY, Transform, compose
from pipelines.augment.philox import Floats
from pipelines.settings import Spec

LAYERS = 2  # changes per image, drawn independently
PROBABILITY = 0.5  # that one of them is made
LARGEST = 10.0  # magnitude

# The operations, in the order of their numbers. `equalize` of the original is left out: it needs a histogram
# of every image, which is a scatter on the device.
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOURS = (
    "autocontrast",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
)
OPERATIONS = (*GEOMETRY, *COLOURS)

ROTATION = 30.0  # degrees at magnitude 10
SHEAR = 0.3
TRANSLATION = 0.45  # of the side
ENHANCEMENT = 0.9  # largest distance of a factor from 1
SMALLEST_FACTOR = 0.1
POSTERIZED_BITS = 4
SOLARIZED_BELOW = 128
SOLARIZED_BY = 110


class Changes(NamedTuple):
    """What is drawn for n images: the changes of each layer, `[LAYERS, n]`.

    Attributes:
        operation: Index into `OPERATIONS`; -1 for no change.
        strength: Share of the largest magnitude, 0 to 1.
        sign: 1 or -1, for the changes that go either way.
    """

    operation: NDArray[np.int64]
    strength: Floats
    sign: Floats


# Numbers of each layer. Geometry and colour read the same ones, so that they agree on what is done.
STREAMS = {
    f"{name}{layer}": 26 + 5 * layer + index
    for layer in range(LAYERS)
    for index, name in enumerate(("is_made", "operation", "radius", "angle", "sign"))
}


def draw_changes(numbers: RandomNumbers, settings: Any) -> Changes:
    """Draws two changes for each image, with replacement (Cubuk et al., "RandAugment", 2020).

    The magnitude is normal and limited to 0 to 10, which timm calls `mstd`.

    Args:
        numbers: Random numbers of the images.
        settings: Mean and deviation of the magnitude.
    """
    operations = []
    strengths = []
    signs = []
    for layer in range(LAYERS):
        is_made = numbers.is_active & (numbers.uniform(f"is_made{layer}") < PROBABILITY)
        operation = np.floor(numbers.uniform(f"operation{layer}") * len(OPERATIONS)).astype(np.int64)
        # Box and Muller's transform of two uniform numbers; 1 - u is never 0.
        radius = np.sqrt(-2.0 * np.log(1.0 - numbers.uniform(f"radius{layer}")))
        normal = radius * np.cos(2.0 * np.pi * numbers.uniform(f"angle{layer}"))
        magnitude = np.clip(settings.randaugment + settings.randaugment_std * normal, 0.0, LARGEST)
        operations.append(np.where(is_made, operation, -1))
        strengths.append(magnitude / LARGEST)
        signs.append(np.where(numbers.uniform(f"sign{layer}") < 0.5, -1.0, 1.0))
    return Changes(np.array(operations), np.array(strengths), np.array(signs))


class RandAugmentGeometry(GeometricAugmentation):
    """Rotates, shears or translates an image in the warp, where RandAugment draws it. Drawn: `Changes`."""

    class Settings(Spec):
        """Magnitude of the changes."""

        randaugment: Annotated[
            float | None,
            Field(
                ge=0.0,
                le=LARGEST,
                strict=True,
                description="Mean magnitude, 0 to 10, of two random changes, each made with a probability "
                "of 0.5 (RandAugment: rotation, shear, translation, autocontrast, invert, posterize, "
                "solarize, colour, contrast, brightness, sharpness); None for none.",
            ),
        ] = None
        randaugment_std: Annotated[
            float,
            Field(
                ge=0.0,
                strict=True,
                description="Standard deviation of the magnitude, which is normal and limited to 0 to 10.",
            ),
        ] = 0.5

    name = "randaugment geometry"
    streams: ClassVar = STREAMS
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.randaugment is not None

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Changes:
        return draw_changes(numbers, self.settings)

    @override
    def transform(self, values: Changes, image: ImageShape) -> Transform:
        amount = values.strength * values.sign
        total = IDENTITY
        for layer in range(LAYERS):
            total = compose(total, _build_transform(values.operation[layer], amount[layer], image.aspect))
        return total

    @override
    def describe(self, values: Changes, index: int) -> Fact:
        layers = [_describe_layer(values, layer, index) for layer in range(LAYERS)]
        return Fact("randaugment", ", ".join(layers))


class RandAugmentColour(PixelAugmentation):
    """Changes the colours of an image, where RandAugment draws it; the two changes in their order.

    Geometry precedes colour, also where the original changes colours first: they commute, except for the
    pixels beyond the edge. Values are not rounded in between.

    Drawn: number of the operation in `COLOURS`, or -1, and its argument, for each layer, `[n, LAYERS, 2]`.
    """

    class Settings(RandAugmentGeometry.Settings):
        """The same settings."""

    name = "randaugment"
    streams: ClassVar = STREAMS
    shape = (LAYERS, 2)
    is_compiled = True
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.randaugment is not None

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> NDArray[np.float32]:
        return build_parameters(draw_changes(numbers, self.settings))

    @override
    def apply(self, images: Any, parameters: Any) -> Any:
        for layer in range(LAYERS):
            images = _apply_layer(images, parameters[:, layer, 0], parameters[:, layer, 1])
        return images

    @override
    def describe(self, values: NDArray[np.float32], index: int) -> None:
        return None  # described with the geometry


def build_parameters(changes: Changes) -> NDArray[np.float32]:
    """Builds what `RandAugmentColour` draws, float32 `[n, LAYERS, 2]`."""
    colour = np.maximum(changes.operation - len(GEOMETRY), -1)
    argument = _compute_arguments(colour, changes)
    return np.stack([colour, argument], axis=-1).swapaxes(0, 1).astype(np.float32)


def _describe_layer(values: Changes, layer: int, index: int) -> str:
    operation = int(values.operation[layer, index])
    if operation < 0:
        return "no"
    return f"{OPERATIONS[operation]} {LARGEST * values.strength[layer, index]:.1f}"


def _build_transform(operation: NDArray[np.int64], amount: Floats, aspect: float) -> Transform:
    """Builds the maps of one layer, about the center and in units of the height.

    Shears keep the upper left corner in its place, as those of Pillow do.

    Args:
        operation: Index into `OPERATIONS`, `[n]`.
        amount: Strength with its sign, -1 to 1, `[n]`.
        aspect: Width over height.
    """
    angle, shear_x, shear_y, shift_x, shift_y = (
        np.where(operation == index, amount * largest, 0.0)
        for index, largest in enumerate((np.deg2rad(ROTATION), SHEAR, SHEAR, TRANSLATION, TRANSLATION))
    )
    cos = np.cos(angle)
    sin = np.sin(angle)
    # At most one of the amounts is not 0, so that the map is that of one operation.
    return Transform(
        a=cos,
        b=shear_x - sin,
        c=0.5 * shear_x + shift_x * aspect,
        d=shear_y + sin,
        e=cos,
        f=0.5 * shear_y * aspect + shift_y,
    )


def _compute_arguments(colour: NDArray[np.int64], changes: Changes) -> Floats:
    """Computes the argument of each operation, `[LAYERS, n]`; 1 for those without."""
    factor = np.maximum(SMALLEST_FACTOR, 1.0 + changes.sign * ENHANCEMENT * changes.strength)
    arguments = {
        "posterize": 2.0 ** (8 - POSTERIZED_BITS + np.floor(POSTERIZED_BITS * changes.strength)),
        "solarize": 256.0 - np.floor(256.0 * changes.strength),
        "solarize_add": np.floor(SOLARIZED_BY * changes.strength),
    }
    arguments |= dict.fromkeys(("colour", "contrast", "brightness", "sharpness"), factor)
    result = np.ones_like(changes.strength)
    for name, argument in arguments.items():
        result = np.where(colour == COLOURS.index(name), argument, result)
    return result


def _apply_layer(images: Any, operation: Any, argument: Any) -> Any:
    """Changes every image by its own operation.

    All operations are computed for all images, and one result is selected: XLA makes one loop of them, and no
    image waits for another.

    Args:
        images: float32 `[B, H, W, C]`, 0 to 255.
        operation: Index into `COLOURS`, float32 `[B]`; -1 for no change.
        argument: Argument of the operation, float32 `[B]`.
    """
    import tensorflow as tf

    operation = operation[:, None, None, None]  # [B, 1, 1, 1]
    argument = argument[:, None, None, None]
    result = images
    for index, name in enumerate(COLOURS):
        changed = _CHANGES[name](images, argument)
        result = tf.where(operation == index, changed, result)
    return result


def _stretch_contrast(images: Any, argument: Any) -> Any:
    """Stretches the values of every channel to 0 to 255, unless they are all the same."""
    import tensorflow as tf

    lowest = tf.reduce_min(images, axis=(1, 2), keepdims=True)
    width = tf.reduce_max(images, axis=(1, 2), keepdims=True) - lowest
    return tf.where(width > 0, (images - lowest) * (255.0 / tf.where(width > 0, width, 1.0)), images)


def _posterize(images: Any, step: Any) -> Any:
    """Rounds values down to multiples of a step."""
    import tensorflow as tf

    return tf.floor(images / step) * step


def _solarize(images: Any, threshold: Any) -> Any:
    """Inverts values from a threshold on."""
    import tensorflow as tf

    return tf.where(images < threshold, images, 255.0 - images)


def _solarize_add(images: Any, amount: Any) -> Any:
    """Adds an amount to dark values."""
    import tensorflow as tf

    return tf.where(images < SOLARIZED_BELOW, tf.minimum(images + amount, 255.0), images)


def _enhance(degenerate: Callable[[Any], Any], images: Any, factor: Any) -> Any:
    """Moves images away from (above 1) or towards (below 1) a version that lacks something."""
    import tensorflow as tf

    base = degenerate(images)
    return tf.clip_by_value(base + factor * (images - base), 0.0, 255.0)


def _remove_colour(images: Any) -> Any:
    """Returns the grey values, `[B, H, W, 1]`."""
    import tensorflow as tf

    if images.shape[-1] == 1:
        return images
    return tf.reduce_sum(images * tf.constant(LUMA, images.dtype), axis=-1, keepdims=True)


def _remove_contrast(images: Any) -> Any:
    """Returns the mean grey value of each image, `[B, 1, 1, 1]`."""
    import tensorflow as tf

    return tf.reduce_mean(_remove_colour(images), axis=(1, 2), keepdims=True)


def _remove_light(images: Any) -> Any:
    """Returns black, `[1]`."""
    import tensorflow as tf

    return tf.zeros([1], images.dtype)


def _remove_detail(images: Any) -> Any:
    """Smooths images by a 3x3 kernel whose center counts five times; pixels at the edge stay unchanged."""
    import tensorflow as tf

    height, width = images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    total = 4.0 * images
    for y in range(3):
        for x in range(3):
            total += padded[:, y : y + height, x : x + width]
    rows = tf.range(height)[:, None, None]
    columns = tf.range(width)[None, :, None]
    is_inside = (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)  # [H, W, 1]
    return tf.where(is_inside, total / 13.0, images)


_CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "autocontrast": _stretch_contrast,
    "invert": lambda images, _: 255.0 - images,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": partial(_enhance, _remove_colour),
    "contrast": partial(_enhance, _remove_contrast),
    "brightness": partial(_enhance, _remove_light),
    "sharpness": partial(_enhance, _remove_detail),
}
