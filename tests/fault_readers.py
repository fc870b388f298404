"""The commands that read what `fault_matrix` damages, and what of their results is compared."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import re
import shutil
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from aiohttp import ClientSession, web

from pipelines.errors import GlassboxError
from pipelines.shards.build import build_shards
from pipelines.sources import open_source
from pipelines.spec import ShardSpec
from service.cli import main
from service.failures import translate_failures
from service.report.batch import FAILED, report_all
from service.report.job import render_report
from service.report.options import ReportOptions
from service.report.server import ReportServer
from service.runs import Run

SET_URI = "s3://matrix/shards"
SHARD_SPEC = ShardSpec(shard_rows=4)  # of builds
SMALL_REPORT = ReportOptions(
    training_images=2,
    predictions=2,
    activation_images=0,
    heatmap_images=0,
    patterns=0,
    trust_images=0,
    layer_times=False,
)


@dataclass(frozen=True)
class Result:
    """What a command did.

    Attributes:
        code: Its exit code; 1 for an exception.
        output: What it printed, with the traceback of an exception.
        observed: What it found or made, to be compared; empty if it failed.
    """

    code: int
    output: str
    observed: str


def run_command(words: list[object], observe: Callable[[str], str]) -> Result:
    """Runs a command of the command line in this process.

    Args:
        words: Its arguments.
        observe: Returns what is compared, from what the command printed.
    """
    return capture(lambda: main([str(word) for word in words]), observe)


def capture(call: Callable[[], int], observe: Callable[[str], str]) -> Result:
    """Runs a call, and captures what it prints."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger("service").addHandler(handler)
    try:
        with redirect_stdout(text), redirect_stderr(text):
            code = call()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - an exception is what the matrix looks for
        return Result(1, f"{text.getvalue()}\n{type(error).__name__}: {error}\n{traceback.format_exc()}", "")
    finally:
        logging.getLogger("service").removeHandler(handler)
    return Result(code, text.getvalue(), "" if code else observe(text.getvalue()))


def keep_lines(output: str) -> str:
    """Returns what was printed, without numbers that are times or rates."""
    return re.sub(r"[0-9.,]+ ?(s|ms|seconds|images/s|minutes)\b", "T", output)


def diagnose(folder: Path) -> Result:
    return run_command(["diagnose", folder / "run"], keep_lines)


def evaluate(folder: Path, shards: str = "shards") -> Result:
    words = ["evaluate", "--model", folder / "run", "--data", folder / shards]
    return run_command([*words, "--out", folder / "scores.json"], keep_lines)


def predict(folder: Path) -> Result:
    table = folder / "table.csv"
    words = ["predict", "--model", folder / "run", "--data", f"photos:{folder / 'photos'}", "--out", table]
    return run_command(words, lambda output: table.read_text())


def run_function(call: Callable[[], int], observe: Callable[[str], str]) -> Result:
    """Runs a function of ours in place of a command; its errors are printed as the command would."""

    def print_errors() -> int:
        try:
            with translate_failures():
                return call()
        except GlassboxError as error:
            print(error)
            return error.exit_code

    return capture(print_errors, observe)


def report(folder: Path) -> Result:
    def render() -> int:
        render_report(Run(folder / "run"), options=SMALL_REPORT)
        return 0

    return run_function(render, lambda output: describe_report(folder / "run" / "report"))


def report_runs(folder: Path) -> Result:
    """Renders what is out of date, and the index page of all runs."""
    root = folder / "reports"

    def render() -> int:
        failed = [outcome for outcome in report_all(root, SMALL_REPORT) if outcome.state == FAILED]
        for outcome in failed:
            print(outcome.message)
        return 4 if failed else 0

    def observe(output: str) -> str:
        return (root / "index.html").read_text() + describe_report(root / "first" / "report")

    return run_function(render, observe)


def serve(folder: Path) -> Result:
    """Requests every file of the reports from the web server. It refuses a file with the status 404."""
    root = folder / "reports"
    report = root / "first" / "report"
    names = [path.relative_to(root).as_posix() for path in sorted(report.rglob("*.*"))]
    statuses = asyncio.run(request_files(root, ["index.html", *names]))
    refused = [f"{name} ({status})" for name, status in statuses.items() if status != 200]
    if any(status >= 500 for status in statuses.values()):
        return Result(1, f"Traceback of the server: {refused}", "")
    if refused:
        return Result(3, f"Expected every file. Received: {', '.join(refused)}. Fix: render it again.", "")
    return Result(0, "", str(list(statuses)))


async def request_files(root: Path, names: list[str]) -> dict[str, int]:
    """Requests files from a web server of reports; returns the status of each."""
    statuses = {}
    runner = web.ServerRunner(ReportServer(root.resolve()))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with ClientSession() as client:
            for name in names:
                async with client.get(f"{address}/{name}") as response:
                    statuses[name] = response.status
                    await response.content.read(1)  # closing the connection ends the rest
                    response.close()
    finally:
        await runner.cleanup()
    return statuses


def describe_report(folder: Path) -> str:
    """Returns the figures of a report, without what a status alone tells."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return json.dumps(manifest["figures"], sort_keys=True)


def resume(folder: Path) -> Result:
    words = ["train", "--resume", "--local", "--out", folder / "run"]
    return run_command(words, lambda output: describe_end(Run(folder / "run")))


def describe_end(run: Run) -> str:
    """Returns the metrics of a run and a digest of the last weights."""
    digest = hashlib.sha256()
    with np.load(run.checkpoints / "epoch-0004" / "state.npz") as state:
        for name in sorted(state.files):
            digest.update(state[name].tobytes())
    measured = ("seconds", "images_per_second", "input_wait")
    metrics = [{key: value for key, value in epoch.items() if key not in measured} for epoch in run.metrics()]
    return f"{metrics} {digest.hexdigest()}"


def verify(folder: Path, shards: str = "shards") -> Result:
    return run_command(["shards", "verify", folder / shards], keep_lines)


def describe(folder: Path) -> Result:
    return run_command(["shards", "info", folder / "shards"], keep_lines)


def check(folder: Path, shards: str = "shards") -> Result:
    return run_command(["shards", "check", folder / shards], keep_lines)


def build(folder: Path) -> Result:
    """Finishes a build, and verifies what it has made."""

    def finish() -> int:
        build_shards(open_source(f"folder:{folder / 'classes'}"), folder / "build", SHARD_SPEC)
        return main(["shards", "verify", str(folder / "build")])

    return run_function(finish, lambda output: describe_files(folder / "build"))


def describe_files(folder: Path) -> str:
    """Returns the digests of all files in a folder."""
    files = sorted(folder.rglob("*"))
    return "\n".join(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files)


def look(folder: Path) -> Result:
    words = ["look", folder / "run", folder / "photos" / "a.png", "--out", folder / "look"]
    return run_command(words, lambda output: describe_report(folder / "look"))


def preview(folder: Path) -> Result:
    page = folder / "preview"
    return run_command(
        ["preview", folder / "shards", "--augment", "flip=true", "--out", page],
        lambda output: (page / "index.html").read_text(),
    )


def tune(folder: Path) -> Result:
    """Resumes a search that has ended: the table and the preset of the best trial are written again."""
    words = ["tune", "--resume", "--out", folder / "search"]
    return run_command(words, lambda output: (folder / "search" / "best.yaml").read_text())


def train_best(folder: Path) -> Result:
    """Trains with the preset that a search has found."""
    shutil.rmtree(folder / "best", ignore_errors=True)
    words = ["train", "--local", "--preset", folder / "search" / "best.yaml", "--data", folder / "shards"]
    return run_command(
        [*words, "--out", folder / "best"], lambda output: (folder / "best" / "config.yaml").read_text()
    )


def evaluate_from_store(folder: Path) -> Result:
    return run_command(["evaluate", "--model", folder / "run", "--data", SET_URI], keep_lines)


def show_cache(folder: Path) -> Result:
    """Lists what is in the cache, so that nothing can be compared: files of the size that they have now."""
    return run_command(["cache", "info"], lambda output: "")


COMMANDS: dict[str, Callable[[Path], Result]] = {
    "diagnose": diagnose,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "report --all": report_runs,
    "serve": serve,
    "resume": resume,
    "verify": verify,
    "info": describe,
    "check": check,
    "verify TFRecord": partial(verify, shards="tfrecord"),
    "check TFRecord": partial(check, shards="tfrecord"),
    "evaluate TFRecord": partial(evaluate, shards="tfrecord"),
    "build": build,
    "look": look,
    "preview": preview,
    "tune": tune,
    "train": train_best,
    "evaluate from a store": evaluate_from_store,
    "cache": show_cache,
}
READERS = {
    "run": ("diagnose", "evaluate", "predict", "report", "resume", "look"),
    "shards": ("verify", "info", "check", "evaluate", "diagnose", "report", "resume", "preview"),
    "tfrecord": ("verify TFRecord", "check TFRecord", "evaluate TFRecord"),
    "build": ("build",),
    "search": ("tune", "train"),
    "cache": ("evaluate from a store", "cache"),
    "reports": ("report --all", "serve"),
}
WRITES = {
    "report": ("run/report/", "run/.report.lock"),
    "report --all": ("reports/",),
    "resume": ("run/",),
    "build": ("build/",),
    "tune": ("search/best.yaml", "search/index.html", "search/.lock", "search/trials/trial-000/"),
    "evaluate from a store": ("cache/",),
    "cache": ("cache/shards/users/",),  # of passes that have ended
}
# Files that a command may change although it ends with an error
WRITES_WHEN_REFUSED = {
    "report": ("run/.report.lock",),
    "report --all": ("reports/index.html", "reports/.reports.lock", "reports/first/.report.lock"),
    "resume": ("run/status.json", "run/.", "run/events/"),
    "build": ("build/.building/",),
    "tune": ("search/.lock", "search/index.html"),
    "evaluate from a store": ("cache/",),
    "cache": ("cache/shards/users/",),
}
