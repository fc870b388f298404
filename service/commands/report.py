"""`glassbox report`: the HTML report of a run, of a model, of all runs, or a comparison of runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, TrainingError
from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location, parse_location
from pipelines.shards.manifest import load_manifest
from pipelines.text import print_lines
from service.commands.common import (
    CUSTOM_OBJECTS_HELP,
    Subparsers,
    add_command,
    add_interpretation_options,
    read_predict_options,
)
from service.inference.jobs import fetch_model, find_model_file
from service.mirror.fetch import fetch_run
from service.runs import REPORT, Run

if TYPE_CHECKING:
    from service.report.options import ReportOptions

USAGE = (
    "write 'glassbox report RUN', '--all RUNS', 'RUN_A RUN_B --compare', "
    "'--model FILE --data SHARDS --out DIR' or '--model A --model B --data SHARDS --compare'"
)
DEFAULT_COMPARISON = "compare"  # directory of a comparison without --out


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `report` to the command line."""
    parser = add_command(commands, "report", "render what a model learned, as an HTML report", run)
    parser.add_argument(
        "directories",
        nargs="*",
        metavar="RUN",
        help="a run directory, path or URI; the report goes to RUN/report/index.html",
    )
    parser.add_argument(
        "--all",
        metavar="RUNS",
        help="all finished runs below a directory or URI whose reports are missing or out of date",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare several runs or models on the same images, or the checkpoints of one run",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FILE",
        help="a model file made anywhere, path or URI, instead of a run; with --compare, once for each model",
    )
    parser.add_argument(
        "--data", metavar="SHARDS", help="the shard set, path or URI (default: that of the run)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="with --model or --compare: the directory to create, path or URI; "
        "with --all: where the reports go, such as another bucket (default: into the runs)",
    )
    parser.add_argument(
        "--single-file", action="store_true", help="embed the pictures in the page, to share it as one file"
    )
    parser.add_argument("--samples", metavar="DIR", help="a folder of other pictures to predict")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything sampled (default: 0)")
    parser.add_argument(
        "--sheets",
        metavar="FORMAT",
        help="format of feature-map sheets: auto, png, jpeg or webp (default: auto)",
    )
    parser.add_argument(
        "--embedding",
        metavar="METHOD",
        help="method of the map of the images: pca, or tsne, which needs scikit-learn (default: pca)",
    )
    parser.add_argument(
        "--checkpoints",
        type=int,
        metavar="N",
        help="number of checkpoints of a run that are shown (default: 4: first, middle, best, last)",
    )
    add_interpretation_options(parser)
    parser.add_argument(
        "--custom-objects",
        nargs="+",
        default=(),
        metavar="MODULE",
        help=f"with --model: {CUSTOM_OBJECTS_HELP}",
    )


def run(options: argparse.Namespace) -> None:
    """Renders the report or reports that the options ask for.

    Raises:
        ConfigError: The options contradict each other; see `service.report.job` for the rest.
        DataError: A shard set is damaged.
        TrainingError: With `--all`: a report could not be rendered. The others were.
    """
    _check_options(options)
    _check_inputs(options)
    if options.all:
        _report_all(options)
    elif options.compare:
        _compare(options)
    elif options.directories:
        _report_run(options)
    else:
        _report_model(options)


def _check_options(options: argparse.Namespace) -> None:
    runs = options.directories
    models = options.model
    kinds = [bool(runs), bool(models), bool(options.all)]
    is_mixed = options.compare and not options.all  # runs and models can be compared with each other
    if not any(kinds) or (kinds.count(True) > 1 and not is_mixed):
        given = [*runs, *(f"--model {model}" for model in models)]
        if options.all:
            given.append(f"--all {options.all}")
        raise ConfigError("one of: runs, --model, --all", " ".join(given) or "none of them", USAGE)
    if models and not options.compare and not (options.data and options.out):
        raise ConfigError(
            "--data and --out with --model", f"data={options.data} out={options.out}", "name both"
        )
    if options.compare:
        _check_comparison(options)
    if len(models) > 1 and not options.compare:
        received = f"model={' '.join(models)}"
        raise ConfigError("one model, or --compare", received, "name one, or add --compare")
    if len(runs) > 1 and not options.compare:
        raise ConfigError(
            "one run, or --compare",
            f"runs={' '.join(runs)}",
            "name one, add --compare, or use --all for the directory above them",
        )
    if options.out and runs and not options.compare:
        raise ConfigError(
            "a run without --out",
            f"run={' '.join(runs)} out={options.out}",
            "leave --out out: the report of a run is written into the run; with --all it can go elsewhere",
        )
    if options.custom_objects and not models:
        raise ConfigError(
            "--custom-objects with --model",
            f"custom-objects={' '.join(options.custom_objects)}",
            "leave it out: a run has the code of its model",
        )
    if options.all and options.data:
        raise ConfigError(
            "--all without --data", f"data={options.data}", "leave --data out: every run knows its shard set"
        )


def _check_comparison(options: argparse.Namespace) -> None:
    compared = [*options.directories, *options.model]
    if not compared:
        raise ConfigError("runs or models with --compare", "none", USAGE)
    if options.model and len(compared) < 2:
        received = f"model={' '.join(options.model)}"
        raise ConfigError("at least two models or runs with --compare", received, "name another one")
    if options.model and not options.data:
        raise ConfigError("--data with --model", "data=None", "name the shard set to compare models on")


def _check_inputs(options: argparse.Namespace) -> None:
    """Checks that runs, model and shard set exist, before TensorFlow is imported."""
    for directory in options.directories:
        location = parse_location(directory)
        if isinstance(location, Path):
            Run(location).check_has_model()
        else:
            fetch_run(location).config()
    root = parse_location(options.all or "")
    if options.all and isinstance(root, Path) and not root.is_dir():
        received = f"all={options.all} (no such directory)"
        raise ConfigError("a directory that holds runs", received, "name the directory above the runs")
    for model in options.model:
        fetch_model(model)
    if options.data:
        load_manifest(options.data)


def _read_options(options: argparse.Namespace) -> ReportOptions:
    from pipelines.spec import check
    from service.report.options import ReportOptions

    read_predict_options(options)  # checks them together
    names = (
        "scale",
        "offset",
        "head",
        "fit",
        "resize",
        "antialias",
        "samples",
        "seed",
        "sheets",
        "embedding",
        "checkpoints",
    )
    settings = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in settings.items() if value is not None}
    if "samples" in given:
        given["samples"] = _find_samples(given["samples"])
    return check(ReportOptions, given, "the command line")


def _find_samples(text: str) -> Path:
    """Returns the absolute path of the samples, because Ray workers have another working directory."""
    location = parse_location(text)
    if isinstance(location, Path):
        return location.absolute()
    raise ConfigError(
        "a local folder of pictures", f"samples={location}", "copy them to a folder, and name that"
    )


def _find_data(options: argparse.Namespace) -> Location | None:
    return parse_location(options.data) if options.data else None


def _report_run(options: argparse.Namespace) -> None:
    report_options = _read_options(options)

    from service.report.job import render_reported_run
    from service.report.options import PageOptions
    from service.report.reported import ReportedRun
    from service.report.watch import show_report_progress

    location = resolve_location(options.directories[0])
    reported = ReportedRun(location.name, location, location / REPORT)
    page_options = PageOptions(options.single_file)
    with show_report_progress() as update:
        page = render_reported_run(reported, _find_data(options), report_options, page_options, update)
    print_lines(f"open {page}")


def _report_model(options: argparse.Namespace) -> None:
    report_options = _read_options(options)

    from service.report.job import render_model_report
    from service.report.options import PageOptions

    page = render_model_report(
        fetch_model(options.model[0]),
        parse_location(options.data),
        resolve_location(options.out),
        report_options,
        PageOptions(options.single_file),
        options.custom_objects,
    )
    print_lines(f"open {page}")


def _report_all(options: argparse.Namespace) -> None:
    report_options = _read_options(options)

    from service.report.batch import FAILED, format_summary, report_all
    from service.report.watch import show_batch_progress

    root = resolve_location(options.all)
    out = resolve_location(options.out) if options.out else None
    with show_batch_progress() as observer:
        outcomes = report_all(root, report_options, options.single_file, observer, out)
    print_lines(format_summary(outcomes))
    failed = [outcome.name for outcome in outcomes if outcome.state == FAILED]
    if failed:
        raise TrainingError(
            "a report of every finished run", f"failed={', '.join(failed)}", "see the reason for each above"
        )
    print_lines(f"open {(out or root) / 'index.html'}")


def _open_run(directory: str) -> Run:
    """Returns a run directory, or a local copy of what a report shows of a run in a store."""
    from service.report.reported import PARTS

    location = parse_location(directory)
    return Run(location) if isinstance(location, Path) else fetch_run(location, PARTS)


def _compare(options: argparse.Namespace) -> None:
    report_options = _read_options(options)

    from service.report.options import PageOptions
    from service.report.pages.comparison import render_comparison

    page = render_comparison(
        [_open_run(directory) for directory in options.directories],
        resolve_location(options.out or DEFAULT_COMPARISON),
        _find_data(options),
        report_options,
        PageOptions(options.single_file),
        [find_model_file(fetch_model(model)) for model in options.model],
        options.custom_objects,
    )
    print_lines(f"open {page}")
