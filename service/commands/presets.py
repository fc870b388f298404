"""`glassbox presets`: the presets and the results they give."""

from __future__ import annotations

import argparse

from pipelines.text import print_lines
from service.commands.common import Subparsers, add_command


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `presets` to the command line."""
    add_command(commands, "presets", "list the presets and their expected results", run)


def run(options: argparse.Namespace) -> None:
    """Prints each preset's name and the comment at the top of its file."""
    from service.config import preset_comment, preset_names

    for name in preset_names():
        print_lines(name)
        for line in preset_comment(name).splitlines():
            print_lines(f"    {line}")
