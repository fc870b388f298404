"""Helpers shared by all commands: subparsers, help texts, and tables for the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

# The type that `add_subparsers` returns; argparse has no public name for it.
Subparsers = argparse._SubParsersAction
Command = Callable[[argparse.Namespace], None]

MODEL_HELP = "a .keras file, made here or elsewhere, or a run directory"
SCALE_HELP = "factor on pixels of 0 to 255 (default: 1 if the model rescales its input itself, else 1/255)"
TTA_HELP = "test-time augmentation: none, or flip to average with the mirror image (default: none)"
WORKERS_HELP = (
    "maximum number of Ray tasks "
    "(default: one per CPU of the cluster at RAY_ADDRESS, else this process alone)"
)
PRESET_HELP = "a name from 'glassbox presets', or a YAML file"
CUSTOM_OBJECTS_HELP = (
    "package.module or FILE.py that defines the custom layers of the model; its code is imported"
)
MAX_TABLE_WIDTH = 1_000  # columns; a table is never wrapped to the width of the terminal


def add_command(
    commands: Subparsers[argparse.ArgumentParser], name: str, summary: str, run: Command
) -> argparse.ArgumentParser:
    """Adds a subparser.

    Args:
        commands: Subparsers of the command above it.
        name: Name of the command.
        summary: Description in one phrase, lower case and without a full stop.
        run: Function that receives the parsed options.
    """
    description = summary[0].upper() + summary[1:] + "."
    parser = commands.add_parser(name, help=summary, description=description)
    parser.set_defaults(run=run)
    return parser


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `evaluate` and `predict` share."""
    parser.add_argument("--scale", type=float, metavar="FACTOR", help=SCALE_HELP)
    parser.add_argument("--tta", default="none", metavar="MODE", help=TTA_HELP)
    parser.add_argument("--workers", type=int, metavar="N", help=WORKERS_HELP)
    parser.add_argument("--custom-objects", nargs="+", default=(), metavar="MODULE", help=CUSTOM_OBJECTS_HELP)


def format_table(table: Table) -> str:
    """Renders a table as plain text, without trailing blanks."""
    console = Console(width=MAX_TABLE_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
