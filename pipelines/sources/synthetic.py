"""Pictures made from a seed, in which one known object decides the class.

One of the things in every picture is a ball, and its pattern alone, striped or checkered, is the class; its box is
the example's `evidence`. All else (ground, light, other things; position, size, turn, colours and contrast of the
ball) is drawn without a look at the class, and both patterns have the same mean colour and the same spatial
frequency. One of the other things is a speckled stone, which misleads whatever looks for hard edges only.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

from PIL import Image

from pipelines.errors import ConfigError, suggest
from pipelines.records import Example
from pipelines.sources import SOURCES
from pipelines.sources.scene import PATTERNS, VERSION, render
from pipelines.storage import hash_json

DEFAULTS = {"train": 1600, "validation": 400, "seed": 0, "size": 96}
LIMITS = {"train": (2, 1_000_000), "validation": (0, 1_000_000), "seed": (0, 2**63 - 1), "size": (32, 1024)}


@SOURCES.register("synthetic")
class SyntheticSource:
    """Striped and checkered balls: `synthetic:evidence` or `synthetic:evidence,train=1600,validation=400,seed=0,size=96`.

    Args:
        argument: What follows the colon: `evidence`, then options in any order. `train` and `validation` count
            pictures, `size` is their height and width in pixels.

    Raises:
        ConfigError: There is no such kind of picture or option, or a value is out of range.
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
        """Number of pictures per split; no `validation` where its option is 0."""
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

    def fingerprint(self) -> str:
        """A digest of the options and of the generator's version."""
        return hash_json([VERSION, "evidence", self.options])


def _parse(options: list[str]) -> dict[str, int]:
    """Reads `name=value` options over the defaults."""
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
        if not (value.isascii() and value.isdecimal() and len(value) < 20 and low <= int(value) <= high):
            raise ConfigError(
                f"{name} as a whole number from {low} to {high}",
                f"option={option!r}",
                f"write for instance {name}={DEFAULTS[name]}",
            )
        values[name] = int(value)
    return DEFAULTS | values
