"""Inference over many images in blocks: in this process, or as tasks on a Ray cluster.

Blocks and batches are the same wherever they run. On machines of one type, the results are therefore the same
to the bit.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.cluster import ray_session, run_tasks
from pipelines.errors import ConfigError, DataError
from pipelines.shards.manifest import load_manifest
from service.inference.datasets import BATCH, Block, ImageDataset, InferenceBatch
from service.progress_bar import progress_bar
from service.runs import Run

if TYPE_CHECKING:
    import keras

    from service.inference.classifier import Classifier
    from service.inference.options import PredictOptions

BLOCK = 16 * BATCH  # rows: about a second of work, and some megabytes of results


@dataclass(frozen=True)
class SavedModel:
    """Copy of a model file at the start of the command, because a run in training may replace the file.

    Attributes:
        name: File name of the model.
        content: Content of the model file.
        classes: Class names from the shard set of its run; None if it no longer exists.
        custom_objects: Modules that define the custom layers of the model.
    """

    name: str
    content: bytes
    classes: tuple[str, ...] | None
    custom_objects: tuple[str, ...] = ()

    def load(self) -> keras.Model:
        """Loads the model.

        Raises:
            ConfigError: The file is not a usable model.
        """
        from service.devices import configure_devices
        from service.inference.classifier import load_model

        configure_devices()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.name
            path.write_bytes(self.content)
            return load_model(path, self.custom_objects)


def find_model_file(path: str | Path) -> Path:
    """Returns the model file of a run, or the path itself, without loading it.

    Raises:
        ConfigError: There is no such file, or the directory is not a run with a saved model.
    """
    path = Path(path)
    if path.is_dir():
        run = Run(path)
        run.config()  # raises if this is not a run directory
        path = run.model_path
    if not path.is_file():
        raise ConfigError(
            "a saved model", f"model={path} (no such file)", "name a .keras file or a finished run"
        )
    return path


def open_model(path: str | Path, custom_objects: Sequence[str] = ()) -> tuple[SavedModel, keras.Model]:
    """Reads and loads a model file, or that of a run together with the class names of its shard set.

    Args:
        path: Any Keras model file, or a run directory.
        custom_objects: Modules that define the custom layers of the model, in addition to those of the run.

    Raises:
        ConfigError: There is no such file or run, or it is not a usable model.
    """
    from service.devices import configure_devices
    from service.inference.classifier import class_count, load_model

    configure_devices()
    file = find_model_file(path)
    classes = None
    if Path(path).is_dir():
        run = Run(path)
        classes = _read_classes(run)
        custom_objects = (*custom_objects, *run.custom_objects())
    model = load_model(file, custom_objects)
    if classes and len(classes) != class_count(model):
        classes = None
    return SavedModel(file.name, file.read_bytes(), classes, tuple(custom_objects)), model


def _read_classes(run: Run) -> tuple[str, ...] | None:
    """Reads the class names of a run's shard set; None if the shard set no longer exists."""
    try:
        return load_manifest(run.config().get("shards") or "").classes
    except DataError:
        return None


@dataclass(frozen=True)
class InferenceJob:
    """Model, options and images of an inference, as sent to every worker.

    Attributes:
        model: Saved model that every worker loads.
        options: Pixel scale and test-time augmentation.
        dataset: Images to predict.
        reduce: Module-level function that maps a batch and its probabilities, float32 `[n, K]`, to the result
            of the batch.
    """

    model: SavedModel
    options: PredictOptions
    dataset: ImageDataset
    reduce: Callable[[InferenceBatch, np.ndarray], Any]


def split_into_blocks(rows: Mapping[str, int]) -> list[Block]:
    """Splits the rows of each split into blocks, in order."""
    return [
        Block(split, start, min(start + BLOCK, count))
        for split, count in rows.items()
        for start in range(0, count, BLOCK)
    ]


class Throughput:
    """Measures images per second, and the time until the first result."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first_result = 0.0
        self._rows = 0

    def add(self, rows: int) -> int:
        """Counts the rows of a finished block, and returns the total so far."""
        self._first_result = self._first_result or time.perf_counter() - self._start
        self._rows += rows
        return self._rows

    def __str__(self) -> str:
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rate = self._rows / seconds
        return f"{seconds:.1f} s: {rate:.0f} images/s, first result after {self._first_result:.1f} s"


def run_inference(
    job: InferenceJob,
    classifier: Classifier,
    blocks: Sequence[Block],
    workers: int | None,
    throughput: Throughput,
) -> Generator[tuple[int, list[Any]], None, None]:
    """Predicts blocks of images, with a progress bar.

    Runs on the cluster that `RAY_ADDRESS` names, or with `workers` above 1 on a Ray instance of this process.
    A single block always runs in this process, which uses all cores. Starting Ray and TensorFlow in its
    workers would take longer than the block.

    Args:
        job: Model, options, images and reduction.
        classifier: The loaded model, for blocks that run in this process.
        blocks: Blocks to predict, from `split_into_blocks`.
        workers: Maximum number of tasks at a time; None for one per CPU of the cluster.
        throughput: Updated with every block.

    Yields:
        Index into `blocks`, and the reduced batches of that block, in order of completion. Close the
        generator to stop early.

    Raises:
        ConfigError: `workers` is below 1, or a worker died repeatedly.
        GlassboxError: Raised by a block.
    """
    if workers is not None and workers < 1:
        raise ConfigError("at least 1 worker", f"workers={workers}", "leave --workers out, or give more")
    wants_cluster = bool(os.environ.get("RAY_ADDRESS")) or (workers or 1) > 1
    total = sum(block.stop - block.start for block in blocks)
    if wants_cluster and len(blocks) > 1:
        results = _run_on_cluster(job, blocks, workers)
    else:
        results = _run_here(job, classifier, blocks)
    with closing(results), progress_bar("predicting") as update:
        for index, result in results:
            rows = blocks[index].stop - blocks[index].start
            update(throughput.add(rows), total)
            yield index, result


def _run_here(
    job: InferenceJob, classifier: Classifier, blocks: Sequence[Block]
) -> Generator[tuple[int, list[Any]], None, None]:
    for index, block in enumerate(blocks):
        yield index, _predict_block(job, classifier, block)


def _run_on_cluster(
    job: InferenceJob, blocks: Sequence[Block], workers: int | None
) -> Generator[tuple[int, list[Any]], None, None]:
    def describe(index: int) -> str:
        block = blocks[index]
        return f"images {block.start} to {block.stop - 1} of {block.split}"

    with ray_session():
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        reference = (ray.put(job),)  # inside a tuple, so that Ray does not send the content with every task
        tasks = [(reference, block) for block in blocks]
        with closing(run_tasks(_predict_block_task, tasks, describe, workers, gpus)) as results:
            yield from results


def _predict_block_task(reference: tuple[Any], block: Block) -> list[Any]:
    """Predicts one block in a Ray worker."""
    assigned_cpus = os.environ.get("OMP_NUM_THREADS", "1")  # set by Ray
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", assigned_cpus)
    job, classifier = _load_job(reference[0])
    return _predict_block(job, classifier, block)


@lru_cache(maxsize=1)  # once per worker process
def _load_job(reference: Any) -> tuple[InferenceJob, Classifier]:
    import ray

    from service.inference.classifier import Classifier

    job: InferenceJob = ray.get(reference)
    return job, Classifier(job.model.load(), job.options)


def _predict_block(job: InferenceJob, classifier: Classifier, block: Block) -> list[Any]:
    results = []
    for batch in job.dataset.batches(block, classifier.data):
        is_real = np.arange(BATCH) < len(batch.ids)
        probabilities = classifier(batch.images, is_real)
        results.append(job.reduce(batch, probabilities))
    return results
