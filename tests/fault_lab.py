"""Trainings of a small model as processes on a Ray cluster of their own, and what can be done to them."""

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
from training_samples import noise_shards, read_checkpoint

from pipelines.input.order import PADDING
from service.runs import Run

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
ROWS = 1603
BATCH = 8
EPOCHS = 10  # of half a second with two workers: long enough to be killed in
EPOCH_STEPS = -(-ROWS // BATCH)
# At this learning rate the weights swing, and the smallest difference grows instead of dying away.
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
CALM = (
    "optimizer.learning_rate=3e-8"  # for runs that are compared although their sums are ordered differently
)
PATIENCE = 600.0  # seconds; a busy machine takes minutes to start workers
GLASSBOX = "import sys; from service.cli import main; sys.exit(main())"
WITH_QUICK_CHECKS = f"from service.training import group; group.RESCALE_CHECK_SECONDS = 1.0; {GLASSBOX}"


def describe_ray() -> dict[str, str]:
    """Returns the environment in which another process connects to the local Ray of this one.

    Without the switch, Ray replaces 127.0.0.1 by the address of a network interface.
    """
    import ray

    address = ray.get_runtime_context().gcs_address
    return {"RAY_ADDRESS": address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class ExitedError(AssertionError):
    """A process exited before what a test waited for."""


class Training:
    """A `glassbox train` process and its run.

    Args:
        out: Run directory that the process writes.
        command: Command line of the process.
        env: Environment variables of the process.
        nodes: Processes whose descendants the workers are, to which others may be added later; None for the
            command itself.

    Attributes:
        run: The run directory.
        process: The process that was started.
    """

    def __init__(
        self,
        out: Path,
        command: Sequence[str | Path],
        env: dict[str, str],
        nodes: list[subprocess.Popen[bytes]] | None = None,
    ) -> None:
        self.run = Run(out)
        self._log = out.with_name(f"{out.name}-{secrets.token_hex(3)}.log")
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
    def output(self) -> str:
        """What the process has printed so far."""
        return self._log.read_text()

    def find_workers(self, node: int | None = None) -> list[psutil.Process]:
        """Returns the living worker processes, worker 0 last.

        Worker 0 is known by the event files that it alone holds open once it trains.

        Args:
            node: Process id of the node whose workers are returned; None for those of all nodes.
        """
        roots = [node] if node else [process.pid for process in self._nodes]
        workers = [
            process
            for root in roots
            for process in find_descendants(root)
            if read_title(process).startswith("ray::RayTrainWorker")
        ]
        return sorted(workers, key=self._holds_events)

    def _holds_events(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return any(file.path.startswith(str(self.run.events)) for file in process.open_files())
        return False

    def count_steps(self, rank: int = 0) -> int:
        """Returns the number of steps that a worker has logged; steps that it repeated count again."""
        return count_steps(self.run, rank)

    def wait_for(self, condition: Callable[[], object], seconds: float = PATIENCE) -> float:
        """Waits until a condition holds.

        Args:
            condition: Function that returns something true once it holds.
            seconds: Time after which the test fails.

        Returns:
            The seconds that it took.

        Raises:
            ExitedError: The process exited first.
            AssertionError: The condition did not hold in time.
        """
        start = time.monotonic()
        while not condition():
            if self.process.poll() is not None:
                raise ExitedError(f"exit {self.process.returncode}:\n{self.output[-4000:]}")
            if time.monotonic() - start > seconds:
                raise AssertionError(f"not within {seconds} s:\n{self.output[-4000:]}")
            time.sleep(0.05)
        return time.monotonic() - start

    def wait_for_steps(self, steps: int = 20) -> float:
        """Waits for so many further steps; returns the seconds that they took."""
        before = self.count_steps()
        return self.wait_for(lambda: self.count_steps() >= before + steps)

    def wait_for_exit(self, code: int = 0, seconds: float = PATIENCE) -> str:
        """Waits until the process exits, which must be with this exit code and without a traceback.

        Returns:
            What the process has printed.
        """
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no exit after {seconds} s:\n{self.output[-4000:]}") from None
        assert self.process.returncode == code, f"exit {self.process.returncode}:\n{self.output[-4000:]}"
        assert "Traceback" not in self.output, self.output[-4000:]
        return self.output


class Lab:
    """A folder with small data, a Ray cluster, and undisturbed runs to compare with.

    Args:
        folder: Working directory, with a short path: Ray puts sockets into it.
        cpus: CPUs of the head node; 0 for no cluster: every run starts its own Ray.

    Attributes:
        shards: The shard set.
        env: Environment variables for processes that use the cluster.
        nodes: Processes of the cluster's nodes, the head first.
    """

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self.folder = folder
        self.cpus = cpus
        self.shards = noise_shards(folder / "shards", rows=ROWS, held_out=24)
        (folder / "small.yaml").write_text(PRESET)
        self.env = os.environ | {
            "HOME": str(folder),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "GLASSBOX_ROWS_LOG": "1",
            "CUDA_VISIBLE_DEVICES": "-1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.env.pop("RAY_ADDRESS", None)
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._port = find_free_port()
        self._references: dict[tuple[object, ...], Run] = {}

    def start(self) -> None:
        """Starts the head node, and waits until it accepts work."""
        head = self._start_head()
        self.env["RAY_ADDRESS"] = f"127.0.0.1:{self._port}"
        connect = "ray.init(address='auto', logging_level='ERROR')"
        probe = f"import ray; {connect}; assert ray.cluster_resources().get('CPU')"
        for _ in range(60):
            if head.poll() is not None:  # on a busy machine Ray gives up too early
                self.nodes.remove(head)
                head = self._start_head()
            result = subprocess.run(
                [sys.executable, "-c", probe], env=self.env, capture_output=True, timeout=120
            )
            if result.returncode == 0:
                return
            time.sleep(1)
        raise AssertionError((self.folder / "nodes.log").read_text()[-2000:])

    def _start_head(self) -> subprocess.Popen[bytes]:
        return self._start_node(
            "--head",
            f"--port={self._port}",
            f"--num-cpus={self.cpus}",
            "--include-dashboard=false",
            f"--temp-dir={self.folder}/r",
            # The default is one port for all clusters of a host.
            f"--ray-client-server-port={find_free_port()}",
        )

    def add_node(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Starts another node of the cluster; returns its process."""
        return self._start_node(f"--address=127.0.0.1:{self._port}", f"--num-cpus={cpus}")

    def _start_node(self, *options: str) -> subprocess.Popen[bytes]:
        command = [str(BIN / "ray"), "start", "--block", *options, "--object-store-memory=80000000"]
        # The default is one port for all clusters of a host.
        command.append(f"--dashboard-agent-listen-port={find_free_port()}")
        with (self.folder / "nodes.log").open("a") as log:
            node = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        return node

    def close(self) -> None:
        """Kills the nodes of the cluster."""
        for node in reversed(self.nodes):
            kill_tree(node.pid)
            node.wait(timeout=60)

    def train(self, name: str, *words: str | Path, quick_checks: bool = False, **env: str) -> Training:
        """Starts a training.

        Args:
            name: Name of the run directory.
            *words: Further arguments of `glassbox train`.
            quick_checks: Whether the driver checks for room for more workers every second.
            **env: Further environment variables.
        """
        code = WITH_QUICK_CHECKS if quick_checks else GLASSBOX
        command = [sys.executable, "-c", code, "train", "--out", self.folder / name]
        if "--resume" not in words:
            command += ["--preset", self.folder / "small.yaml", "--data", self.shards]
        return Training(self.folder / name, [*command, *words], self.env | env, self.nodes)

    def train_reference(self, workers: int, *words: str) -> Run:
        """Returns the finished, undisturbed run of so many workers; the first call trains it."""
        key = (workers, *words)
        if key not in self._references:
            name = f"undisturbed-{len(self._references)}"
            training = self.train(name, "--workers", str(workers), *words)
            training.wait_for_exit()
            self._references[key] = training.run
        return self._references[key]


@contextmanager
def open_lab(folder: Path, cpus: int = 2) -> Iterator[Lab]:
    """Starts a `Lab`, and ends its cluster with the block."""
    lab = Lab(folder, cpus)
    try:
        if cpus:
            lab.start()
        yield lab
    finally:
        lab.close()


def find_free_port() -> int:
    """Finds a free port outside the range that Ray's workers use (10002 to 19999)."""
    while True:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = int(server.getsockname()[1])
        if port > 20000:
            return port


def count_steps(run: Run, rank: int = 0) -> int:
    """Returns the number of steps that a worker has logged; steps that it repeated count again."""
    with suppress(FileNotFoundError):
        return (run.path / f"rows-{rank}.log").read_bytes().count(b"\n")
    return 0


def find_descendants(pid: int) -> list[psutil.Process]:
    """Returns the processes below one; none if it has exited."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def read_title(process: psutil.Process) -> str:
    """Returns the first word of a process's command line, which Ray sets; empty if it has exited."""
    with suppress(psutil.Error, IndexError):
        return process.cmdline()[0]
    return ""


def kill_tree(pid: int) -> None:
    """Kills a process and all its descendants at once, as the loss of a machine does."""
    processes = find_descendants(pid)
    with suppress(psutil.NoSuchProcess):
        processes.append(psutil.Process(pid))
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def compute_difference(run: Run, reference: Run) -> float:
    """Compares the last checkpoints of two runs.

    Returns:
        0 if they are equal to the bit; else the largest difference as a share of the largest value of its
        array; infinity for equal weights with unequal metrics. (The sums of an epoch that was interrupted are
        rounded once more, in float64.)
    """
    name = max(path.name for path in reference.checkpoints.iterdir())
    difference = 0.0
    for ours, theirs in zip(read_checkpoint(run, name), read_checkpoint(reference, name), strict=True):
        if not np.array_equal(ours, theirs):
            largest = np.abs(ours - theirs).max(initial=0) / np.abs(theirs).max(initial=1e-30)
            difference = max(difference, float(largest), 1e-30)
    metrics = [
        [[line[key] for key in ("epoch", "loss", "accuracy", "val_loss")] for line in each.metrics()]
        for each in (run, reference)
    ]
    has_equal_metrics = np.allclose(*metrics, rtol=1e-12, atol=0)
    return math.inf if difference == 0 and not has_equal_metrics else difference


def check_rows(run: Run, epochs: int = EPOCHS) -> None:
    """Checks that the workers trained on every row once per epoch, however many workers there were.

    What a worker logged last for a step counts: steps after the last checkpoint are repeated.
    """
    last: dict[tuple[int, int, int], list[int]] = {}
    for path in run.path.glob("rows-*.log"):
        rank = int(path.stem.split("-")[1])
        for line in path.read_text().splitlines():
            epoch, step, *rows = map(int, line.split())
            last[epoch, step, rank] = rows
    for epoch in range(1, epochs + 1):
        trained: list[int] = []
        for step in range(EPOCH_STEPS):
            workers = BATCH // len(last[epoch, step, 0])  # when the step was done for the last time
            for rank in range(workers):
                trained += [row for row in last[epoch, step, rank] if row != PADDING]
        message = f"epoch {epoch}: {len(trained)} rows, {len(set(trained))} different ones"
        assert sorted(trained) == list(range(ROWS)), message
