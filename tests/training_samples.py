"""Small data, and runs of small networks on it, in this process or in processes of their own, for tests of the training."""

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
from shard_samples import record, write_shards

from pipelines.records import Record
from service.config import RunConfig
from service.runs import Run, StoppedError

SCRIPT = Path(__file__).parent / "service" / "training" / "fit_script.py"
ROOT = SCRIPT.parents[3]


def noise_shards(
    directory: Path, rows: int = 27, held_out: int = 10, classes: int = 2, white: int | None = None
) -> Path:
    """Noise of 12x12 pixels in some classes, each a little brighter than the one before; one training image may be white all over."""
    draw = np.random.default_rng(0)

    def noise(split: str, i: int) -> Record:
        low = 160 * (i % classes) // classes
        pixels = draw.integers(low, low + 96, (12, 12, 3)).astype(np.uint8)
        return record(
            np.full_like(pixels, 255) if (split, i) == ("train", white) else pixels,
            i % classes,
            f"{split}/{i}",
        )

    splits = {
        split: [noise(split, i) for i in range(count)]
        for split, count in (("train", rows), ("validation", held_out))
        if count
    }
    return write_shards(directory, tuple(f"class{i}" for i in range(classes)), splits)


def config_for(shards: Path, **changes: Any) -> RunConfig:
    """Three epochs of a network of two layers, with augmentation; on 27 images four steps each, the last one padded."""
    settings = {
        "preset": "test",
        "shards": str(shards),
        "model": "tiny_two_layers",
        "data": {"image_size": [12, 12]},
        "global_batch": 8,
    }
    return RunConfig.model_validate(
        settings | {"epochs": 3, "seed": 5, "augment": {"rotation": 20, "flip": True}} | changes
    )


def new_run(path: Path, config: RunConfig) -> Run:
    run = Run(path)
    run.create(config.model_dump(mode="json"))
    return run


class RunThatStops(Run):
    """A run whose workers are asked to stop when worker 0 has looked for such a request so many times."""

    def __init__(self, path: str | Path, looks: int | None) -> None:
        super().__init__(path)
        self._left = looks

    def stop_requested(self) -> str | None:
        if self._left is None:
            return None
        self._left -= 1
        return "enough" if self._left < 0 else None


@contextmanager
def watchful(interval: float = 0.0) -> Iterator[None]:
    """Within the block worker 0 looks for a stop request before every call, not every second."""
    from service.training import controller

    before, controller.STOP_CHECK_SECONDS = controller.STOP_CHECK_SECONDS, interval
    try:
        yield
    finally:
        controller.STOP_CHECK_SECONDS = before


def fitted(path: Path, config: RunConfig, looks: int | None = None) -> Run:
    """A run that this process began or continued, to its end or until it was asked to stop."""
    from service.training.loop import fit

    run = RunThatStops(path, looks)
    if not run.config_path.is_file():
        run.create(config.model_dump(mode="json"))
    with watchful(), suppress(StoppedError):
        fit(config, run)
    return Run(path)


def train_elsewhere(
    runs: Sequence[Path | str],
    workers: int = 1,
    devices: int = 1,
    seconds: float = 600,
    cores: Sequence[str] = (),
) -> None:
    """Trains runs that are there already, one after the other, in processes of their own.

    Args:
        runs: Their directories; see `fit_script.py` for what may follow.
        workers: Processes.
        devices: Logical CPUs of each.
        seconds: After which they are given up.
        cores: The processor cores of each worker, such as `0,1`; all for all where it is empty.
    """
    ports = ",".join(str(port) for port in _free_ports(workers))
    settings = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    log = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    bound = [["taskset", "--cpu-list", own] for own in cores] or [[]] * workers
    commands = [
        [*bound[rank], sys.executable, str(SCRIPT), str(devices), str(rank), ports, *map(str, runs)]
        for rank in range(workers)
    ]
    processes = [subprocess.Popen(command, env=settings, cwd=ROOT, **log) for command in commands]
    try:
        said = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, text in enumerate(said):
        if processes[rank].returncode:
            raise AssertionError(f"worker {rank}: exit {processes[rank].returncode}\n{text[-4000:]}")


def saved(run: Run, name: str, group: str | None = None) -> list[np.ndarray]:
    """What a checkpoint holds of a group of variables, or all of it, in its order."""
    path = run.checkpoints / name
    with np.load(path / "state.npz") as file:
        arrays = [file[key] for key in sorted(file.files)]
    if group is None:
        return arrays
    groups = json.loads((path / "checkpoint.json").read_text())["groups"]
    start = sum(
        count for other, count in groups.items() if list(groups).index(other) < list(groups).index(group)
    )
    return arrays[start : start + groups[group]]


def logged_rows(run: Run) -> dict[tuple[int, int], list[int]]:
    """Rows by epoch and step, put together from what all workers logged, which fails if one logged a step twice."""
    found: dict[tuple[int, int], list[int]] = {}
    for path in sorted(run.path.glob("rows-*.log")):
        lines = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
        if len({tuple(line[:2]) for line in lines}) != len(lines):
            raise AssertionError(f"a step twice in {path}")
        for epoch, step, *rows in lines:
            found.setdefault((epoch, step), []).extend(rows)
    return found


def _free_ports(count: int) -> list[int]:
    """Free ports outside the range that Ray's workers take (10002 to 19999)."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = int(server.getsockname()[1])
        if port > 20000 and port not in found:
            found.append(port)
    return found
