"""Trains existing runs in this process, as `train --local` does: OUT...

Those with `deterministic: true` come last, because they turn on for the whole process what GPUs need for it.
"""

from __future__ import annotations

import sys

from tiny_models import register_tiny_models

from service.config import load_run_config
from service.devices import enable_determinism
from service.runs import Run
from service.training.worker import train_in_process

if __name__ == "__main__":
    with register_tiny_models():
        for out in sys.argv[1:]:
            run = Run(out)
            config = load_run_config(run)
            if config.deterministic:
                enable_determinism()
            train_in_process(config, run)
