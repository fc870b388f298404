"""Renders the pictures of the synthetic source: objects on a textured ground, seen from above.

Pixels are the same on every machine. Random numbers come from the raw stream of a counter-based generator.
Only operations that IEEE 754 rounds exactly are used (+ - * / sqrt), so there are no sines, powers, sums over
arrays or matrix products.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.records import Box

VERSION = 1  # of the generator; increment it whenever the pixels of any picture change
PATTERNS = ("striped", "checkered")

Plane = NDArray[np.floating[Any]]  # float32


class Draws:
    """Uniform random numbers: equal for equal keys on every machine and with every version of NumPy.

    Args:
        key: Numbers and strings; every different key starts another stream.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256(repr((VERSION, *key)).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "big"))

    def plane(self, height: int, width: int) -> Plane:
        """Draws float32 `[height, width]` in (-1, 1)."""
        raw = np.asarray(self._bits.random_raw(height * width)) >> np.uint64(41)
        return ((raw.astype(np.float32) + 0.5) * 2.0**-22 - 1.0).reshape(height, width)

    def between(self, low: float, high: float) -> float:
        """Draws one number from `low` to `high`."""
        return low + (high - low) * int(self._bits.random_raw() >> 11) * 2.0**-53

    def direction(self, length: int) -> list[float]:
        """Draws a unit vector of `length` components."""
        vector = [self.between(-1.0, 1.0) or 1.0 for _ in range(length)]
        norm = math.sqrt(math.fsum(value * value for value in vector))
        return [value / norm for value in vector]

    def colour(self, dark: float, bright: float, saturation: float) -> list[float]:
        """Draws an RGB colour in [0, 1] around a grey between `dark` and `bright`."""
        grey = self.between(dark, bright)
        return [min(max(grey + saturation * self.between(-1.0, 1.0), 0.02), 0.98) for _ in range(3)]


class Light(NamedTuple):
    """The light of a picture.

    Attributes:
        y: Component of its direction in the plane of the picture, downwards.
        x: Component of its direction in the plane of the picture, to the right.
        hardness: Darkness of the shadows, 0 to 1.
    """

    y: float
    x: float
    hardness: float


def _compute_centres(size: int) -> Plane:
    """Computes the pixel centres `[size]` in (0, 1)."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


@lru_cache(maxsize=64)
def _compute_interpolation(size: int, cells: int) -> tuple[NDArray[np.int64], Plane]:
    """Computes left neighbours and weights, both `[size]`, that stretch `cells + 1` values over `size`."""
    position = _compute_centres(size) * cells
    left = position.astype(np.int64)
    weight = position - left.astype(np.float32)
    return left, weight * weight * (3.0 - 2.0 * weight)


def _draw_noise(draws: Draws, size: int, rows: int, columns: int) -> Plane:
    """Draws smooth noise `[size, size]` in (-1, 1) with a number of cells per direction."""
    values = draws.plane(rows + 1, columns + 1)
    top, down = _compute_interpolation(size, rows)
    values = values[top] + (values[top + 1] - values[top]) * down[:, None]
    left, right = _compute_interpolation(size, columns)
    return values[:, left] + (values[:, left + 1] - values[:, left]) * right


def _draw_ground(draws: Draws, size: int) -> Plane:
    """Draws the ground `[3, size, size]` in about [0, 1]: a blend of two colours, and noise in octaves."""
    stretch = draws.between(0.5, 2.0)
    decay = draws.between(0.5, 0.8)
    amplitude = draws.between(0.05, 0.12)
    texture = np.zeros((size, size), np.float32)
    cells = 3
    while cells <= 96:  # a fixed number of octaves: every size shows the same ground
        rows = max(int(cells * stretch), 1)
        columns = max(int(cells / stretch), 1)
        texture += _draw_noise(draws, size, rows, columns) * amplitude
        amplitude *= decay
        cells *= 2
    blend = 0.5 + 0.5 * _draw_noise(draws, size, 3, 3)
    red, green, blue = draws.colour(0.35, 0.7, 0.1)
    base = [red + 0.04, green, blue - 0.06]  # sand, wood and stone rather than plastic
    other = [value + draws.between(-0.12, 0.12) for value in base]
    return np.stack([a + (b - a) * blend + texture for a, b in zip(base, other, strict=True)])


def _find_span(size: int, centre: float, reach: float) -> tuple[slice, Plane]:
    """Finds the pixels along one side whose distance to `centre` is at most `reach`, and their distances."""
    span = slice(max(math.floor((centre - reach) * size), 0), max(math.ceil((centre + reach) * size), 0))
    return span, _compute_centres(size)[span] - centre


def _blend(picture: Plane, cover: Plane, colours: list[Plane]) -> None:
    """Blends three colour planes into `picture [3, h, w]` with the opacity `cover [h, w]` (0 to 1)."""
    for plane, colour in zip(picture, colours, strict=True):
        plane += cover * (colour - plane)


def _compute_cover(distance: Plane, softness: float) -> Plane:
    """Computes the opacity: 1 inside, 0 outside, and a ramp of width `softness` between."""
    cover: Plane = np.clip(0.5 - distance / softness, 0.0, 1.0)
    return cover


# Signed distances to the outlines of shapes, negative inside, at coordinates in radii.


def _measure_block(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u) - 0.9, np.abs(v) - 0.6)


def _measure_stick(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u) - 1.7, np.abs(v) - 0.16)


def _measure_ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.22


def _measure_stone(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v * 1.4) - 1.0


Shape = Callable[[Plane, Plane], Plane]
SHAPES: tuple[Shape, ...] = (_measure_block, _measure_stick, _measure_ring, _measure_stone)


def _paint_distractor(
    draws: Draws, picture: Plane, light: Light, shape: Shape, speckles: Plane | None
) -> None:
    """Paints an object of a random colour and its shadow at a random place of `picture [3, size, size]`."""
    size = picture.shape[-1]
    radius = draws.between(0.07, 0.14)
    sine, cosine = draws.direction(2)
    rows, down = _find_span(size, draws.between(0.05, 0.95), 2.4 * radius)
    columns, right = _find_span(size, draws.between(0.05, 0.95), 2.4 * radius)
    part = picture[:, rows, columns]
    down = down[:, None] / radius
    right = right / radius

    def compute_distance(shift: float) -> Plane:
        y = down + shift * light.y
        x = right + shift * light.x
        return shape(cosine * x + sine * y, cosine * y - sine * x)

    part *= 1.0 - light.hardness * _compute_cover(compute_distance(0.3), 0.7)
    shade = 0.9 + 0.25 * (light.y * down + light.x * right)
    if speckles is not None:
        shade = shade + speckles[rows, columns]
    # A little out of focus, but never sharper than a pixel.
    blur = max(draws.between(0.01, 0.02), 1.0 / size) / radius
    colours: list[Plane] = [value * shade for value in draws.colour(0.2, 0.8, 0.4)]
    _blend(part, _compute_cover(compute_distance(0.0), blur), colours)


def _compute_wave(position: Plane, sharpness: float) -> Plane:
    """Computes a soft square wave in [-1, 1] of period 2."""
    triangle = 2.0 * np.abs(position - 2.0 * np.floor(0.5 * position + 0.5)) - 1.0
    wave: Plane = np.clip(triangle * sharpness, -1.0, 1.0)
    return wave


def _compute_pattern(label: int, u: Plane, v: Plane, bands: float, sharpness: float) -> Plane:
    """Computes the ball's pattern at surface coordinates in radii: -1 for one colour, 1 for the other."""
    if PATTERNS[label] == "striped":
        # the fundamental frequency of a checkered pattern, which lies on its diagonal
        return _compute_wave(u * bands * math.sqrt(2.0), sharpness)
    return _compute_wave(u * bands, sharpness) * _compute_wave(v * bands, sharpness)


class Ball(NamedTuple):
    """The object that decides the class, without its pattern. Lengths are fractions of the picture's side.

    Attributes:
        y: Distance of the centre from the top.
        x: Distance of the centre from the left.
        radius: Half of the ball's height and width.
        axes: Two perpendicular directions `(x, y, z)` along which the pattern runs.
        bands: Number of cells of the checkered pattern along one radius.
        phases: Offset of the pattern along either axis.
        colours: Both colours of the pattern.
    """

    y: float
    x: float
    radius: float
    axes: tuple[list[float], list[float]]
    bands: float
    phases: tuple[float, float]
    colours: tuple[list[float], list[float]]

    @property
    def box(self) -> Box:
        """The square around the ball, `(ymin, xmin, ymax, xmax)` in [0, 1]."""
        top = self.y - self.radius
        left = self.x - self.radius
        return top, left, self.y + self.radius, self.x + self.radius


def _draw_ball(draws: Draws) -> Ball:
    """Draws the position, size, rotation and colours of the ball."""
    radius = draws.between(0.17, 0.26)
    y = draws.between(radius, 1.0 - radius)
    x = draws.between(radius, 1.0 - radius)
    sine, cosine = draws.direction(2)
    up = draws.between(-0.5, 0.5)
    tilt = draws.between(-0.5, 0.5)
    flat = math.sqrt(1.0 - up * up)
    level = math.sqrt(1.0 - tilt * tilt)
    # Neither axis points at the camera, because both patterns would then be rings.
    first_axis = [cosine * flat, sine * flat, up]
    second_axis = [-level * sine - tilt * cosine * up, level * cosine - tilt * sine * up, tilt * flat]
    dark = draws.colour(0.1, 0.35, 0.25)
    bright = draws.colour(0.65, 0.9, 0.25)
    colours = (dark, bright) if draws.between(0.0, 1.0) < 0.5 else (bright, dark)
    first_phase = draws.between(0.0, 2.0)
    second_phase = draws.between(0.0, 2.0)
    bands = draws.between(1.6, 2.2)
    return Ball(y, x, radius, (first_axis, second_axis), bands, (first_phase, second_phase), colours)


def _paint_ball(picture: Plane, ball: Ball, light: Light, label: int) -> None:
    """Paints the ball over `picture [3, size, size]`; only pixels whose centre is in its box change."""
    size = picture.shape[-1]
    radius_pixels = ball.radius * size
    rows, down = _find_span(size, ball.y, ball.radius)
    columns, right = _find_span(size, ball.x, ball.radius)
    down = down[:, None] / ball.radius
    right = right / ball.radius
    squared_distance = right * right + down * down
    up = np.sqrt(np.maximum(1.0 - squared_distance, 0.0))
    u, v = (
        right * a + down * b + up * c + phase / ball.bands
        for (a, b, c), phase in zip(ball.axes, ball.phases, strict=True)
    )
    sharpness = radius_pixels / (1.5 * ball.bands)
    weight = 0.5 + 0.5 * _compute_pattern(label, u, v, ball.bands, sharpness)
    lit = np.maximum(0.6 * (right * light.x + down * light.y) + 0.8 * up, 0.0)
    gleam = lit * lit * lit * lit
    gleam = 0.8 * light.hardness * gleam * gleam * gleam * gleam
    shade = 0.45 + 0.65 * lit
    colours = [(a + (b - a) * weight) * shade + gleam for a, b in zip(*ball.colours, strict=True)]
    cover = np.clip((1.0 - np.sqrt(squared_distance)) * radius_pixels, 0.0, 1.0)
    _blend(picture[:, rows, columns], cover, colours)


def _paint_shadow(picture: Plane, ball: Ball, light: Light) -> None:
    """Darkens `picture [3, size, size]` in place on the side of the ball away from the light."""
    down = (_compute_centres(picture.shape[-1])[:, None] - ball.y) / ball.radius + 0.35 * light.y
    right = (_compute_centres(picture.shape[-1]) - ball.x) / ball.radius + 0.35 * light.x
    picture *= 1.0 - light.hardness * _compute_cover(np.sqrt(down * down + right * right) - 1.0, 0.7)


def render(key: tuple[int, str, int], size: int, label: int | None) -> tuple[NDArray[np.uint8], Box]:
    """Renders one picture.

    Args:
        key: Seed, split and index, which determine everything except the pattern.
        size: Height and width in pixels.
        label: 0 for striped, 1 for checkered, None to leave the ball out (but not its shadow).

    Returns:
        uint8 `[size, size, 3]`, and the bounding box of the ball.
    """
    draws = Draws(*key)
    y, x = draws.direction(2)
    light = Light(y, x, draws.between(0.2, 0.55))
    ball = _draw_ball(draws)
    picture = _draw_ground(draws, size)
    for _ in range(int(draws.between(3.0, 7.0))):
        shape = SHAPES[int(draws.between(0.0, len(SHAPES)))]
        _paint_distractor(draws, picture, light, shape, speckles=None)
    contrast = draws.between(0.5, 0.7)
    speckles = contrast * np.clip(3.0 * _draw_noise(draws, size, 37, 37), -1.0, 1.0)
    _paint_distractor(draws, picture, light, _measure_stone, speckles)
    _paint_shadow(picture, ball, light)
    if label is not None:
        _paint_ball(picture, ball, light, label)
    down = _compute_centres(size)[:, None] - 0.5
    right = _compute_centres(size) - 0.5
    # brighter towards the light
    picture *= 1.0 + draws.between(0.1, 0.4) * (light.y * down + light.x * right)
    grain = draws.between(0.01, 0.03) * (draws.plane(size, size) + draws.plane(size, size))
    pixels = np.clip((picture + grain) * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), ball.box
