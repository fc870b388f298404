"""`glassbox train`: trains a preset on a shard set, on a Ray cluster or in this process."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError
from pipelines.remote.uri import is_uri
from pipelines.text import print_lines
from service.commands.common import CUSTOM_OBJECTS_HELP, PRESET_HELP, SHARDS_HELP, Subparsers, add_command

OUT_HELP = "the run directory to create: a path, or an address on a store such as s3://bucket/runs/first"

if TYPE_CHECKING:
    from service.runs import Run
    from service.training.group import WorkerSpec


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `train` to the command line."""
    parser = add_command(commands, "train", "train a model on a shard set", run)
    parser.add_argument("--preset", metavar="NAME", help=PRESET_HELP)
    parser.add_argument("--data", metavar="SHARDS", help=SHARDS_HELP)
    parser.add_argument("--out", required=True, metavar="RUN", help=OUT_HELP)
    parser.add_argument(
        "--resume", action="store_true", help="resume the run at --out from its newest checkpoint"
    )
    parser.add_argument(
        "--resume-if-exists",
        action="store_true",
        help="start the run, or resume it if there is one at --out: for jobs that are retried as they are",
    )
    parser.add_argument(
        "--local", action="store_true", help="train in this process, without Ray: starts within seconds"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        help="number of worker processes, or MIN:MAX (default: one, with the whole of the largest node)",
    )
    parser.add_argument(
        "--cpus-per-worker",
        type=int,
        metavar="C",
        help="CPUs of each worker (default: an even share of the cluster)",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=int,
        metavar="K",
        help="GPUs of each worker (default: an even share of the cluster)",
    )
    parser.add_argument(
        "--restarts",
        type=int,
        metavar="N",
        help="restarts in a row after lost workers, without a new checkpoint in between (default: 3)",
    )
    parser.add_argument(
        "--on-nan",
        choices=("stop", "skip"),
        help="stop the run at a gradient that is not finite, or skip the update",
    )
    parser.add_argument(
        "--profile", action="store_true", help="record a TensorFlow profile of updates 10 to 19"
    )
    parser.add_argument("--custom-objects", nargs="+", default=(), metavar="MODULE", help=CUSTOM_OBJECTS_HELP)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="change a setting: epochs=5 optimizer.learning_rate=0.01",
    )


def run(options: argparse.Namespace) -> None:
    """Trains or resumes a run.

    Raises:
        GlassboxError: See `service.training.launch` for the conditions.
    """
    finished_run = _resume(options) if options.resume else _train(options)
    out = options.out if is_uri(options.out) else finished_run.path
    print_lines(f"finished: {out}  ({shlex.join(['glassbox', 'report', options.out])})")


def _train(options: argparse.Namespace) -> Run:
    if not options.preset or not options.data:
        raise ConfigError(
            "--preset and --data", f"preset={options.preset} data={options.data}", "name both, or --resume"
        )

    from service.config import load_config
    from service.training.launch import train, train_or_resume

    config = load_config(options.preset, options.data, _read_overrides(options))
    start = train_or_resume if options.resume_if_exists else train
    return start(config, options.out, _read_workers(options), local=options.local)


def _resume(options: argparse.Namespace) -> Run:
    if options.preset or options.data or _read_overrides(options):
        raise ConfigError(
            "--resume with --out alone",
            "--preset, --data or key=value next to it",
            "leave these out: a run keeps its own; to train longer, raise epochs in config.yaml",
        )

    from service.training.launch import resume

    return resume(options.out, _read_workers(options), local=options.local)


def _read_overrides(options: argparse.Namespace) -> list[str]:
    """Returns the settings as `key=value`, including those that have a separate option."""
    overrides = list(options.overrides)
    if options.on_nan:
        overrides.append(f"on_nan={options.on_nan}")
    if options.profile:
        overrides.append("profile=true")
    if options.custom_objects:
        overrides.append(f"custom_objects={json.dumps(options.custom_objects)}")
    return overrides


def _read_workers(options: argparse.Namespace) -> WorkerSpec | None:
    """Returns the requested workers; None if no option sets them."""
    from service.training.group import WorkerSpec

    settings = (options.workers, options.cpus_per_worker, options.gpus_per_worker, options.restarts)
    if all(setting is None for setting in settings):
        return None
    return WorkerSpec.read(*settings)
