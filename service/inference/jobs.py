"""A saved model asked about many images, in blocks: in this process, or as tasks on a Ray cluster.

Blocks and batches are the same wherever they are answered, and so are the answers, to the bit.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.cluster import connected, run_tasks
from pipelines.errors import ConfigError, DataError
from pipelines.shards.manifest import load_manifest
from service.inference.classifier import Classifier, PredictOptions, class_count, load_model
from service.inference.datasets import BATCH, Block, ImageDataset, InferenceBatch
from service.progress_bar import progress_bar
from service.runs import Run

BLOCK = 16 * BATCH  # rows: a second or so of work, and some megabytes of answers


@dataclass(frozen=True)
class SavedModel:
    """A model file as it was when the command started: a run that is still training may replace it.

    Attributes:
        name: Of the file.
        content: Its bytes.
        classes: Class names, where the shard set of its run has them still.
    """

    name: str
    content: bytes
    classes: tuple[str, ...] | None

    def load(self) -> keras.Model:
        """The model.

        Raises:
            ConfigError: The file is no usable model.
        """
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # several processes may share it
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.name
            path.write_bytes(self.content)
            return load_model(path)


def open_model(path: str | Path) -> tuple[SavedModel, keras.Model]:
    """Reads a model file, or that of a run with the class names of its shard set, and loads it.

    Raises:
        ConfigError: There is no such file or run, or it is no usable model.
    """
    path, classes = Path(path), None
    if path.is_dir():
        run = Run(path)
        path, classes = run.model_path, _classes_of(run)
    model = load_model(path)  # checks it, and names it as the user did
    if classes and len(classes) != class_count(model):
        classes = None
    return SavedModel(path.name, path.read_bytes(), classes), model


def _classes_of(run: Run) -> tuple[str, ...] | None:
    """The class names of a run's shard set; None where there is none any more."""
    try:
        return load_manifest(run.config().get("shards") or "").classes
    except DataError:
        return None


@dataclass(frozen=True)
class InferenceJob:
    """What every worker is told.

    Attributes:
        model: Which model.
        asking: How it is asked.
        feed: Which images.
        take: What becomes of a batch and its probabilities, float32 `[n, classes]`; a function of a module.
    """

    model: SavedModel
    asking: PredictOptions
    feed: ImageDataset
    take: Callable[[InferenceBatch, np.ndarray], Any]


def blocks_of(rows: Mapping[str, int]) -> list[Block]:
    """Cuts splits of so many rows into blocks, in order."""
    return [
        Block(split, start, min(start + BLOCK, count))
        for split, count in rows.items()
        for start in range(0, count, BLOCK)
    ]


class Throughput:
    """How fast answers came."""

    def __init__(self) -> None:
        self._began, self._first, self._rows = time.perf_counter(), 0.0, 0

    def add(self, rows: int) -> int:
        """Counts the rows of a block, and returns how many there were so far."""
        self._first = self._first or time.perf_counter() - self._began
        self._rows += rows
        return self._rows

    def __str__(self) -> str:
        seconds = max(time.perf_counter() - self._began, 1e-9)
        return f"{seconds:.1f} s: {self._rows / seconds:.0f} images/s, the first after {self._first:.1f} s"


def answers(
    question: InferenceJob,
    classifier: Classifier,
    blocks: Sequence[Block],
    workers: int | None,
    pace: Throughput,
) -> Generator[tuple[int, list[Any]], None, None]:
    """Asks about blocks, with a progress bar.

    On the cluster that `RAY_ADDRESS` names, or with `workers` above 1 on one of this process's own; but what is not more
    than one block here, as everything else is: starting Ray and TensorFlow in its workers takes longer than that, and
    one process uses all cores anyway.

    Args:
        question: What is asked.
        classifier: The model, in this process.
        blocks: About which images.
        workers: Tasks at a time at most; None for as many as the cluster has CPUs for.
        pace: Is told of every block.

    Yields:
        Place in `blocks`, and what `take` made of each of its batches, as they come. Close it if you stop early.

    Raises:
        ConfigError: `workers` is below 1, or a worker died again and again.
        GlassboxError: What a block raised.
    """
    if workers is not None and workers < 1:
        raise ConfigError("at least 1 worker", f"workers={workers}", "leave --workers out, or give more")
    on_cluster = len(blocks) > 1 and (bool(os.environ.get("RAY_ADDRESS")) or (workers or 1) > 1)
    total = sum(block.stop - block.start for block in blocks)
    asked = _on_cluster(question, blocks, workers) if on_cluster else _here(question, classifier, blocks)
    with closing(asked) as results, progress_bar("asking the model") as update:
        for place, result in results:
            update(pace.add(blocks[place].stop - blocks[place].start), total)
            yield place, result


def _here(
    question: InferenceJob, classifier: Classifier, blocks: Sequence[Block]
) -> Generator[tuple[int, list[Any]], None, None]:
    for place, block in enumerate(blocks):
        yield place, _answered(question, classifier, block)


def _on_cluster(
    question: InferenceJob, blocks: Sequence[Block], workers: int | None
) -> Generator[tuple[int, list[Any]], None, None]:
    def name(place: int) -> str:
        return f"images {blocks[place].start} to {blocks[place].stop - 1} of {blocks[place].split}"

    with connected():
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        told = (ray.put(question),)  # in a tuple, so that Ray does not send its content with every task
        with closing(run_tasks(_task, [(told, block) for block in blocks], name, workers, gpus)) as results:
            yield from results


def _task(told: tuple[Any], block: Block) -> list[Any]:
    os.environ.setdefault(
        "TF_NUM_INTRAOP_THREADS", os.environ.get("OMP_NUM_THREADS", "1")
    )  # the CPUs that Ray gave the task
    question, classifier = _received(told[0])
    return _answered(question, classifier, block)


@lru_cache(maxsize=1)  # once a worker process
def _received(reference: Any) -> tuple[InferenceJob, Classifier]:
    import ray

    question: InferenceJob = ray.get(reference)
    return question, Classifier(question.model.load(), question.asking)


def _answered(question: InferenceJob, classifier: Classifier, block: Block) -> list[Any]:
    found = []
    for fed in question.feed.batches(block, classifier.data):
        real = np.arange(BATCH) < len(fed.ids)
        found.append(question.take(fed, classifier(fed.images, real)))
    return found
