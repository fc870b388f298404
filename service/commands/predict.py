"""`glassbox predict`: the predictions of a model as a table."""

from __future__ import annotations

import argparse

from pipelines.text import print_lines
from service.commands.common import (
    MODEL_HELP,
    Subparsers,
    add_command,
    add_inference_options,
    add_source_options,
    read_predict_options,
)


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `predict` to the command line."""
    parser = add_command(commands, "predict", "predict the class of every image, as a table", run)
    parser.add_argument("--model", required=True, metavar="FILE", help=MODEL_HELP)
    parser.add_argument(
        "--data",
        required=True,
        metavar="SHARDS",
        help="a shard set (path or URI), photos:DIR, folder:DIR, archive:FILE and others",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="FILE.parquet or FILE.csv, path or URI: id, class, probability of each class",
    )
    parser.add_argument(
        "--split", metavar="SPLIT", help="split to predict (default: all, one after the other)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="class names (default: those of the model, else class_0, class_1, ...)",
    )
    add_inference_options(parser)
    add_source_options(parser)


def run(options: argparse.Namespace) -> None:
    """Writes the table, and prints how the model was interpreted and how many images the table covers.

    Raises:
        GlassboxError: See `service.inference.predict.predict` for the conditions.
    """
    from pipelines.sources import SourceOptions
    from service.devices import configure_devices
    from service.inference.jobs import uses_cluster
    from service.inference.predict import predict

    if uses_cluster(options.workers):
        configure_devices(use_gpu=False)
    summary = predict(
        options.model,
        options.data,
        options.out,
        split=options.split,
        classes=options.classes,
        options=read_predict_options(options, options.tta),
        workers=options.workers,
        custom_objects=options.custom_objects,
        source_options=SourceOptions(options.splits, options.columns),
    )
    print_lines(*summary.notes)
    reasons = f" (reasons in {summary.rejected_path})" if summary.rejected else ""
    print_lines(
        f"{options.out}: {summary.images} images, {summary.rejected} rejected{reasons}; {summary.throughput}"
    )
