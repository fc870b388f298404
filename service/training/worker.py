"""Entry points of a worker: in a process of Ray Train, or in the process that the user started."""

from __future__ import annotations

import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pipelines.errors import ConfigError
from pipelines.interrupts import hold_interrupts
from service.config import RunConfig, load_run_config
from service.mirror.output import open_in_worker
from service.runs import Run


def train_worker(settings: dict[str, Any]) -> None:
    """Trains one run together with the other workers; the entry point that `TensorflowTrainer` calls.

    Args:
        settings: `config`, the configuration of the run as plain values; `out`, its directory; `store`, how
            to open a run on a store, or None; `attempt`, the number of restarts so far; `launched`, the start
            time in seconds since 1970.

    Raises:
        ConfigError: The run directory is not visible on this node.
    """
    began = time.time()
    os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Ray sets it; this project uses Keras 3
    import ray.train

    from service.devices import configure_devices
    from service.training.loop import fit
    from service.training.strategy import WorkerContext

    context = ray.train.get_context()
    worker = WorkerContext(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_size=context.get_local_world_size(),
        attempt=settings["attempt"],
    )
    if settings["store"]:
        directory: AbstractContextManager[Run] = open_in_worker(settings["store"], worker.is_chief)
    else:
        directory = nullcontext(_find_shared_run(settings["out"]))
    with directory as run:
        config = load_run_config(run) if settings["store"] else RunConfig.model_validate(settings["config"])
        notify = run.notice if worker.is_chief else print
        configure_devices(deterministic=config.deterministic, notify=notify)
        if worker.is_chief:
            run.add_timings(workers=began - settings["launched"], imports=time.time() - began)
        fit(config, run, worker)


def _find_shared_run(path: str) -> Run:
    """Returns the run in a directory that every node sees."""
    run = Run(path)
    if not run.exists():
        raise ConfigError(
            "a run directory that every node sees",
            f"out={run.path} (not on {platform.node()})",
            "choose shared storage, or a store such as --out s3://bucket/runs/first",
        )
    return run


def train_in_process(config: RunConfig, run: Run) -> None:
    """Trains a run in this process as its only worker, without Ray.

    Threads and devices are those of a single Ray worker with the whole machine, so that the results are equal
    to the bit.

    Args:
        config: Configuration of the run.
        run: Run directory to train, or to resume.

    Raises:
        GlassboxError: The configuration or the data cannot be used, or the training has diverged.
        StoppedError: A stop was requested; the state is saved.
    """
    began = time.time()
    with hold_interrupts():
        from service.devices import configure_devices
        from service.training.loop import fit
    configure_devices(deterministic=config.deterministic, notify=run.notice)
    run.add_timings(imports=time.time() - began)
    fit(config, run)
