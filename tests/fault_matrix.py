"""Damages every file that glassbox writes in nine ways, and runs the commands that read it.

A command may do its work as if nothing had happened, or end in one sentence. It may neither show a traceback,
nor give another result without a word, nor change any other file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fault_readers import (
    COMMANDS,
    READERS,
    SET_URI,
    SHARD_SPEC,
    SMALL_REPORT,
    WRITES,
    WRITES_WHEN_REFUSED,
    Result,
    run_command,
)
from shard_samples import encode_png
from stores import get_client_environment, run_s3_server
from tiny_models import register_tiny_models
from training_samples import config_for, fit_run, noise_shards

from pipelines.cluster import ray_session
from pipelines.shards.build import build_shards
from pipelines.sources import open_source
from service.report.batch import report_all
from service.report.job import render_report
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
# Patterns, because names contain digests; the first file that fits is damaged
CACHE_FILES = (
    "shards/sets/*/*-validation-00000.arrow",
    "shards/sets/*/*-validation.rows.arrow",
    "shards/sets/*/*-validation.shards.arrow",
    "shards/sets/*/fetched.json",
    "shards/sets/*/location",
)
TFRECORD_FILES = (
    "manifest.json",
    "validation-00000.tfrecord",
    "validation-00000.index.arrow",
    "validation.rows.arrow",
    "validation.shards.arrow",
)
BUILD_FILES = (
    ".building/build.json",
    ".building/lock",
    ".building/*/train-00000-*.done",
    "train-00000-*.arrow",
)
REPORTS_FILES = (
    "index.html",
    "first/report/manifest.json",
    "first/report/index.html",
    "first/report/pictures/*",
    "first/report/views/*",
)
FOLDERS = {  # in the order in which they are made
    "shards": SET_FILES,
    "tfrecord": TFRECORD_FILES,
    "build": BUILD_FILES,
    "run": RUN_FILES,
    "search": SEARCH_FILES,
    "cache": CACHE_FILES,
    "reports": REPORTS_FILES,
}
PRESET = """model: linear
data: {image_size: [12, 12]}
optimizer: {name: adam, learning_rate: 1.0e-3}
global_batch: 9
epochs: 2
"""
SPACE = "optimizer.learning_rate: {loguniform: [1.0e-13, 1.0e-12]}\n"  # at these rates, nothing is learned


@dataclass(frozen=True)
class Case:
    """One damage, and a command that meets it.

    Attributes:
        folder: Folder of the damaged file, a key of `FOLDERS`.
        file: Path of the damaged file in the folder, or a pattern whose first match it is.
        damage: Name of the damage, see `DAMAGES`.
        command: Name of the command, see `COMMANDS`.
    """

    folder: str
    file: str
    damage: str
    command: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.file}-{self.damage}-{self.command}"


def empty(path: Path, other: Path | None) -> None:
    path.write_bytes(b"")


def truncate(path: Path, other: Path | None) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])


def flip_bit(path: Path, other: Path | None) -> None:
    content = bytearray(path.read_bytes() or b"\0")  # the file of a lock is empty
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_null(path: Path, other: Path | None) -> None:
    path.write_text("null\n")


def write_list(path: Path, other: Path | None) -> None:
    path.write_text('[{"a": [1, "b", null]}]\n')


def enlarge(path: Path, other: Path | None) -> None:
    os.truncate(path, HUGE_BYTES)


def make_directory(path: Path, other: Path | None) -> None:
    path.unlink()
    path.mkdir()


def make_unreadable(path: Path, other: Path | None) -> None:
    path.unlink()
    path.symlink_to(path.name)  # a loop, which not even root can read


def swap(path: Path, other: Path | None) -> None:
    shutil.copyfile(other, path)


SENTENCE = re.compile(r"Expected .+\. Received: .+\. Fix: .+\.")
DAMAGES: dict[str, Callable[[Path, Path | None], None]] = {
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


class EndedError(Exception):
    """Ends a build before its shard set is complete."""


class Matrix:
    """An undamaged folder of every kind, others that files are swapped with, and the results of commands.

    Args:
        folder: Empty directory for everything.
        resources: Closes the object store, and restores the environment.
        cases: The cases that will be run, which determine what has to be made for them.
    """

    def __init__(self, folder: Path, resources: ExitStack, cases: Sequence[Case]) -> None:
        self.folder = folder
        needed = {"shards", "run", *(case.folder for case in cases)}
        self._kinds = [name for name in FOLDERS if name in needed]
        self._resources = resources
        self._pristine = folder / "pristine"
        self._results: dict[str, Result] = {}
        self._bucket = None
        make_photos(folder / "photos", 1)
        for name in self._kinds:
            self._make(name)
            shutil.copytree(folder / name, self._pristine / name, symlinks=True)

    def run_case(self, case: Case) -> tuple[str, str]:
        """Runs a case on fresh copies of all folders.

        Returns:
            The outcome, one of `OUTCOMES`, and the details of a wrong one.
        """
        undamaged = self._get_undamaged_result(case.command)
        other = None
        if case.damage == "another's":
            other = find_file(self._get_other(case.folder), case.file)
        self._restore()
        DAMAGES[case.damage](find_file(self.folder / case.folder, case.file), other)
        before = self._hash_files()
        with limit_memory():
            result = COMMANDS[case.command](self.folder)
        written = (WRITES if result.code == 0 else WRITES_WHEN_REFUSED).get(case.command, ())
        changed = find_changes(before, self._hash_files(), written)
        return judge(result, undamaged, changed)

    def _get_undamaged_result(self, command: str) -> Result:
        """Returns what a command does without any damage."""
        if command not in self._results:
            self._restore()
            self._results[command] = COMMANDS[command](self.folder)
            if self._results[command].code != 0:
                raise AssertionError(f"{command} fails without any damage:\n{self._results[command].output}")
        return self._results[command]

    def _get_other(self, name: str) -> Path:
        """Returns another folder of a kind, which is made when it is first needed."""
        other = self.folder / f"other_{name}"
        if not other.exists():
            self._restore()
            self._make(other.name)
        return other

    def _restore(self) -> None:
        for name in self._kinds:
            shutil.rmtree(self.folder / name)
            shutil.copytree(self._pristine / name, self.folder / name, symlinks=True)

    def _hash_files(self) -> dict[str, str]:
        return {name: digest for folder in self._kinds for name, digest in hash_files(self.folder, folder)}

    def _make(self, name: str) -> None:
        """Makes a folder, such as `run` or `other_run`."""
        kind = name.removeprefix("other_")
        is_other = kind != name
        path = self.folder / name
        if kind in ("shards", "tfrecord"):
            format = "arrow" if kind == "shards" else "tfrecord"
            rows, held_out, classes = (30, 12, 3) if is_other else (27, 10, 2)
            noise_shards(path, rows, held_out, classes, format=format)
        elif kind == "run":
            self._make_run(path, is_other)
        elif kind == "build":
            self._make_build(path, is_other)
        elif kind == "search":
            self._make_search(path, is_other)
        elif kind == "cache":
            self._make_cache(path, is_other)
        elif is_other:
            self._get_other("run")  # makes its reports too

    def _make_run(self, path: Path, is_other: bool) -> None:
        """Trains a run, and makes a folder of runs with its report; then, training can go on for an epoch."""
        shards = self._get_other("shards") if is_other else self.folder / "shards"
        model = "tiny_normalized" if is_other else "tiny_two_layers"
        run = fit_run(path, config_for(shards, epochs=3, model=model, keep_checkpoints=3))
        reports = path.with_name(path.name.replace("run", "reports"))
        copy = Run(reports / "first")
        shutil.copytree(path, copy.path)
        copy.update_status(state="finished", finished="2026-01-01T00:00:00+00:00")
        render_report(copy, options=SMALL_REPORT)
        report_all(reports, SMALL_REPORT)
        shutil.copytree(copy.report, run.report)
        run.config_path.write_text(run.config_path.read_text().replace("epochs: 3", "epochs: 4"))
        run.update_status(state="interrupted", finished="2026-01-01T00:00:00+00:00")

    def _make_build(self, path: Path, is_other: bool) -> None:
        """Ends a build when all shards are complete, but not the set."""
        images = self.folder / ("other_classes" if is_other else "classes")
        for index, name in enumerate(("ant", "bee")):
            make_photos(images / name, 2 + index + 2 * is_other, 6)

        def end(done: int, total: int) -> None:
            if done == total:
                raise EndedError

        with suppress(EndedError):
            build_shards(open_source(f"folder:{images}"), path, SHARD_SPEC, end)

    def _make_search(self, path: Path, is_other: bool) -> None:
        """Searches with two trials; those of different searches draw different settings."""
        preset = self.folder / "linear.yaml"
        preset.write_text(PRESET)
        space = self.folder / "space.yaml"
        space.write_text(SPACE)
        words = ["tune", preset, "--space", space, "--data", self.folder / "shards", "--trials", 2]
        prepare([*words, "--seed", int(is_other), "--out", path])

    def _make_cache(self, path: Path, is_other: bool) -> None:
        """Uploads a shard set to a store, and evaluates a run on it, which fills a cache."""
        shards = self._get_other("shards") if is_other else self.folder / "shards"
        run = self._get_other("run") if is_other else self.folder / "run"
        with pytest.MonkeyPatch.context() as patch:
            if self._bucket is None:
                server = self._resources.enter_context(run_s3_server(self.folder / "server"))
                environment = self._resources.enter_context(pytest.MonkeyPatch.context())
                for variable, value in get_client_environment(server.endpoint).items():
                    environment.setenv(variable, value)
                environment.setenv("GLASSBOX_CACHE", str(self.folder / "cache"))
                self._bucket = server.create_bucket("matrix")
            patch.setenv("GLASSBOX_CACHE", str(path))
            self._bucket.upload_folder(shards, "shards")
            prepare(["evaluate", "--model", run, "--data", SET_URI])
            self._bucket.upload_folder(self.folder / "shards", "shards")


def find_file(folder: Path, pattern: str) -> Path:
    """Finds the first file in a folder that fits a pattern."""
    return sorted(folder.glob(pattern))[0]


@contextmanager
def limit_memory() -> Iterator[None]:
    """Limits the memory of this process."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def make_photos(folder: Path, seed: int, count: int = 2) -> None:
    """Writes images of noise."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for name in "abcdef"[:count]:
        (folder / f"{name}.png").write_bytes(encode_png(draw.integers(0, 256, (12, 12, 3)).astype(np.uint8)))


def prepare(words: list[object]) -> None:
    """Runs a command that makes what is damaged later."""
    result = run_command(words, str)
    if result.code != 0:
        raise AssertionError(result.output)


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


def hash_files(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """Yields the name and digest of every file of reasonable size in a folder below another."""
    for path in sorted((root / folder).rglob("*")):
        if not path.is_symlink() and path.is_file() and path.stat().st_size < HUGE_BYTES:
            yield str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()


def run_all(folder: Path, cases: list[Case]) -> int:
    """Runs cases and prints a table; returns the number of wrong outcomes."""
    outcomes: dict[Case, str] = {}
    with register_tiny_models(), ray_session(), ExitStack() as resources:
        matrix = Matrix(folder, resources, cases)
        for case in cases:
            outcomes[case], details = matrix.run_case(case)
            if details:
                print(f"{case}: {outcomes[case]}\n{details}", file=sys.stderr, flush=True)
    print(format_table(outcomes))
    return sum(outcome not in GOOD for outcome in outcomes.values())


def format_table(outcomes: Mapping[Case, str]) -> str:
    """Formats a line per file, with the numbers of commands by their outcome for each damage.

    Args:
        outcomes: Outcome of every case.
    """
    counts = Counter((case.folder, case.file, case.damage, outcome) for case, outcome in outcomes.items())
    lines = [f"| file | {' | '.join(DAMAGES)} |", f"|---|{'---|' * len(DAMAGES)}"]
    for folder, file in dict.fromkeys((case.folder, case.file) for case in outcomes):
        cells = []
        for damage in DAMAGES:
            numbers = {outcome: counts[folder, file, damage, outcome] for outcome in OUTCOMES}
            wrong = [outcome for outcome in OUTCOMES[len(GOOD) :] if numbers[outcome]]
            cells.append(" ".join(["/".join(str(numbers[outcome]) for outcome in GOOD), *wrong]))
        lines.append(f"| {folder}: `{file}` | {' | '.join(cells)} |")
    totals = Counter(outcomes.values())
    lines.append(f"\nIn all: {', '.join(f'{totals[outcome]} {outcome}' for outcome in OUTCOMES)}")
    return "\n".join(lines)


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen = [case for case in list_cases() if all(word in str(case) for word in words)]
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(min(run_all(Path(scratch), chosen), 1))
