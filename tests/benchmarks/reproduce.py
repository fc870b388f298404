"""Trains the published experiments with their presets, and renders a page that compares the accuracies.

`python tests/benchmarks/reproduce.py --help`. Finished runs are kept and interrupted ones resumed, so the
same command continues.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT))

from pipelines.errors import ConfigError, GlassboxError, Interrupted  # noqa: E402 (after the path is set)
from pipelines.shards.build import build_shards  # noqa: E402
from pipelines.sources import open_source  # noqa: E402
from pipelines.spec import ShardSpec  # noqa: E402
from service.config import load_config, preset_comment, preset_names, read_preset  # noqa: E402
from service.diagnosis.histories import read_histories  # noqa: E402
from service.report.pages.reproduction import (  # noqa: E402
    Experiment,
    format_table,
    list_overrides,
    parse_published,
    write_reproduction,
)
from service.runs import Run  # noqa: E402
from service.training.launch import resume, train  # noqa: E402

DATA = ROOT.parent / "shared"
DIGITS = DATA / "data" / "mnist"
PHOTOS = DATA / "data" / "cats_and_dogs_filtered"
HISTORIES_FILE = DATA / "seed_results" / "histories.json"
# Names of published curves in the file, by preset.
HISTORIES = {
    "cats_dogs_small": "cats_and_dogs_small_1",
    "cats_dogs_small_dropout": "cats_and_dogs_small_2",
    "vgg16": "cats_and_dogs_small_3",
}


def list_experiments() -> list[str]:
    """Returns the presets with a published result, the cheapest first."""
    names = [name for name in preset_names() if parse_published(preset_comment(name))]

    def estimate_cost(name: str) -> tuple[int, int]:
        settings = read_settings(name)
        return settings["data"].get("channels", 3), settings["epochs"]

    return sorted(names, key=estimate_cost)


def read_settings(preset: str) -> dict[str, Any]:
    """Reads the settings of a preset."""
    _, settings = read_preset(preset)
    return settings


def find_data_kind(preset: str) -> str:
    """Returns the option that names an experiment's data: `digits` or `photos`."""
    return "digits" if read_settings(preset)["data"].get("channels", 3) == 1 else "photos"


def find_source(preset: str, options: argparse.Namespace) -> str | None:
    """Returns the source of an experiment's data, or None if there is none."""
    source: str | None = getattr(options, find_data_kind(preset))
    return source


def needs_weights(preset: str) -> bool:
    """Returns whether a preset starts from pretrained weights, whose file has to be named."""
    return read_settings(preset).get("weights") == "imagenet"


def find_missing_reason(preset: str, options: argparse.Namespace) -> str:
    """Returns why an experiment cannot run; an empty string if it can."""
    if options.only and preset not in options.only:
        return "not selected"
    if not find_source(preset, options):
        return f"no data (--{find_data_kind(preset)} SOURCE)"
    if needs_weights(preset) and not options.weights:
        return "no weights (--weights FILE)"
    return ""


def run_experiment(preset: str, options: argparse.Namespace) -> None:
    """Trains or resumes all runs of an experiment."""
    shards = options.out / "shards" / find_data_kind(preset)
    if not (shards / "manifest.json").is_file():
        build_shards(open_source(str(find_source(preset, options))), shards, ShardSpec())
    for run in list_runs(preset, options):
        if run.config_path.is_file():
            resume(run.path)
            continue
        overrides = [f"seed={run.path.name.rpartition('-')[2]}"]
        if needs_weights(preset):
            overrides.append(f"weights={options.weights}")
        train(load_config(preset, shards, overrides), run.path)


def list_runs(preset: str, options: argparse.Namespace) -> list[Run]:
    """Returns the runs of an experiment by seed, whether or not they exist."""
    seeds = options.seeds if preset in options.seeded else 1
    return [Run(options.out / "runs" / f"{preset}-seed-{seed}") for seed in range(seeds)]


def collect_experiments(options: argparse.Namespace) -> list[Experiment]:
    """Returns all experiments with their existing runs."""
    histories = read_histories(options.histories) if options.histories else {}
    external_runs = dict(word.split("=", 1) for word in options.run)
    experiments = []
    for preset in list_experiments():
        published = parse_published(preset_comment(preset))
        if not published:
            continue
        candidates = [Run(external_runs[preset])] if preset in external_runs else list_runs(preset, options)
        runs = tuple(run for run in candidates if run.metrics())
        config = load_config(preset, options.out)
        overrides = dict.fromkeys(word for run in runs for word in list_overrides(run, config))
        experiments.append(
            Experiment(
                preset,
                published,
                runs,
                find_missing_reason(preset, options) or "not started",
                histories.get(HISTORIES.get(preset, ""), ()),
                tuple(overrides),
            )
        )
    return experiments


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=ROOT / "build" / "reproduce",
        metavar="DIR",
        help="directory for shards, runs and the page (default: build/reproduce)",
    )
    add("--only", nargs="+", metavar="PRESET", help=f"run only these: {', '.join(list_experiments())}")
    digits = f"idx:{DIGITS}" if DIGITS.is_dir() else None
    add("--digits", default=digits, metavar="SOURCE", help="source of the digits")
    photos = f"folder:{PHOTOS}" if PHOTOS.is_dir() else None
    add("--photos", default=photos, metavar="SOURCE", help="source of the photos of cats and dogs")
    add("--weights", metavar="FILE", help="weights of a base pretrained on ImageNet")
    histories = HISTORIES_FILE if HISTORIES_FILE.is_file() else None
    add("--histories", type=Path, default=histories, metavar="FILE", help="published curves")
    add("--seeds", type=int, default=3, metavar="N", help="runs of the presets in --seeded (default: 3)")
    add(
        "--seeded",
        nargs="+",
        default=["mnist_cnn"],
        metavar="PRESET",
        help="presets that are run with several seeds (default: mnist_cnn)",
    )
    add(
        "--run",
        action="append",
        default=[],
        metavar="PRESET=DIR",
        help="use an existing run for a preset; may be repeated",
    )
    add("--page-only", action="store_true", help="render the page of the existing runs")
    return parser.parse_args(arguments)


def run_experiments(options: argparse.Namespace) -> None:
    """Runs the selected experiments.

    Raises:
        ConfigError: `--only` names an unknown experiment.
    """
    names = list_experiments()
    for name in options.only or ():
        if name not in names:
            raise ConfigError("a published experiment", f"only={name}", f"use {', '.join(names)}")
    if options.page_only:
        return
    external = {word.partition("=")[0] for word in options.run}
    for preset in names:
        if preset not in external and not find_missing_reason(preset, options):
            print(f"{preset}:", flush=True)
            run_experiment(preset, options)


def main(arguments: list[str] | None = None) -> int:
    """Runs the selected experiments and renders the page.

    Returns:
        0, or the exit code of the error that ended the runs.
    """
    options = parse_options(arguments)
    options.out = options.out.absolute()
    code = 0
    try:
        run_experiments(options)
    except GlassboxError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt as interrupt:
        print("reproduce: interrupted; run the same command to resume", file=sys.stderr)
        code = interrupt.exit_code if isinstance(interrupt, Interrupted) else 130
    experiments = collect_experiments(options)
    print(format_table(experiments))
    page = write_reproduction(options.out, experiments, f"{os.cpu_count()} CPUs, {platform.machine()}")
    print(f"open {page}")
    return code


if __name__ == "__main__":
    sys.exit(main())
