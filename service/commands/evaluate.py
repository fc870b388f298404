"""`glassbox evaluate`: scores of a model on a shard set or a source with labels."""

from __future__ import annotations

import argparse

from pipelines.text import print_lines
from service.commands.common import (
    MODEL_HELP,
    Subparsers,
    add_command,
    add_inference_options,
    add_source_options,
    print_table,
    read_predict_options,
)


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `evaluate` to the command line."""
    parser = add_command(commands, "evaluate", "evaluate a model on a shard set or a source", run)
    parser.add_argument("--model", required=True, metavar="FILE", help=MODEL_HELP)
    parser.add_argument(
        "--data",
        required=True,
        metavar="SHARDS",
        help="a shard set (path or URI), folder:DIR, csv:FILE and others",
    )
    parser.add_argument(
        "--split", default="validation", metavar="SPLIT", help="split to evaluate (default: validation)"
    )
    add_inference_options(parser)
    add_source_options(parser)
    parser.add_argument(
        "--classes", metavar="FILE", help="file with a class name per line, in the order of a source's labels"
    )
    parser.add_argument("--out", metavar="FILE.json", help="also write the scores to this file; path or URI")


def run(options: argparse.Namespace) -> None:
    """Evaluates the model, and prints how it was interpreted, its scores and its confusion matrix.

    Raises:
        GlassboxError: See `service.inference.evaluate.evaluate` for the conditions.
    """
    from pipelines.sources.options import SourceOptions, read_class_names
    from service.devices import configure_devices
    from service.inference.evaluate import evaluate
    from service.inference.jobs import uses_cluster

    if uses_cluster(options.workers):
        configure_devices(use_gpu=False)
    names = None if options.classes is None else read_class_names(options.classes)
    evaluation = evaluate(
        options.model,
        options.data,
        options.split,
        options=read_predict_options(options, options.tta),
        workers=options.workers,
        custom_objects=options.custom_objects,
        out=options.out,
        source_options=SourceOptions(options.splits, options.columns, names),
    )
    print_lines(*evaluation.notes)
    scores = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.figures().items())
    print_lines(f"{scores}  ({evaluation.images} images of split {options.split})")
    table = evaluation.confusion_table()
    if table is not None:
        print_table(table)
    print_lines(str(evaluation.throughput))
