"""`glassbox look`: what a model sees in single images, as an HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.remote.files import resolve_location
from pipelines.remote.uri import parse_location
from pipelines.text import print_lines
from service.commands.common import (
    CUSTOM_OBJECTS_HELP,
    MODEL_HELP,
    Subparsers,
    add_command,
    add_interpretation_options,
    read_predict_options,
)

DEFAULT_OUT = "look"


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `look` to the command line."""
    parser = add_command(commands, "look", "render what a model sees in single images, as an HTML page", run)
    parser.add_argument("model", metavar="RUN", help=MODEL_HELP)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="an image file, or a folder of images")
    parser.add_argument(
        "--rows",
        metavar="N,...",
        help="instead of images: rows of the validation split of the run's shard set, such as 3,17",
    )
    parser.add_argument(
        "--data", metavar="SHARDS", help="with --rows: the shard set, path or URI (default: that of the run)"
    )
    parser.add_argument(
        "--label",
        metavar="CLASS",
        help="the true class of the images (default: unknown; the page then says nothing about correctness)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="class names (default: those of the model, else class_0, class_1, ...)",
    )
    parser.add_argument(
        "--out",
        default=DEFAULT_OUT,
        metavar="DIR",
        help="directory of the page, or its URI; replaces an older page of this command "
        f"(default: {DEFAULT_OUT}); the report of the run is left as it is",
    )
    parser.add_argument(
        "--single-file", action="store_true", help="embed the pictures in the page, to share it as one file"
    )
    add_interpretation_options(parser)
    parser.add_argument("--custom-objects", nargs="+", default=(), metavar="MODULE", help=CUSTOM_OBJECTS_HELP)


def run(options: argparse.Namespace) -> None:
    """Renders the page, and prints what was inferred and which images were left out.

    Raises:
        GlassboxError: See `service.report.pages.look.render_look` for the conditions.
    """
    from service.inference.jobs import fetch_model
    from service.report.options import LookRequest, PageOptions

    # Before TensorFlow is imported.
    fetch_model(options.model)
    rows = parse_rows(options.rows)
    for image in options.images:
        _check_exists(image)
    request = LookRequest(
        model=options.model,
        images=tuple(options.images),
        rows=rows,
        label=options.label,
        data=None if options.data is None else resolve_location(options.data),
        classes=None if options.classes is None else tuple(options.classes),
        options=read_predict_options(options),
        custom_objects=tuple(options.custom_objects),
    )

    from service.report.pages.look import render_look

    result = render_look(request, resolve_location(options.out), PageOptions(options.single_file))
    print_lines(*result.notes)
    for item in result.rejected:
        print_lines(f"left out: {item.id}: {item.reason}")
    print_lines(f"open {result.page}")


def parse_rows(text: str | None) -> tuple[int, ...]:
    """Parses row numbers, such as `3,17`; none for None.

    Raises:
        ConfigError: This is not a list of row numbers.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError("row numbers, separated by commas", f"rows={text}", "write for example --rows 3,17")
    return tuple(int(part) for part in parts)


def _check_exists(image: str) -> None:
    location = parse_location(image)
    if isinstance(location, Path) and not location.exists():
        raise ConfigError(
            "an image file or a folder of images", f"image={image} (does not exist)", "check the path"
        )
