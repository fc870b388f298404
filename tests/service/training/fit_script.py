"""Trains runs in this process, as one of some workers and on some logical CPUs: run as a program.

Usage: `fit_script.py DEVICES RANK PORT[,PORT...] OUT[@CHECKS]...`

Each OUT holds the config.yaml of a run. With CHECKS the run is asked to stop after worker 0 has checked for a
request that many times, and its rows are logged. There is one port for each worker. At the end each OUT holds
`worker-RANK.json` for each worker: how often it traced the step, a digest of the variables of each of its
replicas, and its number of threads after each call of the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

import keras
import psutil
from tiny_models import register_tiny_models
from training_samples import StoppingRun, check_stops_at_every_call

from service.config import RunConfig
from service.devices import LOGICAL_DEVICES, configure_devices
from service.runs import StoppedError
from service.training import loop
from service.training.controller import Command
from service.training.learner import Learner
from service.training.strategy import WorkerContext, choose_strategy
from service.training.telemetry import ROWS_LOG


def main(devices: int, rank: int, ports: list[int], runs: list[str]) -> None:
    os.environ[LOGICAL_DEVICES] = str(devices)
    configure_devices()
    if len(ports) > 1:
        addresses = [f"127.0.0.1:{port}" for port in ports]
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        os.environ["TF_CONFIG"] = json.dumps(cluster)
    worker = WorkerContext(rank, world_size=len(ports), local_size=len(ports))
    strategy = choose_strategy(devices * len(ports), worker)
    # One strategy for all runs: the collectives of two in one process get mixed up.
    loop.choose_strategy = lambda global_batch, worker, augment: strategy
    for out in runs:
        path, _, checks = out.partition("@")
        os.environ[ROWS_LOG] = "1" if checks else ""
        train_run(StoppingRun(path, int(checks) if checks else None), worker)


def train_run(run: StoppingRun, worker: WorkerContext) -> None:
    training = loop.Loop(RunConfig.model_validate(run.config()), run, worker)
    threads: list[int] = []
    next_command = training.controller.next_command

    def count_threads(*arguments: float) -> Command:
        threads.append(psutil.Process().num_threads())
        return next_command(*arguments)

    training.controller.next_command = count_threads
    try:
        training.run_epochs()
    except StoppedError:
        return
    finally:
        training.close()
    summary = {
        "traces": training.learner.steps.trace_count,
        "replicas": hash_replicas(training.learner),
        "threads": threads,
    }
    (run.path / f"worker-{worker.rank}.json").write_text(json.dumps(summary))


def hash_replicas(learner: Learner) -> list[str]:
    """A digest for each replica of this worker, of all variables that a checkpoint holds."""
    by_variable = []
    for group in learner.variables.values():
        for variable in group:
            value = variable.value if isinstance(variable, keras.Variable) else variable
            by_variable.append(learner.strategy.experimental_local_results(value))
    digests = []
    for values in zip(*by_variable, strict=True):
        digests.append(hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest())
    return digests


if __name__ == "__main__":
    with register_tiny_models(), check_stops_at_every_call():
        main(int(sys.argv[1]), int(sys.argv[2]), [int(port) for port in sys.argv[3].split(",")], sys.argv[4:])
