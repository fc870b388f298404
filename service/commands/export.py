"""`glassbox export`: a model for programs without Keras, with preprocessing and class names inside."""

from __future__ import annotations

import argparse

from pipelines.remote.files import resolve_location
from pipelines.text import print_lines
from service.commands.common import (
    CUSTOM_OBJECTS_HELP,
    MODEL_HELP,
    Subparsers,
    add_command,
    add_interpretation_options,
    read_predict_options,
)
from service.export.formats import FORMATS
from service.export.job import FOLDER, ExportRequest, export_model


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `export` to the command line."""
    parser = add_command(
        commands,
        "export",
        "export a model with its preprocessing and class names",
        run,
    )
    parser.add_argument("model", metavar="RUN", help=MODEL_HELP)
    parser.add_argument(
        "--format",
        default="savedmodel",
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (default: savedmodel); onnx needs the extra onnx",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help=f"directory to create, path or URI (default: {FOLDER}/NAME-FORMAT)",
    )
    parser.add_argument(
        "--fitted",
        action="store_true",
        help="leave out the entry for images of any size, for runtimes that need fixed shapes: the exported "
        "model then takes only images that have been fitted to its size",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="class names (default: those of the model, else class_0, class_1, ...)",
    )
    add_interpretation_options(parser)
    parser.add_argument("--custom-objects", nargs="+", default=(), metavar="MODULE", help=CUSTOM_OBJECTS_HELP)


def run(options: argparse.Namespace) -> None:
    """Exports the model, and prints how it was interpreted and how far its answers differ from the model's.

    Raises:
        GlassboxError: See `service.export.job.export_model` for the conditions.
    """
    request = ExportRequest(
        model=resolve_location(options.model),
        format=options.format,
        is_fitted=options.fitted,
        classes=None if options.classes is None else tuple(options.classes),
        options=read_predict_options(options),
        custom_objects=tuple(options.custom_objects),
    )
    result = export_model(request, None if options.out is None else resolve_location(options.out))
    print_lines(*result.notes)
    comparison = result.comparison
    print_lines(
        f"compared with the model on {comparison.images} images: "
        f"probabilities differ by at most {comparison.largest:.2g}"
    )
    print_lines(f"{result.file}, described in {result.card}")
