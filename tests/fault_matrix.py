"""Damages every file of a run, a shard set, a search and a cache in nine ways, and runs its readers.

A command may do its work as if nothing had happened, or end in one sentence. It may neither show a traceback,
nor give another result without a word, nor change any other file.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from shard_samples import encode_png
from stores import get_client_environment, run_s3_server
from tiny_models import register_tiny_models
from training_samples import config_for, fit_run, noise_shards

from pipelines.cluster import ray_session
from pipelines.errors import GlassboxError
from service.cli import main
from service.failures import translate_failures
from service.report.job import render_report
from service.report.options import ReportOptions
from service.runs import Run

logging.getLogger("tensorflow").setLevel(logging.ERROR)  # warns of models that are compiled again and again
HUGE_BYTES = 1 << 36  # 64 GiB without a block on disk
MEMORY_BYTES = 1 << 34  # that a command may use: one that reads a huge file into memory fails
RUN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "layers.jsonl",
    "data.json",
    "status.json",
    "model.keras",
    "checkpoints/epoch-0003/checkpoint.json",
    "checkpoints/epoch-0003/state.npz",
    "milestones/epoch-0001.npz",
    "report/manifest.json",
    "report/index.html",
)
SET_FILES = (
    "manifest.json",
    "train-00000.arrow",
    "train.rows.arrow",
    "train.shards.arrow",
    "validation-00000.arrow",
    "validation.rows.arrow",
    "validation.shards.arrow",
)
SEARCH_FILES = (
    "tuning.yaml",
    "best.yaml",
    "index.html",
    "trials/trial-000/config.yaml",
    "trials/trial-000/metrics.jsonl",
    "trials/trial-000/status.json",
    "trials/trial-000/model.keras",
)
# Patterns, because the names contain digests
CACHE_FILES = (
    "shards/sets/*/*-validation-00000.arrow",
    "shards/sets/*/*-validation.rows.arrow",
    "shards/sets/*/*-validation.shards.arrow",
    "shards/sets/*/fetched.json",
    "shards/sets/*/location",
)
FOLDERS = {"run": RUN_FILES, "shards": SET_FILES, "search": SEARCH_FILES, "cache": CACHE_FILES}
PRESET = """model: linear
data: {image_size: [12, 12]}
optimizer: {name: adam, learning_rate: 1.0e-3}
global_batch: 9
epochs: 2
"""
SPACE = "optimizer.learning_rate: {loguniform: [1.0e-13, 1.0e-12]}\n"  # at these rates, nothing is learned
SET_URI = "s3://matrix/shards"
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
class Case:
    """One damage, and a command that meets it.

    Attributes:
        folder: Folder of the damaged file, a key of `FOLDERS`.
        file: Path of the damaged file in the folder, or a pattern that fits no other.
        damage: Name of the damage, see `DAMAGES`.
        command: Name of the command, see `COMMANDS`.
    """

    folder: str
    file: str
    damage: str
    command: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.file}-{self.damage}-{self.command}"


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


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])


def flip_bit(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_null(path: Path, other: Path) -> None:
    path.write_text("null\n")


def write_list(path: Path, other: Path) -> None:
    path.write_text('[{"a": [1, "b", null]}]\n')


def enlarge(path: Path, other: Path) -> None:
    os.truncate(path, HUGE_BYTES)


def make_directory(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def make_unreadable(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)  # a loop, which not even root can read


def swap(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


SENTENCE = re.compile(r"Expected .+\. Received: .+\. Fix: .+\.")
DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "empty": empty,
    "truncated": truncate,
    "bit flipped": flip_bit,
    "null": write_null,
    "wrong type": write_list,
    "huge": enlarge,
    "a directory": make_directory,
    "unreadable": make_unreadable,
    "another's": swap,
}


class Matrix:
    """An undamaged run, its shard set, a search and a cache, others of these, and all results of commands.

    Args:
        folder: Empty directory for everything.
        resources: Closes the object store, and restores the environment.
    """

    def __init__(self, folder: Path, resources: ExitStack) -> None:
        self.folder = folder
        self._pristine = folder / "pristine"
        noise_shards(folder / "shards", classes=2)
        noise_shards(folder / "other_shards", rows=30, held_out=12, classes=3)
        self._train("run", folder / "shards", "tiny_two_layers")
        self._train("other_run", folder / "other_shards", "tiny_normalized")
        make_photos(folder / "photos")
        for name in ("search", "other_search"):
            self._search(name)
        self._fill_cache(resources)
        for name in FOLDERS:
            shutil.copytree(folder / name, self._pristine / name)
        self.results = {}
        for name, command in COMMANDS.items():
            self._restore()
            self.results[name] = command(folder)
            if self.results[name].code != 0:
                raise AssertionError(f"{name} fails without any damage:\n{self.results[name].output}")

    def _train(self, name: str, shards: Path, model: str) -> None:
        """Trains a run of three epochs, which resumed training continues to the fourth, and its report."""
        config = config_for(shards, epochs=3, model=model, keep_checkpoints=3)
        run = fit_run(self.folder / name, config)
        run.config_path.write_text(run.config_path.read_text().replace("epochs: 3", "epochs: 4"))
        run.update_status(state="interrupted", finished="2026-01-01T00:00:00+00:00")
        render_report(run, options=SMALL_REPORT)

    def _search(self, name: str) -> None:
        """Searches with two trials; those of different searches draw different settings."""
        preset = self.folder / "linear.yaml"
        preset.write_text(PRESET)
        space = self.folder / "space.yaml"
        space.write_text(SPACE)
        words = ["tune", preset, "--space", space, "--data", self.folder / "shards", "--trials", 2]
        prepare([*words, "--seed", len(name), "--out", self.folder / name])

    def _fill_cache(self, resources: ExitStack) -> None:
        """Uploads the shard sets to a store, and evaluates the run on both, which fills two caches."""
        server = resources.enter_context(run_s3_server(self.folder / "server"))
        environment = resources.enter_context(pytest.MonkeyPatch.context())
        for variable, value in get_client_environment(server.endpoint).items():
            environment.setenv(variable, value)
        bucket = server.create_bucket("matrix")
        for shards, cache in (("other_shards", "other_cache"), ("shards", "cache")):
            environment.setenv("GLASSBOX_CACHE", str(self.folder / cache))
            bucket.upload_folder(self.folder / shards, "shards")
            run = self.folder / shards.replace("shards", "run")
            prepare(["evaluate", "--model", run, "--data", SET_URI])

    def _restore(self) -> None:
        for name in FOLDERS:
            shutil.rmtree(self.folder / name)
            shutil.copytree(self._pristine / name, self.folder / name)

    def run_case(self, case: Case) -> tuple[str, str]:
        """Runs a case on fresh copies of the run and of the shard set.

        Returns:
            The outcome, one of `OUTCOMES`, and the details of a wrong one.
        """
        self._restore()
        (damaged,) = (self.folder / case.folder).glob(case.file)
        (other,) = (self.folder / f"other_{case.folder}").glob(case.file)
        DAMAGES[case.damage](damaged, other)
        before = dict(hash_files(self.folder))
        with limit_memory():
            result = COMMANDS[case.command](self.folder)
        written = WRITES.get(case.command, ())
        changed = find_changes(before, dict(hash_files(self.folder)), (*written, *OUTPUTS))
        return judge(result, self.results[case.command], changed)


@contextmanager
def limit_memory() -> Iterator[None]:
    """Limits the memory of this process."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def make_photos(folder: Path) -> None:
    """Writes two images of noise."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(encode_png(draw.integers(0, 256, (12, 12, 3)).astype(np.uint8)))


def prepare(words: list[object]) -> None:
    """Runs a command that makes what is damaged later."""
    result = run_command(words, str)
    if result.code != 0:
        raise AssertionError(result.output)


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


def evaluate(folder: Path) -> Result:
    words = ["evaluate", "--model", folder / "run", "--data", folder / "shards"]
    return run_command([*words, "--out", folder / "scores.json"], keep_lines)


def predict(folder: Path) -> Result:
    table = folder / "table.csv"
    words = ["predict", "--model", folder / "run", "--data", f"photos:{folder / 'photos'}", "--out", table]
    return run_command(words, lambda output: table.read_text())


def report(folder: Path) -> Result:
    def render() -> int:
        try:
            with translate_failures():
                render_report(Run(folder / "run"), options=SMALL_REPORT)
        except GlassboxError as error:
            print(error)
            return error.exit_code
        return 0

    return capture(render, lambda output: describe_report(folder / "run" / "report"))


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


def verify(folder: Path) -> Result:
    return run_command(["shards", "verify", folder / "shards"], keep_lines)


def describe(folder: Path) -> Result:
    return run_command(["shards", "info", folder / "shards"], keep_lines)


def check(folder: Path) -> Result:
    return run_command(["shards", "check", folder / "shards"], keep_lines)


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
    "resume": resume,
    "verify": verify,
    "info": describe,
    "check": check,
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
    "search": ("tune", "train"),
    "cache": ("evaluate from a store", "cache"),
}
WRITES = {
    "report": ("run/report/", "run/.report.lock"),
    "resume": ("run/",),
    "tune": ("search/best.yaml", "search/index.html", "search/.lock", "search/trials/trial-000/"),
    "evaluate from a store": ("cache/",),
    "cache": ("cache/shards/users/",),  # of passes that have ended
}
OUTPUTS = ("scores", "table", "look/", "preview/", "best/", "server/")  # of the commands
# As on undamaged files; refused in one sentence; done in part, with a sentence about the rest; the wrong ones
GOOD = ("equal", "refused", "said in part")
OUTCOMES = (*GOOD, "traceback", "silently wrong", "not one sentence", "changed")


def list_cases() -> list[Case]:
    """Lists all cases in a fixed order."""
    return [
        Case(folder, file, damage, command)
        for folder, names in FOLDERS.items()
        for file in names
        for damage in DAMAGES
        for command in READERS[folder]
    ]


def judge(result: Result, undamaged: Result, changed: list[str]) -> tuple[str, str]:
    """Judges the result of a command next to that on undamaged files."""
    if "Traceback" in result.output or result.code == 1:
        return "traceback", result.output
    if changed:
        return "changed", f"{changed}\n{result.output}"
    if result.code == 0:
        if result.observed == undamaged.observed:
            return "equal", ""
        if SENTENCE.search(result.output):
            return "said in part", ""
        return "silently wrong", f"{undamaged.observed}\n---\n{result.observed}\n---\n{result.output}"
    if len(SENTENCE.findall(result.output)) != 1:
        return "not one sentence", result.output
    return "refused", ""


def find_changes(before: dict[str, str], after: dict[str, str], allowed: tuple[str, ...]) -> list[str]:
    """Finds files that a command has changed or removed, apart from those that it writes."""
    return [
        name for name, digest in before.items() if after.get(name) != digest and not name.startswith(allowed)
    ]


def hash_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and digest of every file of reasonable size below a folder."""
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink() and path.is_file() and path.stat().st_size < HUGE_BYTES:
            yield str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()


def run_all(folder: Path, cases: list[Case]) -> int:
    """Runs cases and prints a table; returns the number of wrong outcomes."""
    counts: Counter[tuple[str, str]] = Counter()
    with register_tiny_models(), ray_session(), ExitStack() as resources:
        matrix = Matrix(folder, resources)
        for case in cases:
            outcome, details = matrix.run_case(case)
            counts[case.damage, outcome] += 1
            if details:
                print(f"{case}: {outcome}\n{details}", file=sys.stderr, flush=True)
    print(f"| damage | {' | '.join(OUTCOMES)} |\n|---|{'---|' * len(OUTCOMES)}")
    for damage in DAMAGES:
        print(f"| {damage} | {' | '.join(str(counts[damage, outcome]) for outcome in OUTCOMES)} |")
    return sum(count for (_, outcome), count in counts.items() if outcome not in GOOD)


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen = [case for case in list_cases() if all(word in str(case) for word in words)]
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(min(run_all(Path(scratch), chosen), 1))
