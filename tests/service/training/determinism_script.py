"""Trains existing runs in this process, as `train --local` does: OUT...

A run with `deterministic: true` changes the whole process, so it comes last.
"""

from __future__ import annotations

import sys

from tiny_models import register_tiny_models

from service.config import load_run_config
from service.runs import Run
from service.training.worker import train_in_process

if __name__ == "__main__":
    with register_tiny_models():
        for out in sys.argv[1:]:
            run = Run(out)
            train_in_process(load_run_config(run), run)
