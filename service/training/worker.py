"""What Ray Train runs in each worker."""

from __future__ import annotations

import os
from typing import Any


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

    fit(RunConfig.model_validate(settings["config"]), Run(settings["out"]), report=ray.train.report)
