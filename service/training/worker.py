"""What Ray Train runs in each worker."""

from __future__ import annotations

import os
import platform
from typing import Any

from pipelines.errors import ConfigError


def train_worker(settings: dict[str, Any]) -> None:
    """Trains one run; the entry point that `TensorflowTrainer` calls.

    Args:
        settings: `config`, the run's configuration as plain values, and `out`, its directory.
    """
    os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Ray sets it; this project is Keras 3
    import ray.train

    from service.config import RunConfig
    from service.runs import Run
    from service.training.loop import fit

    run = Run(settings["out"])
    if not run.config_path.is_file():
        raise ConfigError("a run directory that every node sees", f"out={run.path} (not on {platform.node()})", "choose shared storage")
    fit(RunConfig.model_validate(settings["config"]), run, report=ray.train.report)
