"""Small work for every command, its undisturbed results, and processes of the command line to disturb.

The processes are forked from one that has imported the libraries, so that a start takes no seconds.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from fault_lab import Lab, find_descendants, read_title
from shard_samples import encode_png

from service.runs import Run

SHIM_SOURCE = Path(__file__).parent / "chaos_shim.c"
PRELOADED = ["service.cli", "ray", "service.training.launch", "service.report.job", "service.inference.jobs"]
PATIENCE = 500.0  # seconds until a command counts as one that hangs
POLL = 0.05
NOBODY = 65534
MIB = 2**20
IMAGES = 60  # per class
PRESET = """model: linear
data: {image_size: [12, 12]}
augment: {rotation: 20, flip: true}
optimizer: {name: sgd, momentum: 0.9, learning_rate: 0.00001}
global_batch: 8
epochs: 3
checkpoint_minutes: 0.001
keep_checkpoints: 3
"""
SPACE = "optimizer.learning_rate: {loguniform: [1.0e-8, 1.0e-6]}\n"
SENTENCE = re.compile(r"Expected .+\. Received: .+\. Fix: .+\.")
REFUSED = (2, 3, 4)
PARTS_OF_RAY = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # a node ends with its agents
MEASURED = ("seconds", "images_per_second", "input_wait")


class WrongError(AssertionError):
    """A command did what it must not do."""


@dataclass(frozen=True)
class Disturbance:
    """What is different for one process.

    Attributes:
        jump_after: Seconds until its clock jumps.
        jump_by: Seconds by which it jumps; 0 for a clock that does not.
        delay: Microseconds before every write, fsync and rename.
        user: User that it runs as; None for that of the campaign.
        has_cluster: Whether it knows the address of the cluster.
    """

    jump_after: float = 0.0
    jump_by: int = 0
    delay: int = 0
    user: int | None = None
    has_cluster: bool = False


class Command:
    """A process of the command line.

    Args:
        words: Arguments of `glassbox`.
        log: File for what it prints.
        watched: Directory that it writes.
        disturbance: What is different for it.
    """

    def __init__(self, words: list[str], log: Path, watched: Path, disturbance: Disturbance) -> None:
        self._log = log
        self._watched = watched
        self._snapshot: object = None
        self.changes = 0
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=run_main, args=(words, log, disturbance))
        self.process.start()
        self._status = psutil.Process(self.process.pid)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def is_running(self) -> bool:
        """Tells whether it has not exited; counts the changes of its directory meanwhile."""
        snapshot = list(list_states(self._watched))
        self.changes += snapshot != self._snapshot
        self._snapshot = snapshot
        return self.process.is_alive()

    def get_cpu_seconds(self) -> float:
        """Returns the CPU time of the process so far."""
        with suppress(psutil.Error):
            times = self._status.cpu_times()
            return float(times.user + times.system)
        return 0.0

    def wait_for(self, condition: Callable[[], object]) -> bool:
        """Waits until a condition holds; returns False if the process exited first."""
        deadline = time.monotonic() + PATIENCE
        while self.is_running():
            if condition():
                return True
            if time.monotonic() > deadline:
                self.process.kill()
                raise WrongError(f"no end after {PATIENCE} s:\n{self.output[-3000:]}")
            time.sleep(POLL)
        return False

    def wait(self) -> int:
        """Waits until it exits; returns its exit code, the negative number of a signal."""
        self.wait_for(lambda: False)
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def run_main(words: list[str], log: Path, disturbance: Disturbance) -> None:
    """Runs one command in a forked process, and exits with its code."""
    os.setsid()
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if not disturbance.has_cluster:
        os.environ.pop("RAY_ADDRESS", None)
    if disturbance.jump_by or disturbance.delay:
        configure = ctypes.CDLL(None).chaos_configure
        configure.argtypes = (ctypes.c_double, ctypes.c_long, ctypes.c_long)
        configure(time.monotonic() + disturbance.jump_after, disturbance.jump_by, disturbance.delay)
    if disturbance.user is not None:
        os.setgroups([])
        os.setgid(disturbance.user)
        os.setuid(disturbance.user)
    from service.cli import main

    raise SystemExit(main(words))


def no_preparation(world: World, out: Path) -> None:
    """Makes nothing: the command makes its output."""


@dataclass(frozen=True)
class Work:
    """Work of one command, which is done again and again.

    Attributes:
        name: Its name in the table.
        words: Returns the arguments of the command, by the world and the path of the output.
        observe: Returns what is compared, by the path of the output.
        prepare: Makes what must be there before, by the world and the path of the output.
        is_finished: Tells by the output whether nothing is left to do, so that a second start is refused.
        has_cluster: Whether it runs on the cluster.
    """

    name: str
    words: Callable[[World, Path], list[object]]
    observe: Callable[[Path], object]
    prepare: Callable[[World, Path], None] = no_preparation
    is_finished: Callable[[Path], bool] = lambda out: False
    has_cluster: bool = False


@dataclass(frozen=True)
class Reference:
    """The undisturbed work.

    Attributes:
        observed: What is compared.
        changes: Number of changes of the output that were seen.
        cpu: CPU time of the process, in seconds.
        wall: Its duration in seconds.
        size: Bytes that it wrote, in whole pages.
    """

    observed: object
    changes: int
    cpu: float
    wall: float
    size: int


def list_states(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yields path, size and modification time of everything below a folder, or of a file."""
    paths = [folder]
    for place, folders, files in os.walk(folder):  # `rglob` fails where one vanishes meanwhile
        paths += [Path(place, name) for name in (*folders, *files)]
    for path in sorted(paths):
        with suppress(OSError):
            status = path.lstat()
            yield str(path), status.st_size, status.st_mtime_ns


def hash_tree(folder: Path) -> dict[str, str]:
    """Returns the digest of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def count_bytes(path: Path) -> int:
    """Returns the size of a file or of everything below a directory, in whole pages."""
    pages = [1 + size // 4096 for _, size, _ in list_states(path)]
    return 4096 * sum(pages)


def is_built(out: Path) -> bool:
    return (out / "manifest.json").exists() and not (out / ".building").exists()


def is_trained(out: Path) -> bool:
    return Run(out).status().get("state") == "finished"


def observe_shards(out: Path) -> object:
    return hash_tree(out)


def observe_run(out: Path) -> object:
    """Returns the metrics of a run without measured times, and a digest of its last weights."""
    run = Run(out)
    if run.status()["state"] != "finished":
        raise WrongError(f"the run is {run.status()['state']}")
    metrics = [{key: value for key, value in row.items() if key not in MEASURED} for row in run.metrics()]
    digest = hashlib.sha256()
    newest = max(run.checkpoints.glob("epoch-*"))
    with np.load(newest / "state.npz") as state:
        for name in sorted(state.files):
            digest.update(name.encode() + state[name].tobytes())
    return json.dumps(metrics, sort_keys=True), newest.name, digest.hexdigest()


def observe_report(out: Path) -> object:
    """Returns the figures of a run's report, and the digests of its pictures."""
    report = out / "report"
    text = (report / "manifest.json").read_text()
    manifest = json.loads(re.sub(r'"time_share":\s*[^,}]+', '"time_share": 0', text.replace(out.name, "RUN")))
    pictures = {picture["file"] for picture in manifest["pictures"]}
    digests = {name: digest for name, digest in hash_tree(report).items() if name in pictures}
    if len(digests) != len(pictures):
        raise WrongError(f"pictures are missing: {sorted(pictures - digests.keys())}")
    left = [path.name for path in out.iterdir() if path.name.startswith((".tmp", ".old"))]
    if left:
        raise WrongError(f"the report job left {left}")
    return {**manifest["figures"], **digests}


def observe_reports(out: Path) -> object:
    if not (out / "index.html").is_file():
        raise WrongError("there is no index page")
    return [observe_report(run) for run in sorted(out.glob("run*"))]


def observe_table(out: Path) -> object:
    return out.read_text()


def observe_search(out: Path) -> object:
    trials = {path.name: observe_run(path) for path in sorted((out / "trials").glob("trial-*"))}
    return trials, (out / "best.yaml").read_text()


def build_words(world: World, out: Path) -> list[object]:
    return ["shards", "build", f"folder:{world.photos}", out, "--shard-rows", "10"]


def train_words(world: World, out: Path) -> list[object]:
    words = ["train", "--preset", world.preset, "--data", world.shards, "--out", out]
    return [*words, "--resume-if-exists"]


def train_locally_words(world: World, out: Path) -> list[object]:
    return [*train_words(world, out), "--local"]


def train_on_ray_words(world: World, out: Path) -> list[object]:
    return [*train_words(world, out), "--workers", "1", "--restarts", "100"]


def report_words(world: World, out: Path) -> list[object]:
    return ["report", out]


def reports_words(world: World, out: Path) -> list[object]:
    return ["report", "--all", out]


def predict_words(world: World, out: Path) -> list[object]:
    return ["predict", "--model", world.run, "--data", f"photos:{world.photos}", "--out", out]


def tune_words(world: World, out: Path) -> list[object]:
    words = ["tune", world.preset, "--space", world.space, "--data", world.shards]
    return [*words, "--trials", "2", "--out", out]


def copy_run(world: World, out: Path) -> None:
    shutil.copytree(world.run, out)


def copy_runs(world: World, out: Path) -> None:
    for name in ("run0", "run1"):
        copy_run(world, out / name)


BUILD = Work("build", build_words, observe_shards, is_finished=is_built, has_cluster=True)
TRAIN = Work("train", train_locally_words, observe_run, is_finished=is_trained)
TRAIN_ON_RAY = Work("train on Ray", train_on_ray_words, observe_run, is_finished=is_trained, has_cluster=True)
REPORT = Work("report", report_words, observe_report, copy_run)
REPORTS = Work("report --all", reports_words, observe_reports, copy_runs, has_cluster=True)
PREDICT = Work("predict", predict_words, observe_table)
TUNE = Work("tune", tune_words, observe_search, has_cluster=True)


@dataclass
class World:
    """The files that all work starts from, and a cluster.

    Args:
        folder: Directory for everything; what an earlier campaign made in it is used again.
        lab: The cluster.
    """

    folder: Path
    lab: Lab
    _references: dict[str, Reference] = field(default_factory=dict)
    _outputs: int = 0

    def __post_init__(self) -> None:
        self.photos = self.folder / "photos"
        self.shards = self.folder / "shards"
        self.run = self.folder / "run"
        self.preset = self.folder / "small.yaml"
        self.space = self.folder / "space.yaml"
        self.scratch = self.folder / "scratch"
        self.clear()
        self.preset.write_text(PRESET)
        self.space.write_text(SPACE)
        if not self.photos.exists():
            write_photos(self.photos, IMAGES)
        for work, out in ((BUILD, self.shards), (TRAIN, self.run)):
            shutil.rmtree(out, ignore_errors=True)
            self.get_reference(work, out)

    def clear(self) -> None:
        """Ends the commands and removes the files that a case left."""
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True, exist_ok=True)

    def start(self, work: Work, out: Path, **disturbance: Any) -> Command:
        """Starts the command of a work."""
        words = [str(word) for word in work.words(self, out)]
        return self.start_words(words, out, has_cluster=work.has_cluster, **disturbance)

    def start_words(self, words: list[str], out: Path, **disturbance: Any) -> Command:
        """Starts any command."""
        self._outputs += 1
        log = self.scratch / f"log-{self._outputs}"
        return Command(words, log, out, Disturbance(**disturbance))

    def get_reference(self, work: Work, out: Path | None = None) -> Reference:
        """Returns the undisturbed work, which the first call does.

        Args:
            work: The work.
            out: Where its output is kept; None to remove it.
        """
        if work.name not in self._references:
            output = out or self.choose_output(work)
            if out is None:
                work.prepare(self, output)
            before = count_bytes(output)
            start = time.monotonic()
            cpu = 0.0
            command = self.start(work, output)
            while command.is_running():
                cpu = max(cpu, command.get_cpu_seconds())
                time.sleep(POLL)
            wall = time.monotonic() - start
            if command.wait() != 0:
                raise WrongError(f"{work.name} fails undisturbed:\n{command.output}")
            size = count_bytes(output) - before
            self._references[work.name] = Reference(work.observe(output), command.changes, cpu, wall, size)
            if out is None:
                remove(output)
        return self._references[work.name]

    def choose_output(self, work: Work, folder: Path | None = None) -> Path:
        """Returns a path where nothing is."""
        self._outputs += 1
        suffix = ".csv" if work is PREDICT else ""
        return (folder or self.scratch) / f"out-{self._outputs}{suffix}"

    def prepare(self, work: Work, folder: Path | None = None) -> Path:
        """Returns the path of an output, with what must be there before."""
        self.get_reference(work)
        out = self.choose_output(work, folder)
        work.prepare(self, out)
        return out

    def find_workers(self) -> list[psutil.Process]:
        """Returns the processes of the cluster that do something."""
        return [
            process
            for node in self.lab.nodes
            for process in find_descendants(node.pid)
            if read_title(process).startswith("ray::") and not read_title(process).startswith(PARTS_OF_RAY)
        ]

    def check(self, work: Work, out: Path) -> None:
        """Checks that an output is that of the undisturbed work.

        Raises:
            WrongError: It differs.
        """
        expected = self.get_reference(work).observed
        observed = work.observe(out)
        if observed != expected:
            raise WrongError(f"the output differs:\n{describe_difference(expected, observed)}")

    def finish(self, work: Work, out: Path) -> None:
        """Does the rest of a work undisturbed, and checks and removes its output."""
        if not work.is_finished(out):
            command = self.start(work, out)
            code = command.wait()
            if code != 0:
                raise WrongError(f"undisturbed afterwards, exit {code}:\n{command.output[-3000:]}")
        self.check(work, out)
        remove(out)


def describe_difference(expected: object, observed: object) -> str:
    """Describes how two observations differ, shortly."""
    if isinstance(expected, Mapping) and isinstance(observed, Mapping):
        keys = [key for key in {**expected, **observed} if expected.get(key) != observed.get(key)]
        parts = [describe_difference(expected.get(key), observed.get(key)) for key in keys[:3]]
        return f"{keys}: {parts}"
    return f"{str(expected)[:600]}\n---\n{str(observed)[:600]}"


def check_refusal(command: Command, code: int) -> None:
    """Checks that a command ended with one of our exit codes and in sentences.

    Raises:
        WrongError: It ended otherwise.
    """
    output = command.output
    if code not in REFUSED or "Traceback" in output or not SENTENCE.search(output):
        raise WrongError(f"exit {code}:\n{output[-3000:]}")


def remove(path: Path) -> None:
    """Removes a file or a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_photos(folder: Path, images: int, seed: int = 0) -> None:
    """Writes images of noise in two classes, the second brighter."""
    draw = np.random.default_rng(seed)
    for label in range(2):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(images):
            pixels = draw.integers(80 * label, 80 * label + 96, (12, 12, 3)).astype(np.uint8)
            (folder / f"class{label}" / f"{number:03d}.png").write_bytes(encode_png(pixels))


def open_python() -> None:
    """Lets other users read a Python that is installed in a closed folder, in this mount namespace only.

    That folder is covered by an empty one that shows nothing but Python.
    """
    python = Path(sys.base_prefix)
    closed = [folder for folder in reversed(python.parents) if not folder.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return
    with tempfile.TemporaryDirectory() as kept:
        subprocess.run(["mount", "--bind", python, kept], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", closed[0]], check=True)
        python.mkdir(parents=True)
        subprocess.run(["mount", "--move", kept, python], check=True)


@contextmanager
def open_world(folder: Path) -> Iterator[World]:
    """Starts a cluster and the process that others are forked from, and makes the files of a world."""
    folder.mkdir(parents=True, exist_ok=True)
    open_python()
    shim = folder / "chaos_shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, SHIM_SOURCE, "-ldl"], check=True)
    cluster = folder / "cluster"
    shutil.rmtree(cluster, ignore_errors=True)
    cluster.mkdir()
    lab = Lab(cluster, 2)
    lab.env["RAY_memory_monitor_refresh_ms"] = "0"  # what else this machine does must not kill workers
    try:
        lab.start()
        os.environ.update(lab.env, TF_CPP_MIN_LOG_LEVEL="2", LD_PRELOAD=str(shim))
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
        del os.environ["LD_PRELOAD"]
        yield World(folder, lab)
    finally:
        for process in multiprocessing.active_children():  # which the end of this process would wait for
            process.kill()
        lab.close()


def wait_for_moment(command: Command, reference: Reference, chance: random.Random) -> bool:
    """Waits for a random moment of a work, by its CPU time or by what it has written.

    Returns:
        False if it was finished before.
    """
    if chance.random() < 0.5:
        seconds = reference.cpu * chance.uniform(0.02, 1.0)
        return command.wait_for(lambda: command.get_cpu_seconds() >= seconds)
    changes = chance.randint(1, max(reference.changes, 1))
    return command.wait_for(lambda: command.changes >= changes)
