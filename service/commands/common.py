"""Helpers shared by all commands: subparsers, help texts, and tables for the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table

from pipelines.text import print_text, render_table

if TYPE_CHECKING:
    from service.inference.options import PredictOptions

# The type that `add_subparsers` returns; argparse has no public name for it.
Subparsers = argparse._SubParsersAction
Command = Callable[[argparse.Namespace], None]

SPLITS_HELP = (
    "folder of every split, such as train=Training,validation=Testing; train=. makes every folder a class "
    "(default: found by the usual names)"
)
COLUMNS_HELP = (
    "column or key of image, label, split and id, such as image=file,label=breed or image=train/{id}.jpg "
    "(default: found by the usual names)"
)
MODEL_HELP = "a .keras file, made here or elsewhere, or a run directory; path or URI"
SHARDS_HELP = "the shard set; path or URI, such as s3://BUCKET/shards"
SCALE_HELP = "factor on pixels of 0 to 255 (default: found by running the model; printed with the reason)"
OFFSET_HELP = "with --scale: summand after the multiplication, such as --scale 0.00784 --offset -1"
FIT_HELP = (
    "how an image of other proportions is made to fit: stretch, crop or pad "
    "(default: as recorded in the model, else stretch)"
)
RESIZE_HELP = "with --fit crop: length that the shorter side is resized to before the central part is cut out"
ANTIALIAS_HELP = "with --fit: low-pass filter images that are made smaller, as Pillow and torchvision do"
HEAD_HELP = "whether the outputs are probabilities or logits (default: found by running the model)"
TTA_HELP = "test-time augmentation: none, or flip to average with the mirror image (default: none)"
WORKERS_HELP = (
    "maximum number of Ray tasks "
    "(default: one per CPU of the cluster at RAY_ADDRESS, else this process alone)"
)
PRESET_HELP = "a name from 'glassbox presets', or path or URI of a YAML file"
CUSTOM_OBJECTS_HELP = (
    "package.module or FILE.py that defines the custom layers of the model; its code is imported"
)


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


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options on how to read a source."""
    parser.add_argument("--splits", metavar="SPLIT=FOLDER,...", help=SPLITS_HELP)
    parser.add_argument("--columns", metavar="ROLE=COLUMN,...", help=COLUMNS_HELP)


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `evaluate` and `predict` share."""
    add_interpretation_options(parser)
    parser.add_argument("--tta", default="none", metavar="MODE", help=TTA_HELP)
    parser.add_argument("--workers", type=int, metavar="N", help=WORKERS_HELP)
    parser.add_argument("--custom-objects", nargs="+", default=(), metavar="MODULE", help=CUSTOM_OBJECTS_HELP)


def add_interpretation_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options on how images enter a model and what its outputs mean."""
    parser.add_argument("--scale", type=float, metavar="FACTOR", help=SCALE_HELP)
    parser.add_argument("--offset", type=float, metavar="SUMMAND", help=OFFSET_HELP)
    parser.add_argument("--head", metavar="KIND", help=HEAD_HELP)
    parser.add_argument("--fit", metavar="KIND", help=FIT_HELP)
    parser.add_argument("--resize", type=int, metavar="PIXELS", help=RESIZE_HELP)
    parser.add_argument("--antialias", action="store_true", help=ANTIALIAS_HELP)


def read_predict_options(options: argparse.Namespace, tta: str = "none") -> PredictOptions:
    """Reads the options of `add_interpretation_options`.

    Args:
        options: The parsed command line.
        tta: Test-time augmentation, see `PredictOptions.tta`; for commands without this option `none`.

    Raises:
        ConfigError: An option is invalid.
    """
    from service.inference.options import PredictOptions

    return PredictOptions(
        scale=options.scale,
        tta=tta,
        offset=options.offset,
        head=options.head,
        fit=options.fit,
        resize=options.resize,
        antialias=options.antialias,
    )


def print_table(table: Table) -> None:
    """Prints a table as plain text, one line per row; see `pipelines.text.render_table`."""
    print_text(render_table(table))
