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
        return 130
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `key=value` words may stand anywhere behind `train`."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if not hasattr(parsed, "overrides") or any(word.startswith("-") for word in rest):
        parser.parse_args(arguments)  # says what is wrong, if anything
    else:
        parsed.overrides += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("glassbox", description="Train image classifiers, and see what they learned.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('glassbox')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_shards(commands)
    _add_preview(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_report(commands)
    _add(commands, "presets", "list the presets and the results they give", _presets)
    return parser


def _add(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: Command) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_shards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shards = commands.add_parser("shards", help="build, check and describe shard sets").add_subparsers(metavar="COMMAND", required=True)
    build = _add(shards, "build", "make a shard set from a source", _shards_build)
    build.add_argument("source", metavar="SOURCE", help="folder:DIR, archive:FILE, synthetic:evidence and others; an unknown one lists all")
    build.add_argument("out", metavar="OUT", help="directory to make; the same command goes on with an interrupted build")
    build.add_argument("--format", metavar="FORMAT", help="arrow or tfrecord (default: arrow)")
    build.add_argument("--encoding", metavar="ENCODING", help="as-found, jpeg:QUALITY, png or raw (default: as-found)")
    build.add_argument("--store-size", type=int, metavar="PIXELS", help="scale larger images to this shorter side (default: as found)")
    build.add_argument("--shard-rows", type=int, metavar="N", help="images per shard (default: 256)")
    build.add_argument("--shard-mb", type=float, metavar="M", help="instead: megabytes per shard, judged by the first images")
    build.add_argument("--validation", type=float, metavar="SHARE", help="held out where the source has no split (default: 0.2)")
    build.add_argument("--check", metavar="CHECK", help="decode, which proves every image readable, or header (default: decode)")
    build.add_argument("--workers", type=int, metavar="N", help="shards in work at a time (default: one a CPU of the cluster)")
    verify = _add(shards, "verify", "check every byte, count and image of a shard set", _shards_verify)
    verify.add_argument("directory", metavar="SHARDS")
    info = _add(shards, "info", "describe a shard set", _shards_info)
    info.add_argument("directory", metavar="SHARDS")


def _add_preview(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    preview = _add(commands, "preview", "show what an augmentation does to training images, as a page for the browser", _preview)
    preview.add_argument("shards", metavar="SHARDS")
    preview.add_argument("--preset", metavar="NAME", help="its size, seed and augmentation (default: demo, which has no augmentation)")
    preview.add_argument("--augment", nargs="+", default=[], metavar="key=value", help="change the augmentation: rotation=40 flip=true")
    preview.add_argument("--split", default="train", help="(default: train)")
    for name, default, text in (("rows", 8, "images"), ("versions", 4, "epochs of each"), ("epoch", 1, "the first epoch")):
        preview.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    preview.add_argument("--out", default="preview", metavar="DIR", help="directory to make, or an older preview (default: preview)")
    preview.add_argument("overrides", nargs="*", metavar="key=value", help="change data or seed: data.image_size=[64,64] seed=3")


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = _add(commands, "train", "train a preset on a shard set", _train)
    train.add_argument("--preset", metavar="NAME", help="a name from 'glassbox presets', or a YAML file")
    train.add_argument("--data", metavar="SHARDS", help="the shard set")
    train.add_argument("--out", required=True, metavar="RUN", help="the run directory to make")
    train.add_argument("--resume", action="store_true", help="continue the run at --out from its newest checkpoint")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting, e.g. epochs=5 optimizer.learning_rate=0.01")


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = _add(commands, "evaluate", "score a model on a shard set", _evaluate)
    evaluate.add_argument("--model", required=True, metavar="FILE", help="a .keras file, made here or elsewhere, or a run directory")
    evaluate.add_argument("--data", required=True, metavar="SHARDS")
    evaluate.add_argument("--split", default="validation", help="(default: validation)")
    evaluate.add_argument("--scale", type=float, help=SCALE_HELP)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = _add(commands, "report", "draw what a model learned, as a page for the browser", _report)
    report.add_argument("directory", nargs="?", metavar="RUN", help="a run directory; the page goes to RUN/report/index.html")
    report.add_argument("--model", metavar="FILE", help="instead of a run: a .keras file made anywhere")
    report.add_argument("--data", metavar="SHARDS", help="the shard set (default: the one the run was trained on)")
    report.add_argument("--out", metavar="DIR", help="with --model: the directory to make")
    report.add_argument("--scale", type=float, help=SCALE_HELP)


def _shards_build(options: argparse.Namespace) -> None:
    from service.shards_commands import build

    build(options)


def _shards_verify(options: argparse.Namespace) -> None:
    from service.shards_commands import verify

    verify(Path(options.directory))


def _shards_info(options: argparse.Namespace) -> None:
    from pipelines.shards.info import describe

    print(describe(Path(options.directory)))


def _preview(options: argparse.Namespace) -> None:
    from pipelines.spec import AugmentSpec, check
    from service.config import load_config
    from service.report.preview import PreviewOptions, render_preview

    words = [f"augment.{word}" for word in options.augment] + options.overrides
    config = load_config(options.preset or "demo", options.shards, words)
    chosen = {name: getattr(options, name) for name in ("split", "epoch", "rows", "versions")} | {"seed": config.seed}
    shown = check(PreviewOptions, chosen, "the command line")
    page = render_preview(Path(options.shards), config.data, config.augment or AugmentSpec(), shown, Path(options.out).absolute())
    print(f"open {page}")


def _train(options: argparse.Namespace) -> None:
    from service.config import load_config
    from service.training.launch import resume, train

    if options.resume:
        if options.preset or options.data or options.overrides:
            raise ConfigError(
                "--resume with --out alone", "--preset, --data or key=value beside it", "leave these out: a run keeps its own"
            )
        run = resume(options.out)
    else:
        if not options.preset or not options.data:
            raise ConfigError("--preset and --data", f"preset={options.preset} data={options.data}", "name both")
        run = train(load_config(options.preset, options.data, options.overrides), options.out)
    print(f"finished: {run.path}  (glassbox report {options.out})")


def _evaluate(options: argparse.Namespace) -> None:
    from service.evaluate import evaluate

    result = evaluate(options.model, options.data, options.split, options.scale)
    print(f"accuracy {result.accuracy:.4f}  loss {result.loss:.4f}  ({len(result.labels)} images of split {options.split})")


def _report(options: argparse.Namespace) -> None:
    if not options.directory and not options.model:
        raise ConfigError("a run, or --model", "neither", "write 'glassbox report RUN', or --model FILE --data SHARDS --out DIR")
    if options.directory and (options.model or options.out):
        raise ConfigError(
            "a run alone", f"run={options.directory} with --model or --out", "leave one of them out: its page goes into the run"
        )
    if options.model and not (options.data and options.out):
        raise ConfigError("--data and --out beside --model", f"data={options.data} out={options.out}", "name both")

    from pipelines.spec import check
    from service.report.job import render_model_report, render_report
    from service.report.subject import ReportOptions
    from service.runs import Run

    shown = check(ReportOptions, {"scale": options.scale}, "the command line")
    data = Path(options.data) if options.data else None
    if options.directory:
        page = render_report(Run(options.directory), data, shown)
    else:
        page = render_model_report(Path(options.model), Path(options.data), Path(options.out).absolute(), shown)
    print(f"open {page}")


def _presets(options: argparse.Namespace) -> None:
    from service.config import preset_comment, preset_names

    for name in preset_names():
        print(name, *(f"    {line}" for line in preset_comment(name).splitlines()), sep="\n")
