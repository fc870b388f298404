"""Runs of a small network as processes, on a Ray of their own, and what can be done to them while they train."""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from training_samples import noise_shards, saved

from pipelines.input.order import PADDING
from service.runs import Run

BIN, ROOT = Path(sys.executable).parent, Path(__file__).resolve().parent.parent
ROWS, BATCH, EPOCHS = 1603, 8, 2
EPOCH_STEPS = -(-ROWS // BATCH)
# At this rate the weights swing, and the smallest difference grows instead of dying away.
PRESET = f"""model: linear
data: {{image_size: [12, 12]}}
augment: {{rotation: 20, flip: true}}
optimizer: {{name: sgd, momentum: 0.9, learning_rate: 0.00001}}
ema: 0.99
global_batch: {BATCH}
epochs: {EPOCHS}
checkpoint_minutes: 0.01
keep_checkpoints: 3
"""
PATIENCE = 600.0  # seconds; a busy machine takes minutes to start workers
CALM = "optimizer.learning_rate=3e-8"  # for what is to come out nearly alike
GLASSBOX = "import sys; from service.cli import main; sys.exit(main())"
# A shell starts what runs behind it deaf to Ctrl-C.
HEARING = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {GLASSBOX}"
QUICK_LOOKS = f"from service.training import group; group.RESCALE_CHECK_SECONDS = 1.0; {GLASSBOX}"


class EndedError(AssertionError):
    """A run ended before what a test waited for."""


def steps(run: Run, rank: int = 0) -> int:
    """Steps that a worker has logged, those it did twice counted twice."""
    with suppress(FileNotFoundError):
        return (run.path / f"rows-{rank}.log").read_bytes().count(b"\n")
    return 0


class Training:
    """One `glassbox train` while it runs.

    Args:
        out: Its run directory.
        command: What to start.
        env: Its environment.
        nodes: The processes whose descendants its workers are, which may become more; None for the command's own.
    """

    def __init__(
        self,
        out: Path,
        command: Sequence[str | Path],
        env: dict[str, str],
        nodes: list[subprocess.Popen[bytes]] | None = None,
    ) -> None:
        self.run, self._log = Run(out), out.with_name(f"{out.name}-{secrets.token_hex(3)}.log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env=env,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        self._nodes = nodes or [self.process]

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    def workers(self, node: int | None = None) -> list[psutil.Process]:
        """The workers that live, of a node if one is named; worker 0 last: it alone holds event files open, once it trains."""
        roots = [node] if node else [process.pid for process in self._nodes]
        found = [
            p for root in roots for p in descendants(root) if name_of(p).startswith("ray::RayTrainWorker")
        ]
        return sorted(found, key=self._holds_events)

    def _holds_events(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return any(file.path.startswith(str(self.run.events)) for file in process.open_files())
        return False

    def steps(self, rank: int = 0) -> int:
        """Steps that a worker has logged, those it did twice counted twice."""
        return steps(self.run, rank)

    def wait_for(self, what: Callable[[], object], seconds: float = PATIENCE) -> float:
        """Waits until something is so; returns how many seconds it took. Fails where it does not come, or the process ends before."""
        began = time.monotonic()
        while not what():
            if self.process.poll() is not None:
                raise EndedError(f"exit {self.process.returncode}:\n{self.said[-4000:]}")
            if time.monotonic() - began > seconds:
                raise AssertionError(f"not within {seconds} s:\n{self.said[-4000:]}")
            time.sleep(0.05)
        return time.monotonic() - began

    def trains(self, steps: int = 20, seconds: float = PATIENCE) -> float:
        """Waits for so many further steps."""
        before = self.steps()
        return self.wait_for(lambda: self.steps() >= before + steps, seconds)

    def ends(self, code: int = 0, seconds: float = PATIENCE) -> str:
        """Waits for its end, which must have this exit code and no traceback; returns what it printed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {seconds} s:\n{self.said[-4000:]}") from None
        assert self.process.returncode == code, f"exit {self.process.returncode}:\n{self.said[-4000:]}"
        assert "Traceback" not in self.said, self.said[-4000:]
        return self.said


class Lab:
    """A folder with small data, a cluster of its own, and undisturbed runs to compare with.

    Args:
        folder: To work in.
        cpus: Of the head node; 0 for no cluster: every run starts a Ray of its own.
    """

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self.folder, self.cpus = folder, cpus
        self.shards = noise_shards(folder / "shards", rows=ROWS, held_out=24)
        (folder / "small.yaml").write_text(PRESET)
        self.env = os.environ | {
            "HOME": str(folder),
            "GLASSBOX_ROWS_LOG": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        self.env |= {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.env.pop("RAY_ADDRESS", None)
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._port = free_port()
        self._references: dict[tuple[object, ...], Run] = {}

    def start(self) -> None:
        """Starts the cluster's head, and waits until it takes work."""
        self._start_node(
            "--head",
            f"--port={self._port}",
            f"--num-cpus={self.cpus}",
            "--include-dashboard=false",
            f"--temp-dir={self.folder}/r",
        )
        self.env["RAY_ADDRESS"] = f"127.0.0.1:{self._port}"
        ask = "import ray; ray.init(address='auto', logging_level='ERROR'); assert ray.cluster_resources().get('CPU')"
        for _ in range(20):
            if (
                subprocess.run(
                    [sys.executable, "-c", ask], env=self.env, capture_output=True, timeout=60
                ).returncode
                == 0
            ):
                return
            time.sleep(1)
        raise AssertionError((self.folder / "nodes.log").read_text()[-2000:])

    def add_node(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """One more node of the cluster, as a process."""
        return self._start_node(f"--address=127.0.0.1:{self._port}", f"--num-cpus={cpus}")

    def _start_node(self, *options: str) -> subprocess.Popen[bytes]:
        command = [str(BIN / "ray"), "start", "--block", *options, "--object-store-memory=80000000"]
        with (self.folder / "nodes.log").open("a") as log:
            command.append(
                f"--dashboard-agent-listen-port={free_port()}"
            )  # the default is one port for all clusters of a host
            self.nodes.append(
                subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
            )
        return self.nodes[-1]

    def close(self) -> None:
        """Ends the cluster."""
        for node in reversed(self.nodes):
            kill_tree(node.pid)
            node.wait(timeout=60)

    def train(self, name: str, *words: str | Path, quick_looks: bool = False, **env: str) -> Training:
        """Starts a run; further words as on the command line. `quick_looks`: for room for more workers, every second."""
        command = [sys.executable, "-c", QUICK_LOOKS if quick_looks else GLASSBOX]
        start = ["train", "--out", self.folder / name]
        if "--resume" not in words:
            start += ["--preset", self.folder / "small.yaml", "--data", self.shards]
        return Training(self.folder / name, [*command, *start, *words], self.env | env, self.nodes)

    def reference(self, workers: int, *words: str) -> Run:
        """The finished run of so many workers that nothing was done to."""
        key = (workers, *words)
        if key not in self._references:
            training = self.train(f"undisturbed-{len(self._references)}", "--workers", str(workers), *words)
            training.ends()
            self._references[key] = training.run
        return self._references[key]


@contextmanager
def laboratory(folder: Path, cpus: int = 2) -> Iterator[Lab]:
    """A `Lab` for the length of a block."""
    lab = Lab(folder, cpus)
    try:
        if cpus:
            lab.start()
        yield lab
    finally:
        lab.close()


def free_port() -> int:
    """A free port outside the range that Ray's workers take (10002 to 19999)."""
    while True:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            if (port := server.getsockname()[1]) > 20000:
                return int(port)


def descendants(pid: int) -> list[psutil.Process]:
    """All that a process started, and what those started; none where it is gone."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def name_of(process: psutil.Process) -> str:
    """The first word of its command line; empty where it is gone."""
    with suppress(psutil.Error, IndexError):
        return process.cmdline()[0]
    return ""


def kill_tree(pid: int) -> None:
    """Ends a process and all its descendants at once, as a lost machine does."""
    for process in [*descendants(pid), *([psutil.Process(pid)] if psutil.pid_exists(pid) else [])]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def difference(run: Run, reference: Run) -> float:
    """How far two runs' last checkpoints are apart.

    Returns:
        0 for equal to the bit; else the largest difference as a share of the largest value of its array; infinity where equal weights
        go with other figures. (The sums of an epoch that was taken up in its midst are rounded once more, in float64.)
    """
    name = max(path.name for path in reference.checkpoints.iterdir())
    apart = 0.0
    for ours, theirs in zip(saved(run, name), saved(reference, name), strict=True):
        largest = np.abs(ours - theirs).max(initial=0) / np.abs(theirs).max(initial=1e-30)
        apart = max(apart, float(largest), 0.0 if np.array_equal(ours, theirs) else 1e-30)
    figures = [
        [[line[key] for key in ("epoch", "loss", "accuracy", "val_loss")] for line in each.metrics()]
        for each in (run, reference)
    ]
    return math.inf if apart == 0 and not np.allclose(*figures, rtol=1e-12, atol=0) else apart


def check_rows(run: Run, epochs: int = EPOCHS) -> None:
    """Fails unless what each worker did last at each step is every row once per epoch, whatever the number of workers was."""
    last: dict[tuple[int, int, int], list[int]] = {}
    for path in run.path.glob("rows-*.log"):
        rank = int(path.stem.split("-")[1])
        for line in path.read_text().splitlines():
            epoch, step, *rows = map(int, line.split())
            last[epoch, step, rank] = rows
    for epoch in range(1, epochs + 1):
        taken: list[int] = []
        for step in range(EPOCH_STEPS):
            workers = BATCH // len(last[epoch, step, 0])  # when the step was done for the last time
            taken += [row for rank in range(workers) for row in last[epoch, step, rank] if row != PADDING]
        assert sorted(taken) == list(range(ROWS)), (
            f"epoch {epoch}: {len(taken)} rows, {len(set(taken))} different ones"
        )
