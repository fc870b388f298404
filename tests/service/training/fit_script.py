"""Trains runs in this process, as one of some workers and on some logical CPUs: run as a program.

`DEVICES RANK PORT[,PORT...] OUT[@LOOKS]...`: an OUT holds the run's config.yaml; with LOOKS the run is asked to stop after worker 0
has looked for such a request so many times, and its rows are logged. Ports are those of the workers, of which there is one if there is
one port. Leaves in each OUT what each worker has in the end, `worker-RANK.json`: how often it traced the step, and a digest of the
variables of each of its replicas.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

import keras
import tensorflow as tf
from tiny_models import register_tiny_models
from training_samples import StoppingRun, check_stops_at_every_call

from service.config import RunConfig
from service.runs import StoppedError
from service.training import loop
from service.training.learner import Learner
from service.training.strategy import WorkerContext, choose_strategy
from service.training.telemetry import ROWS_LOG


def main(devices: int, rank: int, ports: list[int], runs: list[str]) -> None:
    if devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    if len(ports) > 1:
        workers = [f"127.0.0.1:{port}" for port in ports]
        os.environ["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
        )
    place = WorkerContext(rank, len(ports), len(ports))
    strategy = choose_strategy(devices * len(ports), place)
    loop.choose_strategy = lambda global_batch, place: (
        strategy
    )  # the sums of two strategies in one process get mixed up
    for out in runs:
        path, _, looks = out.partition("@")
        os.environ[ROWS_LOG] = "1" if looks else ""
        run = StoppingRun(path, int(looks) if looks else None)
        training = loop.Loop(RunConfig.model_validate(run.config()), run, place)
        try:
            training.run_epochs()
        except StoppedError:
            continue
        finally:
            training.writer.wait()
        found = {"traces": training.learner.steps.trace_count, "replicas": digests(training.learner)}
        (run.path / f"worker-{rank}.json").write_text(json.dumps(found))


def digests(learner: Learner) -> list[str]:
    """A digest for each replica here of all that a checkpoint holds."""
    members = [
        v.value if isinstance(v, keras.Variable) else v for group in learner.variables.values() for v in group
    ]
    local = zip(*(learner.strategy.experimental_local_results(v) for v in members), strict=True)
    return [hashlib.sha256(b"".join(v.numpy().tobytes() for v in replica)).hexdigest() for replica in local]


if __name__ == "__main__":
    with register_tiny_models(), check_stops_at_every_call():
        main(int(sys.argv[1]), int(sys.argv[2]), [int(port) for port in sys.argv[3].split(",")], sys.argv[4:])
