"""`glassbox tune`: a hyperparameter search over a preset, with many short runs."""

from __future__ import annotations

import argparse

from pipelines.text import print_lines
from service.commands.common import PRESET_HELP, SHARDS_HELP, Subparsers, add_command


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `tune` to the command line."""
    parser = add_command(commands, "tune", "search for better hyperparameters of a preset", run)
    parser.add_argument("preset", nargs="?", metavar="PRESET", help=PRESET_HELP)
    parser.add_argument(
        "--space",
        metavar="FILE",
        help="YAML: key: {choice: [...]}, {uniform: [a, b]}, {loguniform: [a, b]} or {int: [a, b]}",
    )
    parser.add_argument(
        "--trials", type=int, metavar="N", help="number of trials; the first is the preset as it is"
    )
    parser.add_argument("--data", metavar="SHARDS", help=SHARDS_HELP)
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="local directory of the search; the same command resumes an interrupted search",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the search at --out with its own settings"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the sampled hyperparameters (default: 0)"
    )
    parser.add_argument(
        "--grace", type=int, metavar="N", help="epochs that every trial runs at least (default: 1)"
    )
    parser.add_argument(
        "--reduction", type=float, metavar="R", help="one in R trials is promoted at each rung (default: 3)"
    )
    parser.add_argument(
        "--cpus-per-trial",
        dest="cpus",
        type=int,
        metavar="C",
        help="CPUs of each trial (default: 1, or with GPUs an even share)",
    )
    parser.add_argument(
        "--gpus-per-trial",
        dest="gpus",
        type=int,
        metavar="K",
        help="GPUs of each trial (default: 1 if there are any)",
    )
    parser.add_argument(
        "--restarts", type=int, metavar="N", help="restarts of a trial whose process died (default: 3)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the preset")


def run(options: argparse.Namespace) -> None:
    """Runs or resumes the search, and prints the path of its leaderboard.

    Raises:
        GlassboxError: See `service.tuning.driver.tune` for the conditions.
    """
    from service.tuning.driver import tune
    from service.tuning.plan import build_plan

    print_lines(f"open {tune(build_plan(options), options.out)}")
