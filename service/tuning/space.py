"""The search space: the settings that vary, and the values drawn for each trial. No TensorFlow."""

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
DIGITS = 4  # significant digits of drawn numbers
EXAMPLE = "write for example 'optimizer.learning_rate: {loguniform: [1e-4, 1e-2]}'"


@dataclass(frozen=True)
class Dimension:
    """One setting that varies.

    Attributes:
        key: Key of the setting; dots reach into groups.
        kind: `choice` of values; `uniform`, `loguniform` or `int` between two bounds, both included.
        values: The choices, or the two bounds.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    def value_at(self, quantile: float) -> Any:
        """Returns the value at a quantile of the distribution, a number in [0, 1)."""
        if self.kind == "choice":
            return self.values[int(quantile * len(self.values))]
        low, high = self.values
        if self.kind == "int":
            return low + int(quantile * (high - low + 1))
        is_uniform = self.kind == "uniform"
        value = low + quantile * (high - low) if is_uniform else low * (high / low) ** quantile
        rounded = float(f"{value:.{DIGITS}g}")
        return min(max(rounded, float(low)), float(high))


@dataclass(frozen=True)
class Search:
    """A preset and the settings that vary in it.

    Attributes:
        preset: Name of the preset.
        settings: Settings of the preset, groups nested.
        shards: Directory of the shard set.
        space: Settings that vary.
        seed: Seed of the drawn values.
    """

    preset: str
    settings: Mapping[str, Any]
    shards: str
    space: tuple[Dimension, ...]
    seed: int = 0

    def draw(self, trial: int) -> dict[str, Any]:
        """Draws the settings of a trial that differ from the preset, by key; none for trial 0.

        Args:
            trial: Number of the trial; the result is a pure function of it and the seed.
        """
        if trial == 0:
            return {}
        quantiles = np.random.default_rng([self.seed, trial]).random(len(self.space))
        return {
            dimension.key: dimension.value_at(float(quantile))
            for dimension, quantile in zip(self.space, quantiles, strict=True)
        }

    def settings_with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of the preset with some replaced.

        Args:
            values: New values by key, in the order in which they are written.
        """
        settings = copy.deepcopy(dict(self.settings))
        for key, value in values.items():
            put(settings, key, copy.deepcopy(value))
        return settings

    def config(self, values: Mapping[str, Any], source: str = "the search space") -> RunConfig:
        """Builds the configuration of a run with some settings replaced.

        Args:
            values: New values by key.
            source: Where the values were written, for the error message.

        Raises:
            ConfigError: The values are invalid for a run.
        """
        return build_config(self.preset, self.settings_with(values), self.shards, source)

    def configs(self, trials: int) -> list[RunConfig]:
        """Builds the configurations of all trials, after every choice and every bound has been validated.

        Args:
            trials: Number of trials.

        Raises:
            ConfigError: A key or value is invalid, alone or together with other drawn values.
        """
        self.config({}, "the preset or the command line")
        values = self.draw(1)
        for dimension in self.space:
            for value in dimension.values:
                self.config({key: value if key == dimension.key else other for key, other in values.items()})
        try:
            return [self.config(self.draw(trial)) for trial in range(trials)]
        except ConfigError as error:
            fix = (
                "let settings that depend on each other vary together, such as "
                "'optimizer: {choice: [{name: sgd, momentum: 0.9}, {name: adam}]}'"
            )
            raise ConfigError(error.expected, f"{error.received} (drawn together with others)", fix) from None


def parse_dimension(key: Any, entry: Any) -> Dimension:
    """Parses one entry of a search space.

    Args:
        key: Key of the setting.
        entry: One kind with its values, such as `{uniform: [0, 1]}`.

    Raises:
        ConfigError: The entry is not of this form.
    """
    received = f"{key}={entry!r}"
    if key in ("preset", "shards"):
        raise ConfigError("a setting of the run", received, "name the preset and --data on the command line")
    if not isinstance(key, str) or not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"a setting with one of {', '.join(KINDS)}", received, EXAMPLE)
    kind = next(iter(entry))
    values = entry[kind]
    if kind not in KINDS:
        raise ConfigError(f"one of {', '.join(KINDS)}", f"{key}.{kind}={values!r}", suggest(str(kind), KINDS))
    if not isinstance(values, list) or not values:
        raise ConfigError("a list of values", f"{key}.{kind}={values!r}", EXAMPLE)
    if kind != "choice":
        _check_bounds(key, kind, values)
    return Dimension(key, kind, tuple(values))


def _check_bounds(key: str, kind: str, values: Sequence[Any]) -> None:
    received = f"{key}.{kind}={values!r}"
    if len(values) != 2 or not all(_is_number(value, kind) for value in values):
        whole = "whole " if kind == "int" else ""
        raise ConfigError(f"two {whole}numbers, the lower and the upper bound", received, EXAMPLE)
    low, high = values
    if low >= high or (kind == "loguniform" and low <= 0):
        positive = ", and above 0" if kind == "loguniform" else ""
        raise ConfigError(
            "a lower bound below the upper one", received, f"put the lower bound first{positive}"
        )


def _is_number(value: Any, kind: str) -> bool:
    allowed = int if kind == "int" else int | float
    return isinstance(value, allowed) and not isinstance(value, bool) and math.isfinite(value)
