"""Enters every function of the API that computes, in a process that believes that it has a GPU: FOLDER.

Prints, for each, whether the memory of the GPU was set to grow before TensorFlow started.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import glassbox
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from service.config import load_config
from service.inference.jobs import SavedModel
from service.models.check import build_and_check
from service.report.batch import _render_task
from service.report.options import ReportOptions
from service.report.pages.comparison import render_comparison
from service.report.reported import ReportedRun
from service.runs import Run
from service.training.worker import train_in_process
from service.tuning.trial import train_trial


class Configured(BaseException):
    """The memory of the GPU was set to grow; nothing else is of interest."""


GPU = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")


def pretend_gpu() -> None:
    """Makes TensorFlow list a GPU, and ends whatever lets its memory grow."""
    list_real_devices = tf.config.list_physical_devices

    def list_devices(kind: str | None = None) -> list[Any]:
        return [GPU] if kind == "GPU" else list_real_devices(kind)

    def set_growth(device: Any, enable: bool) -> None:
        is_first = context.context()._context_handle is None
        raise Configured(f"{device.name} {enable} {'before' if is_first else 'after'} TensorFlow started")

    tf.config.list_physical_devices = list_devices
    tf.config.get_visible_devices = list_devices
    tf.config.experimental.get_device_details = lambda device: {}
    tf.config.experimental.set_memory_growth = set_growth


def list_entries(folder: Path) -> dict[str, Callable[[], Any]]:
    """Returns calls of the functions that compute, by name."""
    run = Run(folder / "runs" / "one")
    new_run = Run(folder / "runs" / "new")
    shards = folder / "shards"
    images = np.zeros((1, 8, 8, 1), np.uint8)
    config = load_config("demo", shards)
    user_config = load_config("demo", shards, [f"model={folder}/own.py:build"])
    content = run.model_path.read_bytes()
    return {
        "train_in_process": lambda: train_in_process(config, new_run),
        "train_trial": lambda: train_trial({"run": str(new_run.path)}),
        "build_and_check": lambda: build_and_check(user_config),
        "task of predict": lambda: SavedModel("model.keras", content, None).load(),
        "task of report": lambda: _render_task(ReportedRun.from_run(run), ReportOptions(), False),
        "evaluate": lambda: glassbox.evaluate(run.path, shards),
        "predict": lambda: glassbox.predict(run.path, str(shards)),
        "load_model": lambda: glassbox.load_model(run.path),
        "heatmaps": lambda: glassbox.heatmaps(run.path, images),
        "activations": lambda: glassbox.activations(run.path, images[0]),
        "report of a run": lambda: glassbox.report(run.path),
        "report of a model": lambda: glassbox.report(run.model_path, shards, folder / "page"),
        "comparison": lambda: render_comparison([run, new_run], folder / "comparison"),
        "preview": lambda: glassbox.preview(shards, {"rotation": 30}, folder / "preview"),
        "Dataset": lambda: glassbox.Dataset(shards),
        "images": lambda: glassbox.open_shards(shards).images([0]),
    }


def main(folder: Path) -> None:
    for name, enter in list_entries(folder).items():
        try:
            enter()
            outcome = "nothing was configured"
        except Configured as configured:
            outcome = str(configured)
        except Exception as error:  # noqa: BLE001 (the test shows it)
            outcome = f"{type(error).__name__}: {error}"
        print(f"{name}: {outcome}")


if __name__ == "__main__":
    pretend_gpu()
    main(Path(sys.argv[1]))
