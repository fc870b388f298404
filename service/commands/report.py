"""What `glassbox report` does and says. Heavy libraries are imported once the words of the command are known to fit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, TrainingError
from pipelines.spec import check

WAYS = "write 'glassbox report RUN', '--all RUNS', 'RUN_A RUN_B --compare' or '--model FILE --data SHARDS --out DIR'"
COMPARISON = "compare"  # where a comparison goes if nobody says


def report(options: argparse.Namespace) -> None:
    """Makes the report of a run, of a model made elsewhere, of all runs below a directory, or a comparison of runs.

    Raises:
        ConfigError: The words of the command do not fit together; see `service.report.job` for the rest.
        DataError: A shard set is damaged.
        TrainingError: With `--all`: a report could not be made. The others are.
    """
    _check_words(options)
    if options.all:
        _report_all(options)
    elif options.compare:
        _compare(options)
    else:
        _report_one(options)


def _check_words(options: argparse.Namespace) -> None:
    runs, model = options.directories, options.model
    ways = [bool(runs), bool(model), bool(options.all)]
    if sum(ways) != 1:
        found = " ".join(
            [
                *runs,
                *([f"--model {model}"] if model else []),
                *([f"--all {options.all}"] if options.all else []),
            ]
        )
        raise ConfigError("one of: runs, --model, --all", found or "neither", WAYS)
    if model and not (options.data and options.out):
        raise ConfigError(
            "--data and --out beside --model", f"data={options.data} out={options.out}", "name both"
        )
    if options.compare and not runs:
        raise ConfigError("runs beside --compare", "none", WAYS)
    if len(runs) > 1 and not options.compare:
        raise ConfigError(
            "one run, or --compare",
            f"runs={' '.join(runs)}",
            "name one, add --compare, or use --all for the directory above them",
        )
    if options.out and not model and not options.compare:
        raise ConfigError(
            "a run alone",
            f"run={' '.join(runs) or options.all} with --out",
            "leave --out out: a run's page goes into the run",
        )
    if options.all and options.data:
        raise ConfigError(
            "--all alone", f"data={options.data}", "leave --data out: every run knows its own shard set"
        )


def _options(options: argparse.Namespace) -> Any:
    from service.report.options import ReportOptions

    asked = {
        name: value
        for name in ("scale", "samples", "seed", "sheets")
        if (value := getattr(options, name)) is not None
    }
    if "samples" in asked:
        asked["samples"] = Path(asked["samples"]).absolute()  # workers run elsewhere
    return check(ReportOptions, asked, "the command line")


def _report_one(options: argparse.Namespace) -> None:
    from service.report.job import Form, render_model_report, render_report
    from service.report.watch import steps
    from service.runs import Run

    shown, form, data = (
        _options(options),
        Form(options.single_file),
        Path(options.data) if options.data else None,
    )
    if options.directories:
        with steps() as tell:
            page = render_report(Run(options.directories[0]), data, shown, form, tell)
    else:
        page = render_model_report(
            Path(options.model), Path(options.data), Path(options.out).absolute(), shown, form
        )
    print(f"open {page}")


def _report_all(options: argparse.Namespace) -> None:
    from service.report.batch import FAILED, report_all, summary_line
    from service.report.watch import watching

    root = Path(options.all).absolute()
    with watching() as watcher:
        outcomes = report_all(root, _options(options), options.single_file, watcher)
    print(summary_line(outcomes))
    failed = [outcome.name for outcome in outcomes if outcome.state == FAILED]
    if failed:
        raise TrainingError(
            "a report of every finished run", f"failed={', '.join(failed)}", "see what is said of each above"
        )
    print(f"open {root / 'index.html'}")


def _compare(options: argparse.Namespace) -> None:
    from service.report.job import Form
    from service.report.pages.comparison import render_comparison
    from service.runs import Run

    runs = [Run(directory) for directory in options.directories]
    data = Path(options.data) if options.data else None
    page = render_comparison(
        runs, Path(options.out or COMPARISON).absolute(), data, _options(options), Form(options.single_file)
    )
    print(f"open {page}")
