"""Small data, and trainings of small models on it, in this process or in processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from shard_samples import make_record, write_shards

from pipelines.records import Record
from service.config import RunConfig
from service.runs import Run, StoppedError

SCRIPT = Path(__file__).parent / "service" / "training" / "fit_script.py"
ROOT = SCRIPT.parents[3]


# What the presets of ImageNet use, for images of 12x12.
IMAGENET_RECIPE: dict[str, Any] = {
    "data": {"image_size": [12, 12], "fit": "crop", "repeats": 3},
    "augment": {
        "size": [10, 10],
        "crop": [0.3, 1.0],
        "crop_at": "decode",
        "flip": True,
        "randaugment": 7,
        "mixup": 0.1,
        "cutmix": 1.0,
    },
    "model": "tiny_pooled",
    "optimizer": {
        "name": "lamb",
        "learning_rate": 0.05,
        "scale": "sqrt",
        "reference_batch": 16,
        "weight_decay": 0.02,
        "decay_scale": "linear",
        "epsilon": 1e-3,
        "clip_norm": 1.0,
    },
    "schedule": {"name": "cosine", "warmup_epochs": 1, "warmup_from": "unscaled"},
    "loss": "bce",
    "bce_threshold": 0.2,
}


def noise_shards(
    directory: Path,
    rows: int = 27,
    held_out: int = 10,
    classes: int = 2,
    white: int | None = None,
    shard_rows: int = 1000,
    format: str = "arrow",
) -> Path:
    """Writes a shard set of noise, 12x12 pixels in RGB, each class a little brighter than the one before.

    Args:
        directory: Directory of the shard set, which must not exist.
        rows: Number of training images.
        held_out: Number of validation images; 0 for no validation split.
        classes: Number of classes, which take turns.
        white: Row of a training image whose pixels are all 255; None for no such image.
        shard_rows: Images per shard.
        format: Format of the shards, `arrow` or `tfrecord`.
    """
    draw = np.random.default_rng(0)

    def draw_record(split: str, row: int) -> Record:
        low = 160 * (row % classes) // classes
        pixels = draw.integers(low, low + 96, (12, 12, 3)).astype(np.uint8)
        if (split, row) == ("train", white):
            pixels[:] = 255
        return make_record(pixels, row % classes, f"{split}/{row}")

    splits = {
        split: [draw_record(split, row) for row in range(count)]
        for split, count in (("train", rows), ("validation", held_out))
        if count
    }
    names = tuple(f"class{i}" for i in range(classes))
    return write_shards(directory, names, splits, shard_rows, format=format)


def config_for(shards: Path | str, **changes: Any) -> RunConfig:
    """Returns the configuration of three epochs of a model of two layers, with augmentation.

    On 27 images an epoch is four steps, the last of them padded.
    """
    settings = {
        "preset": "test",
        "shards": str(shards),
        "model": "tiny_two_layers",
        "data": {"image_size": [12, 12]},
        "global_batch": 8,
        "epochs": 3,
        "seed": 5,
        "augment": {"rotation": 20, "flip": True},
    }
    return RunConfig.model_validate(settings | changes)


def create_run(path: Path, config: RunConfig) -> Run:
    run = Run(path)
    run.create(config.model_dump(mode="json"))
    return run


class StoppingRun(Run):
    """A run that workers are requested to stop.

    Args:
        path: The run directory.
        checks: Number of times that worker 0 checks for a request before there is one; None for no request.
    """

    def __init__(self, path: str | Path, checks: int | None) -> None:
        super().__init__(path)
        self._checks = checks

    def stop_requested(self) -> str | None:
        if self._checks is None:
            return None
        self._checks -= 1
        return "enough" if self._checks < 0 else None


@contextmanager
def check_stops_at_every_call() -> Iterator[None]:
    """Makes worker 0 check for a stop request before every call, not every second."""
    from service.training import controller

    before = controller.STOP_CHECK_SECONDS
    controller.STOP_CHECK_SECONDS = 0.0
    try:
        yield
    finally:
        controller.STOP_CHECK_SECONDS = before


def fit_run(path: Path, config: RunConfig, checks: int | None = None) -> Run:
    """Starts or continues a run in this process.

    Args:
        path: The run directory.
        config: Configuration of a new run.
        checks: Number of checks after which it is requested to stop; None to train to the end.
    """
    from service.training.loop import fit

    run = StoppingRun(path, checks)
    if not run.config_path.is_file():
        run.create(config.model_dump(mode="json"))
    with check_stops_at_every_call(), suppress(StoppedError):
        fit(config, run)
    return Run(path)


def train_in_processes(
    runs: Sequence[Path | str],
    workers: int = 1,
    devices: int = 1,
    seconds: float = 600,
    cores: Sequence[str] = (),
) -> None:
    """Trains existing runs, one after the other, in new processes.

    Args:
        runs: Run directories; see `fit_script.py` for what may follow the path of each.
        workers: Number of processes.
        devices: Number of logical CPUs of each process.
        seconds: Time after which the processes are killed.
        cores: Processor cores of each process, such as `0,1`; empty for all cores for all.
    """
    ports = ",".join(str(port) for port in find_free_ports(workers))
    settings = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    prefixes = [["taskset", "--cpu-list", own] for own in cores] or [[]] * workers
    processes = []
    for rank in range(workers):
        command = [*prefixes[rank], sys.executable, str(SCRIPT), str(devices), str(rank), ports]
        command += map(str, runs)
        processes.append(
            subprocess.Popen(
                command, env=settings, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, output in enumerate(outputs):
        code = processes[rank].returncode
        if code:
            raise AssertionError(f"worker {rank}: exit {code}\n{output[-4000:]}")


def read_worker(run: Run, rank: int = 0) -> dict[str, Any]:
    """Reads what a worker of `train_in_processes` has written about itself (see `fit_script.py`)."""
    return dict(json.loads((run.path / f"worker-{rank}.json").read_text()))


def read_checkpoint(run: Run, name: str, group: str | None = None) -> list[np.ndarray]:
    """Reads the arrays of a checkpoint in their order, those of one group of variables or all of them."""
    path = run.checkpoints / name
    with np.load(path / "state.npz") as file:
        arrays = [file[key] for key in sorted(file.files)]
    if group is None:
        return arrays
    sizes = json.loads((path / "checkpoint.json").read_text())["groups"]
    start = 0
    for other, size in sizes.items():
        if other == group:
            return arrays[start : start + size]
        start += size
    raise KeyError(group)


def read_logged_rows(run: Run) -> dict[tuple[int, int], list[int]]:
    """Reads the rows by epoch and step, those of all workers together; fails if one logged a step twice."""
    rows_of_step: dict[tuple[int, int], list[int]] = {}
    for path in sorted(run.path.glob("rows-*.log")):
        lines = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
        if len({tuple(line[:2]) for line in lines}) != len(lines):
            raise AssertionError(f"a step twice in {path}")
        for epoch, step, *rows in lines:
            rows_of_step.setdefault((epoch, step), []).extend(rows)
    return rows_of_step


def find_free_ports(count: int) -> list[int]:
    """Finds free ports outside the range that Ray's workers use (10002 to 19999)."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = int(server.getsockname()[1])
        if port > 20000 and port not in ports:
            ports.append(port)
    return ports
