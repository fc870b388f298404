"""What Ray Train runs in each worker."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

from pipelines.errors import ConfigError


def train_worker(settings: dict[str, Any]) -> None:
    """Trains one run, together with the other workers; the entry point that `TensorflowTrainer` calls.

    Args:
        settings: `config`, the run's configuration as plain values; `out`, its directory; `attempt`, how often the workers were started
            before; `launched`, when the driver started them, in seconds since 1970; `workers` and `cpus`, of the group.
    """
    began = time.time()
    os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Ray sets it; this project is Keras 3
    import ray.train

    from service.config import RunConfig
    from service.runs import Run
    from service.training.loop import fit
    from service.training.strategy import WorkerContext, use_cores

    context = ray.train.get_context()
    place = WorkerContext(
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_world_size(),
        settings["attempt"],
    )
    run = Run(settings["out"])
    if not run.config_path.is_file():
        raise ConfigError(
            "a run directory that every node sees",
            f"out={run.path} (not on {platform.node()})",
            "choose shared storage",
        )
    use_cores(settings["cpus"] if place.workers > 1 else None)  # several would each take all of them
    if place.writes:
        timings = {"workers": began - settings["launched"], "imports": time.time() - began}
        run.update_status(timings=run.status().get("timings", {}) | timings)
    fit(RunConfig.model_validate(settings["config"]), run, place)
