"""Draws the pictures of the synthetic source: things lying on a textured ground, photographed from above.

Pixels are the same on every machine: random numbers come from the raw stream of a counter-based generator, and only
operations that IEEE 754 rounds exactly are used (+ - * / sqrt: no sine, no power, no sum over an array, no matrix
product).
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

VERSION = 1  # of the generator: raise it whenever the pixels of any picture change
PATTERNS = ("striped", "checkered")

Plane = NDArray[np.floating[Any]]  # float32


class Draws:
    """Uniform random numbers: the same for the same key on every machine and with every version of NumPy.

    Args:
        key: Numbers and words; every different key starts another stream.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256(repr((VERSION, *key)).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "big"))

    def plane(self, height: int, width: int) -> Plane:
        """Float32 `[height, width]` in (-1, 1)."""
        raw = np.asarray(self._bits.random_raw(height * width)) >> np.uint64(41)
        return ((raw.astype(np.float32) + 0.5) * 2.0**-22 - 1.0).reshape(height, width)

    def between(self, low: float, high: float) -> float:
        """One number from `low` to `high`."""
        return low + (high - low) * int(self._bits.random_raw() >> 11) * 2.0**-53

    def direction(self, length: int) -> list[float]:
        """A vector of length 1."""
        vector = [self.between(-1.0, 1.0) or 1.0 for _ in range(length)]
        norm = math.sqrt(math.fsum(value * value for value in vector))
        return [value / norm for value in vector]

    def colour(self, dark: float, bright: float, saturation: float) -> list[float]:
        """RGB in [0, 1] around a grey between `dark` and `bright`."""
        grey = self.between(dark, bright)
        return [min(max(grey + saturation * self.between(-1.0, 1.0), 0.02), 0.98) for _ in range(3)]


class Light(NamedTuple):
    """Where the light of a picture comes from: a direction in its plane, and how dark its shadows are (0 to 1)."""

    y: float
    x: float
    hardness: float


def _centres(size: int) -> Plane:
    """Pixel centres `[size]` in (0, 1)."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


@lru_cache(maxsize=64)
def _interpolation(size: int, cells: int) -> tuple[NDArray[np.int64], Plane]:
    """Left neighbours `[size]` and smooth weights `[size]` that stretch `cells + 1` values over `size` pixels."""
    position = _centres(size) * cells
    left = position.astype(np.int64)
    weight = position - left.astype(np.float32)
    return left, weight * weight * (3.0 - 2.0 * weight)


def _noise(draws: Draws, size: int, rows: int, columns: int) -> Plane:
    """Smooth noise `[size, size]` in (-1, 1) of so many cells down and across."""
    values = draws.plane(rows + 1, columns + 1)
    top, down = _interpolation(size, rows)
    values = values[top] + (values[top + 1] - values[top]) * down[:, None]
    left, right = _interpolation(size, columns)
    return values[:, left] + (values[:, left + 1] - values[:, left]) * right


def _ground(draws: Draws, size: int) -> Plane:
    """The ground `[3, size, size]` in about [0, 1]: two colours, and noise whose amplitude falls with its frequency."""
    stretch, fall, contrast = draws.between(0.5, 2.0), draws.between(0.5, 0.8), draws.between(0.05, 0.12)
    texture, amplitude, cells = np.zeros((size, size), np.float32), contrast, 3
    while cells <= 96:  # a fixed number of octaves: every size shows the same ground
        texture += _noise(draws, size, max(int(cells * stretch), 1), max(int(cells / stretch), 1)) * amplitude
        amplitude, cells = amplitude * fall, cells * 2
    tint = 0.5 + 0.5 * _noise(draws, size, 3, 3)
    red, green, blue = draws.colour(0.35, 0.7, 0.1)
    base = [red + 0.04, green, blue - 0.06]  # sand, wood and stone rather than plastic
    other = [value + draws.between(-0.12, 0.12) for value in base]
    return np.stack([a + (b - a) * tint + texture for a, b in zip(base, other, strict=True)])


def _span(size: int, centre: float, reach: float) -> tuple[slice, Plane]:
    """The pixels along one side whose distance to `centre` is at most `reach`, and their offsets from it."""
    span = slice(max(math.floor((centre - reach) * size), 0), max(math.ceil((centre + reach) * size), 0))
    return span, _centres(size)[span] - centre


def _blend(picture: Plane, cover: Plane, colours: list[Plane]) -> None:
    """Lays three colour planes over `picture [3, h, w]` in place, as far as `cover [h, w]` (0 to 1) says."""
    for plane, colour in zip(picture, colours, strict=True):
        plane += cover * (colour - plane)


def _cover(distance: Plane, softness: float) -> Plane:
    """1 well inside (negative distance), 0 well outside, and a ramp of width `softness` between."""
    cover: Plane = np.clip(0.5 - distance / softness, 0.0, 1.0)
    return cover


def _block(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u) - 0.9, np.abs(v) - 0.6)


def _stick(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u) - 1.7, np.abs(v) - 0.16)


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.22


def _stone(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v * 1.4) - 1.0


Shape = Callable[[Plane, Plane], Plane]
SHAPES: tuple[Shape, ...] = (_block, _stick, _ring, _stone)


def _distractor(draws: Draws, picture: Plane, light: Light, shape: Shape, speckles: Plane | None) -> None:
    """Paints one thing of a random colour with its shadow, anywhere in `picture [3, size, size]`, in place."""
    size = picture.shape[-1]
    radius, (sine, cosine) = draws.between(0.07, 0.14), draws.direction(2)
    rows, down = _span(size, draws.between(0.05, 0.95), 2.4 * radius)
    columns, right = _span(size, draws.between(0.05, 0.95), 2.4 * radius)
    part, down, right = picture[:, rows, columns], down[:, None] / radius, right / radius

    def distance(shift: float) -> Plane:
        y, x = down + shift * light.y, right + shift * light.x
        return shape(cosine * x + sine * y, cosine * y - sine * x)

    part *= 1.0 - light.hardness * _cover(distance(0.3), 0.7)
    shade = 0.9 + 0.25 * (light.y * down + light.x * right)
    if speckles is not None:
        shade = shade + speckles[rows, columns]
    blur = (
        max(draws.between(0.01, 0.02), 1.0 / size) / radius
    )  # a little out of focus; never sharper than a pixel
    _blend(part, _cover(distance(0.0), blur), [value * shade for value in draws.colour(0.2, 0.8, 0.4)])


def _wave(position: Plane, sharpness: float) -> Plane:
    """A soft square wave in [-1, 1] of period 2."""
    triangle = 2.0 * np.abs(position - 2.0 * np.floor(0.5 * position + 0.5)) - 1.0
    wave: Plane = np.clip(triangle * sharpness, -1.0, 1.0)
    return wave


def _pattern(label: int, u: Plane, v: Plane, bands: float, sharpness: float) -> Plane:
    """The ball's pattern over its surface coordinates `u`, `v` in radii: -1 for one colour, 1 for the other."""
    if PATTERNS[label] == "striped":
        return _wave(u * bands * math.sqrt(2.0), sharpness)  # a chequer's fundamental lies on its diagonal
    return _wave(u * bands, sharpness) * _wave(v * bands, sharpness)


class Ball(NamedTuple):
    """The object that decides the class, all but its pattern. Lengths are fractions of the picture's side.

    Attributes:
        y: Centre, from the top.
        x: Centre, from the left.
        radius: Half of its height and width.
        axes: Two perpendicular directions `(x, y, z)` along which the pattern runs.
        bands: Cells of the chequer along one radius.
        phases: Where the pattern starts along either axis.
        colours: The two colours of the pattern.
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
        return self.y - self.radius, self.x - self.radius, self.y + self.radius, self.x + self.radius


def _draw_ball(draws: Draws) -> Ball:
    radius = draws.between(0.17, 0.26)
    y, x = draws.between(radius, 1.0 - radius), draws.between(radius, 1.0 - radius)
    (sine, cosine), up, tilt = draws.direction(2), draws.between(-0.5, 0.5), draws.between(-0.5, 0.5)
    flat, level = math.sqrt(1.0 - up * up), math.sqrt(1.0 - tilt * tilt)
    first = [
        cosine * flat,
        sine * flat,
        up,
    ]  # neither axis points at the camera, where both patterns would be rings
    second = [-level * sine - tilt * cosine * up, level * cosine - tilt * sine * up, tilt * flat]
    dark, bright = draws.colour(0.1, 0.35, 0.25), draws.colour(0.65, 0.9, 0.25)
    colours = (dark, bright) if draws.between(0.0, 1.0) < 0.5 else (bright, dark)
    phases = draws.between(0.0, 2.0), draws.between(0.0, 2.0)
    return Ball(y, x, radius, (first, second), draws.between(1.6, 2.2), phases, colours)


def _paint_ball(picture: Plane, ball: Ball, light: Light, label: int) -> None:
    """Paints the ball over `picture [3, size, size]` in place; only pixels whose centre lies in its box change."""
    pixels = ball.radius * picture.shape[-1]
    rows, down = _span(picture.shape[-1], ball.y, ball.radius)
    columns, right = _span(picture.shape[-1], ball.x, ball.radius)
    down, right = down[:, None] / ball.radius, right / ball.radius
    square = right * right + down * down
    up = np.sqrt(np.maximum(1.0 - square, 0.0))
    u, v = (
        right * a + down * b + up * c + phase / ball.bands
        for (a, b, c), phase in zip(ball.axes, ball.phases, strict=True)
    )
    weight = 0.5 + 0.5 * _pattern(label, u, v, ball.bands, pixels / (1.5 * ball.bands))
    lit = np.maximum(0.6 * (right * light.x + down * light.y) + 0.8 * up, 0.0)
    gleam = lit * lit * lit * lit
    gleam = 0.8 * light.hardness * gleam * gleam * gleam * gleam
    shade = 0.45 + 0.65 * lit
    colours = [(a + (b - a) * weight) * shade + gleam for a, b in zip(*ball.colours, strict=True)]
    _blend(picture[:, rows, columns], np.clip((1.0 - np.sqrt(square)) * pixels, 0.0, 1.0), colours)


def _shadow(picture: Plane, ball: Ball, light: Light) -> None:
    """Darkens `picture [3, size, size]` in place on the side of the ball that lies away from the light."""
    down = (_centres(picture.shape[-1])[:, None] - ball.y) / ball.radius + 0.35 * light.y
    right = (_centres(picture.shape[-1]) - ball.x) / ball.radius + 0.35 * light.x
    picture *= 1.0 - light.hardness * _cover(np.sqrt(down * down + right * right) - 1.0, 0.7)


def render(key: tuple[int, str, int], size: int, label: int | None) -> tuple[NDArray[np.uint8], Box]:
    """Makes one picture.

    Args:
        key: Seed, split and index: everything but the pattern follows from these.
        size: Height and width in pixels.
        label: 0 for stripes, 1 for checks, None to leave the ball out (its shadow stays).

    Returns:
        uint8 `[size, size, 3]`, and the box of the ball.
    """
    draws = Draws(*key)
    y, x = draws.direction(2)
    light = Light(y, x, draws.between(0.2, 0.55))
    ball, picture = _draw_ball(draws), _ground(draws, size)
    for _ in range(int(draws.between(3.0, 7.0))):
        _distractor(draws, picture, light, SHAPES[int(draws.between(0.0, len(SHAPES)))], None)
    speckles = draws.between(0.5, 0.7) * np.clip(3.0 * _noise(draws, size, 37, 37), -1.0, 1.0)
    _distractor(draws, picture, light, _stone, speckles)
    _shadow(picture, ball, light)
    if label is not None:
        _paint_ball(picture, ball, light, label)
    down, right = _centres(size)[:, None] - 0.5, _centres(size) - 0.5
    picture *= 1.0 + draws.between(0.1, 0.4) * (
        light.y * down + light.x * right
    )  # brighter towards the light
    grain = draws.between(0.01, 0.03) * (draws.plane(size, size) + draws.plane(size, size))
    pixels = np.clip((picture + grain) * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), ball.box
