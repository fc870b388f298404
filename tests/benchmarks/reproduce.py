"""Runs the published experiments with their own presets, and renders a page of our curves over the published ones.

`python tests/benchmarks/reproduce.py --help`. Finished runs are left alone, others go on where they were: the same command continues.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT))

from pipelines.errors import ConfigError, GlassboxError, Interrupted  # noqa: E402 (after the path is set)
from pipelines.shards.build import build_shards  # noqa: E402
from pipelines.sources import open_source  # noqa: E402
from pipelines.spec import ShardSpec  # noqa: E402
from service.commands.diagnose import read_histories  # noqa: E402 (after the path is set)
from service.config import load_config, preset_comment, preset_names, read_preset  # noqa: E402
from service.report.pages.reproduction import Experiment, departures, published_in, table, write_reproduction  # noqa: E402 (after the path is set)
from service.runs import Run  # noqa: E402
from service.training.launch import resume, train  # noqa: E402

DATA = ROOT.parent / "shared"
HISTORIES = {
    "cats_dogs_small": "cats_and_dogs_small_1",
    "cats_dogs_small_dropout": "cats_and_dogs_small_2",
    "vgg16": "cats_and_dogs_small_3",
}


def experiments() -> list[str]:
    """Presets with a published result, the shortest first."""
    names = [name for name in preset_names() if published_in(preset_comment(name))]
    cost = {
        name: (read_preset(name)[1]["data"].get("channels", 3), read_preset(name)[1]["epochs"])
        for name in names
    }
    return sorted(names, key=lambda name: cost[name])


def missing(preset: str, options: argparse.Namespace) -> str:
    """Why an experiment cannot be run; empty where it can."""
    if options.only and preset not in options.only:
        return "not asked for"
    if not source_of(preset, options):
        return f"no data (--{kind_of(preset)} SOURCE)"
    if read_preset(preset)[1].get("weights") == "imagenet" and not options.weights:
        return "no weights (--weights FILE)"
    return ""


def kind_of(preset: str) -> str:
    """What an experiment is run on."""
    return "digits" if read_preset(preset)[1]["data"].get("channels", 3) == 1 else "photos"


def source_of(preset: str, options: argparse.Namespace) -> str | None:
    """Where that comes from."""
    source: str | None = getattr(options, kind_of(preset))
    return source


def run_experiment(preset: str, options: argparse.Namespace) -> None:
    """Brings all runs of an experiment to their end."""
    shards = options.out / "shards" / kind_of(preset)
    if not (shards / "manifest.json").is_file():
        build_shards(open_source(str(source_of(preset, options))), shards, ShardSpec())
    for run in runs_of(preset, options):
        if run.config_path.is_file():
            resume(run.path)
            continue
        words = [f"seed={run.path.name.rpartition('-')[2]}"] + (
            [f"weights={options.weights}"] if missing_weights(preset) else []
        )
        train(load_config(preset, shards, words), run.path)


def missing_weights(preset: str) -> bool:
    """Whether the weights a preset begins with have to be named."""
    return read_preset(preset)[1].get("weights") == "imagenet"


def runs_of(preset: str, options: argparse.Namespace) -> list[Run]:
    """The runs of an experiment, by their seeds, as they are or shall be."""
    seeds = options.seeds if preset in options.seeded else 1
    return [Run(options.out / "runs" / f"{preset}-seed-{seed}") for seed in range(seeds)]


def gathered(options: argparse.Namespace) -> list[Experiment]:
    """All experiments with the runs that were begun."""
    histories = read_histories(options.histories) if options.histories else {}
    elsewhere = dict(word.split("=", 1) for word in options.run)
    found = []
    for preset in experiments():
        published = published_in(preset_comment(preset))
        runs = [Run(elsewhere[preset])] if preset in elsewhere else runs_of(preset, options)
        begun = tuple(run for run in runs if run.metrics())
        why = missing(preset, options) or "not begun"
        if published:
            config = load_config(preset, options.out)
            others = tuple(dict.fromkeys(word for run in begun for word in departures(run, config)))
            found.append(
                Experiment(
                    preset, published, begun, why, histories.get(HISTORIES.get(preset, ""), ()), others
                )
            )
    return found


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    digits, photos, histories = (
        DATA / "data" / "mnist",
        DATA / "data" / "cats_and_dogs_filtered",
        DATA / "seed_results" / "histories.json",
    )
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "build" / "reproduce",
        metavar="DIR",
        help="(default: build/reproduce)",
    )
    parser.add_argument("--only", nargs="+", metavar="PRESET", help=f"of {', '.join(experiments())}")
    parser.add_argument(
        "--digits",
        default=f"idx:{digits}" if digits.is_dir() else None,
        metavar="SOURCE",
        help="of the digits",
    )
    parser.add_argument(
        "--photos",
        default=f"folder:{photos}" if photos.is_dir() else None,
        metavar="SOURCE",
        help="of cats and dogs",
    )
    parser.add_argument("--weights", metavar="FILE", help="of a base pretrained on ImageNet")
    parser.add_argument(
        "--histories",
        type=Path,
        default=histories if histories.is_file() else None,
        metavar="FILE",
        help="published curves",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs of the presets in --seeded (default: 3)"
    )
    parser.add_argument(
        "--seeded", nargs="+", default=["mnist_cnn"], metavar="PRESET", help="(default: mnist_cnn)"
    )
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="PRESET=DIR",
        help="take a run that was made elsewhere; may be repeated",
    )
    parser.add_argument("--page-only", action="store_true", help="render what is there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs what was asked for; 0, or the exit code of what went wrong."""
    options = options_of(arguments)
    options.out = options.out.absolute()
    code = 0
    try:
        for name in options.only or ():
            if name not in experiments():
                raise ConfigError("a published experiment", f"only={name}", f"use {', '.join(experiments())}")
        elsewhere = [word.partition("=")[0] for word in options.run]
        for preset in [] if options.page_only else experiments():
            if preset not in elsewhere and not missing(preset, options):
                print(f"{preset}:", flush=True)
                run_experiment(preset, options)
    except GlassboxError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt as interrupt:
        print("reproduce: stopped; the same command goes on", file=sys.stderr)
        code = interrupt.exit_code if isinstance(interrupt, Interrupted) else 130
    found = gathered(options)
    print(table(found))
    print(f"open {write_reproduction(options.out, found, f'{os.cpu_count()} CPUs, {platform.machine()}')}")
    return code


if __name__ == "__main__":
    sys.exit(main())
