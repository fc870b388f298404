"""`glassbox shards check`: the health of a shard set, before anybody trains on it."""

from __future__ import annotations

import argparse
import json
import shlex

from pipelines.errors import DataError
from pipelines.remote.files import resolve_location
from pipelines.text import print_lines, print_text
from service.commands.common import SHARDS_HELP, WORKERS_HELP, Subparsers, add_command
from service.progress_bar import progress_bar


def add_parser(subcommands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `check` to the commands of `glassbox shards`."""
    parser = add_command(
        subcommands, "check", "find duplicates, imbalance and unusual images before training", run
    )
    parser.add_argument("directory", metavar="SHARDS", help=SHARDS_HELP)
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="also render a page with pictures to this directory, or its URI; replaces an older one",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with code 3 if there is a warning, for automated checks"
    )
    parser.add_argument("--workers", type=int, metavar="N", help=WORKERS_HELP)


def run(options: argparse.Namespace) -> None:
    """Prints the result of the check.

    Raises:
        DataError: There is no shard set, it is damaged, or with `--strict`, there is a warning.
        ConfigError: `--out` holds something else or cannot be written, or workers died.
    """
    from pipelines.health.check import check_shards
    from pipelines.health.text import describe_health

    shards = resolve_location(options.directory)
    with progress_bar("checking images") as update:
        health = check_shards(shards, update, options.workers)
    page = None
    if options.out:
        from service.report.pages.health import render_health

        page = render_health(shards, health, resolve_location(options.out))
    if options.json:
        print(json.dumps(health.figures(), indent=1))
    else:
        print_text(f"{describe_health(health)}\n")
        if page is None:
            command = ["glassbox", "shards", "check", str(options.directory), "--out", "health"]
            print_lines(f"A page with pictures: {shlex.join(command)}")
        else:
            print_lines(f"open {page}")
        print_lines("Label issues need a trained model: glassbox diagnose RUN")
    if options.strict and health.warnings:
        raise DataError(
            "a shard set without warnings",
            f"data={options.directory}: warnings={len(health.warnings)}, first: {health.warnings[0]}",
            "correct the source and build the shard set again, or leave out --strict",
        )
