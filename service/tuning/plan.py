"""The plan of a search: its options, stored next to its trials, so that it resumes with the same options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipelines.errors import ConfigError
from pipelines.remote.files import is_file, resolve_location
from pipelines.remote.uri import parse_location
from pipelines.spec import Positive, Spec, check
from service.config import make_paths_absolute, read_preset, read_yaml, set_value
from service.tuning.space import EXAMPLE, Search, parse_dimension

PLAN = "tuning.yaml"
Count = Annotated[int, Field(ge=0, strict=True)]


class Plan(Spec):
    """Options of a search.

    Attributes:
        preset: Name of the preset that is varied.
        settings: Settings of the preset at the start of the search.
        shards: Directory of the shard set.
        space: Search space as in its file: keys of a run, each with its choices or its range.
        trials: Number of runs; the first is the preset unchanged.
        seed: Seed of the drawn settings.
        grace: Epochs that every trial is trained for before it can be stopped.
        reduction: Reduction factor of ASHA: at each rung, one in `reduction` trials continues.
        cpus: CPUs of each trial; None for one, or with GPUs an even share of the node.
        gpus: GPUs of each trial; None for one if the cluster has any.
        restarts: Maximum number of restarts of a trial whose process died.
    """

    # Options that cannot change when a search is resumed.
    FIXED: ClassVar = ("preset", "settings", "shards", "space", "trials", "seed")

    preset: str
    settings: dict[str, Any]
    shards: str
    space: dict[str, Any]
    trials: Positive
    seed: Count = 0
    grace: Positive = 1
    reduction: Annotated[float, Field(gt=1.0)] = 3
    cpus: Positive | None = None
    gpus: Count | None = None
    restarts: Count = 3

    def build_search(self) -> Search:
        """Builds the search, with its space parsed.

        Raises:
            ConfigError: An entry of the space is neither choices nor a range.
        """
        space = tuple(parse_dimension(key, entry) for key, entry in self.space.items())
        return Search(self.preset, self.settings, self.shards, space, self.seed)


def read_plan(out: str | Path) -> Plan:
    """Reads the plan of a search.

    Args:
        out: Directory of the search.

    Raises:
        ConfigError: The directory is not a search, or its plan is damaged.
    """
    path = Path(out) / PLAN
    if not path.is_file():
        raise ConfigError(
            "the directory of a search", f"out={out} (no {PLAN})", "name the --out of a 'glassbox tune'"
        )
    return check(Plan, read_yaml(path, "search"), str(path))


def build_plan(options: argparse.Namespace) -> Plan:
    """Builds the plan of a search from the options of `glassbox tune`.

    Args:
        options: Parsed options; those that were left out are None.

    Raises:
        ConfigError: The options exclude each other, or the preset or the space cannot be read.
    """
    tuning = _select_options(options, ("seed", "grace", "reduction", "cpus", "gpus", "restarts"))
    required = ("preset", "space", "trials", "data")
    named = _select_options(options, required)
    if options.resume:
        return _build_resumed(options, named, tuning)

    missing = [name for name in required if name not in named]
    if missing:
        raise ConfigError(
            "a preset, --space, --trials and --data",
            f"no {' and no '.join(missing)}",
            "name all four, or --resume",
        )
    preset, settings = read_preset(options.preset)
    for override in options.overrides:
        set_value(settings, override)
    space = parse_location(options.space)
    if not is_file(space):
        raise ConfigError("a search space, a YAML file", f"space={space} (no such file)", EXAMPLE)
    fixed = {
        "preset": preset,
        "settings": make_paths_absolute(settings),
        "shards": str(resolve_location(options.data)),
        "space": read_yaml(space, "space"),
        "trials": options.trials,
    }
    return check(Plan, fixed | tuning, "the command line")


def _build_resumed(options: argparse.Namespace, named: dict[str, Any], tuning: dict[str, Any]) -> Plan:
    """Builds the stored plan with the changes that `--resume` allows."""
    refused = [name for name in named if name != "trials"] + options.overrides
    if "seed" in tuning:
        refused.append("seed")
    if refused:
        raise ConfigError(
            "--resume with --out alone",
            f"--resume with {' '.join(refused)}",
            "leave these out: a search keeps its own",
        )
    changes = tuning | _select_options(options, ("trials",))
    return check(Plan, read_plan(options.out).model_dump() | changes, "the command line")


def _select_options(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the values of some options, without those that were left out."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
