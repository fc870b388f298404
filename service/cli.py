"""The command line, `glassbox`. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from pipelines.errors import ConfigError, GlassboxError

Command = Callable[[argparse.Namespace], None]
SCALE_HELP = "factor on pixels of 0 to 255 (default: 1 if the model rescales them itself, else 1/255)"
MODEL_HELP = "a .keras file, made here or elsewhere, or a run directory"
TTA_HELP = "flip: ask about every image and its mirror image, and take the mean (default: none)"
WORKERS_HELP = (
    "Ray tasks at a time (default: with RAY_ADDRESS one a CPU of that cluster, else this process alone)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words of the command line; None for the process's own.

    Returns:
        The exit code: 0, or 2 usage and configuration, 3 data, 4 training. A bug of ours keeps its
        traceback and makes Python exit with 1.
    """
    parsed = _parse(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's own greetings drown ours
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipelines").setLevel(logging.INFO)
    try:
        parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except GlassboxError as error:
        print(f"glassbox: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        print(": ".join(["glassbox: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return getattr(interrupt, "exit_code", 130)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `key=value` words may stand anywhere behind `train` and `tune`."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if not hasattr(parsed, "overrides") or any(word.startswith("-") for word in rest):
        parser.parse_args(arguments)  # says what is wrong, if anything
    else:
        parsed.overrides += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "glassbox", description="Train image classifiers, and see what they learned."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('glassbox')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_shards(commands)
    _add_preview(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_report(commands)
    _add_diagnose(commands)
    _add_tune(commands)
    _add(commands, "presets", "list the presets and the results they give", _presets)
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: Command
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_shards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shards = commands.add_parser("shards", help="build, check and describe shard sets").add_subparsers(
        metavar="COMMAND", required=True
    )
    build = _add(shards, "build", "make a shard set from a source", _shards_build)
    build.add_argument(
        "source",
        metavar="SOURCE",
        help="folder:DIR, archive:FILE, synthetic:evidence and others; an unknown one lists all",
    )
    build.add_argument(
        "out", metavar="OUT", help="directory to make; the same command goes on with an interrupted build"
    )
    build.add_argument("--format", metavar="FORMAT", help="arrow or tfrecord (default: arrow)")
    build.add_argument(
        "--encoding", metavar="ENCODING", help="as-found, jpeg:QUALITY, png or raw (default: as-found)"
    )
    build.add_argument(
        "--store-size",
        type=int,
        metavar="PIXELS",
        help="scale larger images to this shorter side (default: as found)",
    )
    build.add_argument("--shard-rows", type=int, metavar="N", help="images per shard (default: 256)")
    build.add_argument(
        "--shard-mb", type=float, metavar="M", help="instead: megabytes per shard, judged by the first images"
    )
    build.add_argument(
        "--validation",
        type=float,
        metavar="SHARE",
        help="held out where the source has no split (default: 0.2)",
    )
    build.add_argument(
        "--check",
        metavar="CHECK",
        help="decode, which proves every image readable, or header (default: decode)",
    )
    build.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="shards in work at a time (default: one a CPU of the cluster)",
    )
    verify = _add(shards, "verify", "check every byte, count and image of a shard set", _shards_verify)
    verify.add_argument("directory", metavar="SHARDS")
    info = _add(shards, "info", "describe a shard set", _shards_info)
    info.add_argument("directory", metavar="SHARDS")


def _add_preview(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    preview = _add(
        commands,
        "preview",
        "show what an augmentation does to training images, as a page for the browser",
        _preview,
    )
    preview.add_argument("shards", metavar="SHARDS")
    preview.add_argument(
        "--preset",
        metavar="NAME",
        help="its size, seed and augmentation (default: demo, which has no augmentation)",
    )
    preview.add_argument(
        "--augment",
        nargs="+",
        default=[],
        metavar="key=value",
        help="change the augmentation: rotation=40 flip=true",
    )
    preview.add_argument("--split", default="train", help="(default: train)")
    for name, default, text in (
        ("rows", 8, "images"),
        ("versions", 4, "epochs of each"),
        ("epoch", 1, "the first epoch"),
    ):
        preview.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    preview.add_argument(
        "--out",
        default="preview",
        metavar="DIR",
        help="directory to make, or an older preview (default: preview)",
    )
    preview.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="change data or seed: data.image_size=[64,64] seed=3",
    )


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = _add(commands, "train", "train a preset on a shard set", _train)
    train.add_argument("--preset", metavar="NAME", help="a name from 'glassbox presets', or a YAML file")
    train.add_argument("--data", metavar="SHARDS", help="the shard set")
    train.add_argument("--out", required=True, metavar="RUN", help="the run directory to make")
    train.add_argument(
        "--resume", action="store_true", help="continue the run at --out from its newest checkpoint"
    )
    train.add_argument(
        "--workers",
        metavar="N",
        help="worker processes, or FEWEST:MOST (default: one, with the whole of the largest node)",
    )
    train.add_argument(
        "--cpus-per-worker", type=int, metavar="C", help="(default: an even share of the cluster)"
    )
    train.add_argument(
        "--gpus-per-worker", type=int, metavar="K", help="(default: an even share of the cluster)"
    )
    train.add_argument(
        "--restarts",
        type=int,
        metavar="N",
        help="lost workers in a row without getting on before it gives up (default: 3)",
    )
    train.add_argument(
        "--on-nan",
        choices=("stop", "skip"),
        help="a gradient that is not finite stops the run, or skips the update",
    )
    train.add_argument("--profile", action="store_true", help="take a TensorFlow profile of updates 10 to 19")
    train.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="change a setting, e.g. epochs=5 optimizer.learning_rate=0.01",
    )


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = _add(commands, "evaluate", "score a model on a shard set", _evaluate)
    evaluate.add_argument("--model", required=True, metavar="FILE", help=MODEL_HELP)
    evaluate.add_argument("--data", required=True, metavar="SHARDS")
    evaluate.add_argument("--split", default="validation", help="(default: validation)")
    evaluate.add_argument("--scale", type=float, help=SCALE_HELP)
    evaluate.add_argument("--tta", default="none", metavar="WHAT", help=TTA_HELP)
    evaluate.add_argument("--workers", type=int, metavar="N", help=WORKERS_HELP)
    evaluate.add_argument("--out", metavar="FILE.json", help="also write the scores to this file")


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    predict = _add(commands, "predict", "write what a model takes images for", _predict)
    predict.add_argument("--model", required=True, metavar="FILE", help=MODEL_HELP)
    predict.add_argument(
        "--data",
        required=True,
        metavar="SHARDS",
        help="a shard set, photos:DIR, folder:DIR, archive:FILE and others",
    )
    predict.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="FILE.parquet or FILE.csv: id, class, probability of each class",
    )
    predict.add_argument("--split", help="(default: all, one after the other)")
    predict.add_argument(
        "--classes", nargs="+", metavar="NAME", help="(default: those of the run; else class_0, class_1, ...)"
    )
    predict.add_argument("--scale", type=float, help=SCALE_HELP)
    predict.add_argument("--tta", default="none", metavar="WHAT", help=TTA_HELP)
    predict.add_argument("--workers", type=int, metavar="N", help=WORKERS_HELP)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = _add(commands, "report", "draw what a model learned, as a page for the browser", _report)
    report.add_argument(
        "directories",
        nargs="*",
        metavar="RUN",
        help="a run directory; the page goes to RUN/report/index.html",
    )
    report.add_argument(
        "--all",
        metavar="RUNS",
        help="instead: finished runs below a directory whose reports are missing or out of date",
    )
    report.add_argument(
        "--compare",
        action="store_true",
        help="instead: several runs, or the checkpoints of one, side by side",
    )
    report.add_argument("--model", metavar="FILE", help="instead of a run: a .keras file made anywhere")
    report.add_argument(
        "--data", metavar="SHARDS", help="the shard set (default: the one the run was trained on)"
    )
    report.add_argument("--out", metavar="DIR", help="with --model or --compare: the directory to make")
    report.add_argument(
        "--single-file", action="store_true", help="put the pictures into the page: one file to send around"
    )
    report.add_argument("--samples", metavar="DIR", help="a folder of other pictures to name")
    report.add_argument(
        "--seed", type=int, help="of everything drawn at random for the pictures (default: 0)"
    )
    report.add_argument(
        "--sheets", metavar="FORMAT", help="of pictures of channels: auto, png, jpeg or webp (default: auto)"
    )
    report.add_argument("--scale", type=float, help=SCALE_HELP)


def _add_diagnose(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    diagnose = _add(
        commands,
        "diagnose",
        "say in words what learning curves show, and which labels the model doubts",
        _diagnose,
    )
    diagnose.add_argument(
        "target", metavar="RUN", help="a run directory, a metrics.jsonl, or a JSON file with Keras histories"
    )
    diagnose.add_argument(
        "--data", metavar="SHARDS", help="the shard set (default: the one the run was trained on)"
    )
    diagnose.add_argument(
        "--images", type=int, metavar="N", help="validation images that a file of metrics was measured on"
    )
    diagnose.add_argument(
        "--labels",
        type=int,
        default=10,
        metavar="N",
        help="doubtful labels to name, 0 to look for none (default: 10)",
    )


def _add_tune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tune = _add(commands, "tune", "search for better settings of a preset, with many short runs", _tune)
    tune.add_argument(
        "preset", nargs="?", metavar="PRESET", help="a name from 'glassbox presets', or a YAML file"
    )
    tune.add_argument(
        "--space",
        metavar="FILE",
        help="YAML: key: {choice: [...]}, {uniform: [a, b]}, {loguniform: [a, b]} or {int: [a, b]}",
    )
    tune.add_argument(
        "--trials", type=int, metavar="N", help="runs, of which the first is the preset as it is"
    )
    tune.add_argument("--data", metavar="SHARDS", help="the shard set")
    tune.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the directory to make; the same command goes on with an interrupted search",
    )
    tune.add_argument(
        "--resume", action="store_true", help="go on with the search at --out, without naming its words again"
    )
    tune.add_argument("--seed", type=int, metavar="N", help="of what is drawn (default: 0)")
    tune.add_argument("--grace", type=int, metavar="N", help="epochs that every trial is given (default: 1)")
    tune.add_argument(
        "--reduction", type=float, metavar="R", help="of so many trials at a rung one goes on (default: 3)"
    )
    tune.add_argument(
        "--cpus-per-trial",
        dest="cpus",
        type=int,
        metavar="C",
        help="(default: 1, or with GPUs an even share)",
    )
    tune.add_argument(
        "--gpus-per-trial", dest="gpus", type=int, metavar="K", help="(default: 1 where there are any)"
    )
    tune.add_argument("--restarts", type=int, metavar="N", help="of a trial whose process died (default: 3)")
    tune.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the preset")


def _shards_build(options: argparse.Namespace) -> None:
    from service.commands.shards import build

    build(options)


def _shards_verify(options: argparse.Namespace) -> None:
    from service.commands.shards import verify

    verify(Path(options.directory))


def _shards_info(options: argparse.Namespace) -> None:
    from pipelines.shards.info import describe

    print(describe(Path(options.directory)))


def _preview(options: argparse.Namespace) -> None:
    from pipelines.spec import AugmentSpec, check
    from service.config import load_config
    from service.report.analysis.augmented import PreviewOptions
    from service.report.pages.preview import render_preview

    words = [f"augment.{word}" for word in options.augment] + options.overrides
    config = load_config(options.preset or "demo", options.shards, words)
    chosen = {name: getattr(options, name) for name in ("split", "epoch", "rows", "versions")} | {
        "seed": config.seed
    }
    shown = check(PreviewOptions, chosen, "the command line")
    page = render_preview(
        Path(options.shards),
        config.data,
        config.augment or AugmentSpec(),
        shown,
        Path(options.out).absolute(),
    )
    print(f"open {page}")


def _train(options: argparse.Namespace) -> None:
    from service.config import load_config
    from service.training.group import WorkerSpec
    from service.training.launch import resume, train

    words = (
        options.overrides
        + ([f"on_nan={options.on_nan}"] if options.on_nan else [])
        + (["profile=true"] if options.profile else [])
    )
    asked = (options.workers, options.cpus_per_worker, options.gpus_per_worker, options.restarts)
    scale = WorkerSpec.read(*asked)
    if options.resume:
        if options.preset or options.data or words:
            raise ConfigError(
                "--resume with --out alone",
                "--preset, --data or key=value beside it",
                "leave these out: a run keeps its own",
            )
        run = resume(options.out, None if asked == (None,) * 4 else scale)
    else:
        if not options.preset or not options.data:
            raise ConfigError(
                "--preset and --data", f"preset={options.preset} data={options.data}", "name both"
            )
        run = train(load_config(options.preset, options.data, words), options.out, scale)
    print(f"finished: {run.path}  (glassbox report {options.out})")


def _evaluate(options: argparse.Namespace) -> None:
    from service.commands.evaluate import evaluate
    from service.inference.classifier import PredictOptions

    asking = PredictOptions(options.scale, options.tta)
    result = evaluate(
        options.model, options.data, options.split, asking=asking, workers=options.workers, out=options.out
    )
    figures = "  ".join(f"{name} {value:.4f}" for name, value in result.figures().items())
    print(f"{figures}  ({result.images} images of split {options.split})")
    print(*filter(None, [result.table(), f"{result.pace}"]), sep="\n")


def _predict(options: argparse.Namespace) -> None:
    from service.commands.predict import predict
    from service.inference.classifier import PredictOptions

    chosen = {name: getattr(options, name) for name in ("split", "classes", "workers")}
    result = predict(
        options.model, options.data, options.out, asking=PredictOptions(options.scale, options.tta), **chosen
    )
    reasons = f" (reasons in {result.rejected_path})" if result.rejected else ""
    print(f"{options.out}: {result.images} images, {result.rejected} rejected{reasons}; {result.pace}")


def _report(options: argparse.Namespace) -> None:
    from service.commands.report import report

    report(options)


def _diagnose(options: argparse.Namespace) -> None:
    from service.commands.diagnose import report_on

    for line in report_on(options.target, options.data, options.images, options.labels):
        print(line)


def _tune(options: argparse.Namespace) -> None:
    from service.tuning.driver import tune
    from service.tuning.plan import plan_of

    print(f"open {tune(plan_of(options), options.out)}")


def _presets(options: argparse.Namespace) -> None:
    from service.config import preset_comment, preset_names

    for name in preset_names():
        print(name, *(f"    {line}" for line in preset_comment(name).splitlines()), sep="\n")
