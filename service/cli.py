"""The command line `glassbox`; each command is a module of `service/commands`."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from pipelines.errors import GlassboxError
from pipelines.text import LineFormatter, print_lines
from service.commands import (
    cache,
    diagnose,
    drain,
    evaluate,
    export,
    look,
    plan,
    predict,
    presets,
    preview,
    report,
    serve,
    shards,
    submit,
    train,
    tune,
)
from service.commands.locations import check_locations
from service.failures import translate_failures
from service.version import read_version

# In the order of the help.
COMMANDS = (
    shards,
    preview,
    train,
    evaluate,
    predict,
    export,
    report,
    serve,
    look,
    diagnose,
    tune,
    plan,
    presets,
    cache,
    submit,
    drain,
)
REPEATED = ("overrides", "images")  # positional arguments that argparse would end at the first option
EXIT_INTERRUPTED = 130  # 128 + SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Arguments of the command line; None for those of the process.

    Returns:
        The exit code: 0, or 2 for usage and configuration, 3 for data, 4 for training and for failures of
        TensorFlow, a GPU or its driver. A bug of glassbox keeps its traceback and makes Python exit with 1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    options = parse_arguments(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages would bury ours
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pipelines").setLevel(logging.INFO)
    try:
        check_locations(options)
        with translate_failures():
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except GlassboxError as error:
        print_lines(f"glassbox: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        message = ": ".join(["glassbox: interrupted", *map(str, interrupt.args)])
        print_lines(message, file=sys.stderr)
        return getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; the last positional arguments of a command may follow its options.

    These are the `key=value` overrides of `train`, `tune` and `preview`, and the images of `look`.

    Args:
        arguments: Arguments of the command line; None for those of the process.

    Raises:
        SystemExit: The arguments are invalid; the reason has been printed to stderr.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    repeated = [getattr(options, name) for name in REPEATED if isinstance(getattr(options, name, None), list)]
    if not repeated or any(argument.startswith("-") for argument in rest):
        parser.parse_args(arguments)  # exits with a message if anything is left over
    else:
        repeated[0] += rest
    return options


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        "glassbox", description="Train image classifiers on GPUs, and see what they learned."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {read_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
