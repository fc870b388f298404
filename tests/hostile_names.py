"""Names that are attacks on pages, terminals and tables, and a run that is full of them."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from report_samples import make_run, metrics
from shard_samples import make_record, write_shards

from service.runs import Run

SCRIPT = "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>"
ENDS = "\"'>]]>--></script></style></textarea></title>"
CONTROLS = "\x1b[31m\x9b2J\u202etxt.exe\u2066\u200f"
SHOWN_CONTROLS = r"\x1b[31m\x9b2J\u202etxt.exe\u2066\u200f"
CLASSES = (
    f"=cmd|' /C calc'!A0{SCRIPT}",
    f"{ENDS}{SCRIPT}\n{CONTROLS}{{{{ 7 * 7 }}}}${{7 * 7}}",
    "x" * 10_000,
)
IDS = tuple(f"{name[:3000]}{row}" for row, name in enumerate(CLASSES * 2))
RUN_NAME = "<img src=x onerror='window.attacked = 3'> \u202e%41 'a'"
LAYER_NAME = "1--1.js" + "y" * 10_000  # TensorFlow takes no markup in the name of a layer


def build_model(seed: int = 0) -> keras.Model:
    """Builds a classifier of 8x8 grey images with random weights."""
    layers = [
        keras.layers.Input((8, 8, 1)),
        keras.layers.Conv2D(2, 3, activation="relu", name=LAYER_NAME),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, activation="softmax", name="1--1"),
    ]
    keras.utils.set_random_seed(seed)
    return keras.Sequential(layers, name=f"model {SCRIPT}".replace("/", "\N{FRACTION SLASH}"))


def make_hostile_run(path: Path, shards: Path, seed: int = 0) -> Run:
    """Makes a run of three epochs, and its shard set if there is none yet.

    Args:
        path: Run directory to create.
        shards: Directory of the shard set.
        seed: Seed of the weights.
    """
    if not shards.exists():
        rows = [
            make_record(np.full((8, 8, 1), 40 * row, np.uint8), row % 3, name) for row, name in enumerate(IDS)
        ]
        write_shards(shards, CLASSES, {"train": rows, "validation": rows})
    return make_run(path, shards, build_model(seed), metrics(3))
