"""Pictures generated from a seed, in which one known object decides the class.

Every picture shows a ball among other objects, and only its pattern, striped or checkered, determines the
class. Its bounding box is the example's `bbox`. Everything else (ground, light, other objects; position,
size, rotation, colours and contrast of the ball) is drawn independently of the class, and both patterns
have the same mean colour and the same spatial frequency. One of the other objects is a speckled stone,
which misleads a model that responds to hard edges only.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import ConfigError, suggest
from pipelines.records import Example
from pipelines.sources.base import SOURCES
from pipelines.sources.scene import PATTERNS, VERSION, render
from pipelines.storage import hash_json

DEFAULTS = {"train": 1600, "validation": 400, "seed": 0, "size": 96}
LIMITS = {"train": (2, 1_000_000), "validation": (0, 1_000_000), "seed": (0, 2**63 - 1), "size": (32, 1024)}


@SOURCES.register("synthetic")
class SyntheticSource:
    """Striped and checkered balls: `synthetic:evidence`, optionally followed by `,OPTION=VALUE`.

    The options and their defaults are `train=1600` and `validation=400` (number of pictures), `seed=0`, and
    `size=96` (height and width in pixels).

    Args:
        argument: `evidence`, then options in any order, separated by commas.

    Raises:
        ConfigError: The kind of picture or an option is unknown, or a value is out of range.
    """

    def __init__(self, argument: str) -> None:
        self.name = f"synthetic:{argument}"
        self.classes: tuple[str, ...] = PATTERNS
        kind, *options = argument.split(",")
        if kind != "evidence":
            raise ConfigError(
                "a known kind of synthetic picture", f"source={self.name}", "write synthetic:evidence"
            )
        self.options = _parse(options)

    def counts(self) -> Mapping[str, int]:
        """Returns the number of pictures per split, without `validation` if its option is 0."""
        return {split: self.options[split] for split in ("train", "validation") if self.options[split]}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example]:
        """Yields pictures `start` to `stop` as JPEG. The classes alternate."""
        size = self.options["size"]
        for index in range(start, min(stop, self.counts()[split])):
            label = index % 2
            pixels, box = render((self.options["seed"], split, index), size, label)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=90)
            yield Example(file.getvalue(), label, f"{split}/{index:06d}", box)

    def labels(self, split: str) -> NDArray[np.int32]:
        """Returns the label of every picture: int32 `[n]`."""
        return np.arange(self.counts()[split], dtype=np.int32) % 2

    def fingerprint(self) -> str:
        """Returns a digest of the options and of the generator's version."""
        return hash_json([VERSION, "evidence", self.options])


def _parse(options: list[str]) -> dict[str, int]:
    """Parses `name=value` options and completes them with the defaults."""
    values: dict[str, int] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in DEFAULTS:
            raise ConfigError(
                "a known option of synthetic:evidence", f"option={option!r}", suggest(name, DEFAULTS)
            )
        if name in values:
            raise ConfigError(f"{name} at most once", f"option={option!r}", "remove one of the two")
        low, high = LIMITS[name]
        is_number = value.isascii() and value.isdecimal() and len(value) < 20
        if not is_number or not low <= int(value) <= high:
            raise ConfigError(
                f"{name} as an integer from {low} to {high}",
                f"option={option!r}",
                f"write {name}={DEFAULTS[name]}, for example",
            )
        values[name] = int(value)
    return DEFAULTS | values
