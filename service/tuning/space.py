"""The search space: which settings vary, and what every trial draws of them. A pure function of the seed, no TensorFlow."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.errors import ConfigError, suggest
from service.config import RunConfig, build_config, put

KINDS = ("choice", "uniform", "loguniform", "int")
DIGITS = 4  # that drawn numbers are rounded to
EXAMPLE = "write for example 'optimizer.learning_rate: {loguniform: [1e-4, 1e-2]}'"


@dataclass(frozen=True)
class Dimension:
    """One setting that varies.

    Attributes:
        key: With dots, as on the command line.
        kind: `choice` of values; `uniform`, `loguniform` or `int` between two bounds, both included.
        values: The choices, or the bounds.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1)."""
        if self.kind == "choice":
            return self.values[int(place * len(self.values))]
        low, high = self.values
        if self.kind == "int":
            return low + int(place * (high - low + 1))
        value = low + place * (high - low) if self.kind == "uniform" else low * (high / low) ** place
        return min(max(float(f"{value:.{DIGITS}g}"), float(low)), float(high))


@dataclass(frozen=True)
class Search:
    """What is searched: a preset, and what varies in it.

    Attributes:
        preset: Its name.
        settings: Its settings, groups nested.
        shards: Directory of the shard set.
        space: What varies.
        seed: Of what is drawn.
    """

    preset: str
    settings: Mapping[str, Any]
    shards: str
    space: tuple[Dimension, ...]
    seed: int = 0

    def draw(self, trial: int) -> dict[str, Any]:
        """What a trial has other than the preset, by key; nothing for trial 0, which is the preset as it is."""
        if trial == 0:
            return {}
        places = np.random.default_rng([self.seed, trial]).random(len(self.space))
        return {
            dimension.key: dimension.at(float(place))
            for dimension, place in zip(self.space, places, strict=True)
        }

    def settings_with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the preset with some others, in the order of the space."""
        settings = copy.deepcopy(dict(self.settings))
        for key, value in values.items():
            put(settings, key, copy.deepcopy(value))
        return settings

    def config(self, values: Mapping[str, Any], where: str = "the search space") -> RunConfig:
        """The configuration of a run with some values.

        Raises:
            ConfigError: They are none that a run can have.
        """
        return build_config(self.preset, self.settings_with(values), self.shards, where)

    def configs(self, trials: int) -> list[RunConfig]:
        """The configurations of all trials, after every choice and every bound was tried beside the others.

        Raises:
            ConfigError: A key or a value that a run cannot have, alone or together with the others that were drawn.
        """
        self.config({}, "the preset or the command line")
        drawn = self.draw(1)
        for dimension in self.space:
            for value in dimension.values:
                self.config({key: value if key == dimension.key else other for key, other in drawn.items()})
        try:
            return [self.config(self.draw(trial)) for trial in range(trials)]
        except ConfigError as error:
            fix = "let what belongs together vary together, such as 'optimizer: {choice: [{name: sgd, momentum: 0.9}, {name: adam}]}'"
            raise ConfigError(error.expected, f"{error.received} (drawn together with others)", fix) from None


def dimension(key: Any, told: Any) -> Dimension:
    """One line of a search space.

    Raises:
        ConfigError: It is none.
    """
    received = f"{key}={told!r}"
    if key in ("preset", "shards"):
        raise ConfigError("a setting of the run", received, "use the words of the command and --data")
    if not isinstance(key, str) or not isinstance(told, dict) or len(told) != 1:
        raise ConfigError(f"a setting with one of {', '.join(KINDS)}", received, EXAMPLE)
    ((kind, values),) = told.items()
    if kind not in KINDS:
        raise ConfigError(f"one of {', '.join(KINDS)}", f"{key}.{kind}={values!r}", suggest(str(kind), KINDS))
    if not isinstance(values, list) or not values:
        raise ConfigError("a list of values", f"{key}.{kind}={values!r}", EXAMPLE)
    if kind != "choice":
        _check_bounds(key, kind, values)
    return Dimension(key, kind, tuple(values))


def _check_bounds(key: str, kind: str, values: Sequence[Any]) -> None:
    number = int if kind == "int" else int | float
    if len(values) != 2 or any(
        isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value)
        for value in values
    ):
        raise ConfigError(
            f"two {'whole ' if kind == 'int' else ''}numbers, the lower and the upper bound",
            f"{key}.{kind}={values!r}",
            EXAMPLE,
        )
    low, high = values
    if low >= high or (kind == "loguniform" and low <= 0):
        fix = "put the lower bound first" + (", and above 0" if kind == "loguniform" else "")
        raise ConfigError("a lower bound below the upper one", f"{key}.{kind}={values!r}", fix)
