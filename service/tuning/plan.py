"""What a search is told: kept beside its trials, so that it goes on with the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipelines.errors import ConfigError
from pipelines.spec import Positive, Spec, check
from service.config import read_preset, read_yaml, set_value
from service.tuning.space import EXAMPLE, Search, dimension

PLAN = "tuning.yaml"
Count = Annotated[int, Field(ge=0, strict=True)]


class Plan(Spec):
    """A search.

    Attributes:
        preset: The preset that is varied.
        settings: Its settings, as they were when the search began.
        shards: Directory of the shard set.
        space: What varies: keys of a run, each with its choices or its range, as in the file.
        trials: How many runs; the first is the preset as it is.
        seed: Of what is drawn.
        grace: Epochs that every trial is given.
        reduction: Of so many trials at a rung one goes on.
        cpus: For each trial; None for one, or with GPUs an even share.
        gpus: For each trial; None for one where there are any.
        restarts: How often a trial is started again after its process died.
    """

    FIXED: ClassVar = (
        "preset",
        "settings",
        "shards",
        "space",
        "trials",
        "seed",
    )  # that a search cannot change on its way

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

    def search(self) -> Search:
        """The same with the space taken apart.

        Raises:
            ConfigError: Something in the space is neither choices nor a range.
        """
        space = tuple(dimension(key, told) for key, told in self.space.items())
        return Search(self.preset, self.settings, self.shards, space, self.seed)


def planned(out: str | Path) -> Plan:
    """What is being searched at a directory.

    Raises:
        ConfigError: Nothing is, or what was written down of it is damaged.
    """
    path = Path(out) / PLAN
    if not path.is_file():
        raise ConfigError(
            "the directory of a search", f"out={out} (no {PLAN})", "name the --out of a 'glassbox tune'"
        )
    return check(Plan, read_yaml(path, "search"), str(path))


def plan_of(options: argparse.Namespace) -> Plan:
    """The search that a command line asks for.

    Raises:
        ConfigError: Its words do not fit together, or the preset or the space cannot be read.
    """
    named = ("seed", "grace", "reduction", "cpus", "gpus", "restarts")
    chosen = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    words = {name: getattr(options, name) for name in ("preset", "space", "trials", "data")}
    if options.resume:
        given = [
            name for name, value in words.items() if value is not None and name != "trials"
        ] + options.overrides
        if given or "seed" in chosen:
            raise ConfigError(
                "--resume with --out alone",
                f"{' '.join(given) or 'seed'} beside it",
                "leave these out: a search keeps its own",
            )
        more = {"trials": options.trials} if options.trials is not None else {}
        return check(Plan, planned(options.out).model_dump() | chosen | more, "the command line")
    missing = [name for name, value in words.items() if value is None]
    if missing:
        raise ConfigError(
            "a preset, --space, --trials and --data",
            f"no {' and no '.join(missing)}",
            "name all four, or --resume",
        )
    preset, settings = read_preset(options.preset)
    for override in options.overrides:
        set_value(settings, override)
    space = Path(options.space)
    if not space.is_file():
        raise ConfigError("a search space, a YAML file", f"space={space} (not there)", EXAMPLE)
    asked = {
        "preset": preset,
        "settings": settings,
        "shards": str(Path(options.data).absolute()),
        "trials": options.trials,
    }
    return check(Plan, asked | {"space": read_yaml(space, "space")} | chosen, "the command line")
