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
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.cluster import choose_task_resources, list_nodes, ray_session, run_tasks
from pipelines.errors import ConfigError, DataError
from pipelines.remote.files import fetch_file, resolve_location
from pipelines.remote.uri import Uri
from pipelines.shards.manifest import load_manifest
from service.inference.datasets import BATCH, Block, ImageDataset, InferenceBatch
from service.inference.interpretation import Head, ImageFit, Interpretation, PixelTransform
from service.mirror.fetch import fetch_run
from service.models.metadata import ModelMetadata, read_metadata
from service.progress_bar import progress_bar
from service.runs import Run

if TYPE_CHECKING:
    import keras

    from service.inference.classifier import Classifier
    from service.inference.options import PredictOptions

MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")  # of objects in a store; without one, it is a run
BLOCK = 16 * BATCH  # rows: about a second of work, and some megabytes of results


@dataclass(frozen=True)
class SavedModel:
    """Copy of a model file at the start of the command, because a run in training may replace the file.

    Attributes:
        name: File name of the model.
        content: Content of the model file.
        classes: Class names in the order of the outputs; None if they are not known.
        custom_objects: Modules that define the custom layers of the model.
        metadata: Metadata of the file or of its run; None if there is none.
        class_source: Where the class names come from, or why they are not known, as a phrase.
    """

    name: str
    content: bytes
    classes: tuple[str, ...] | None
    custom_objects: tuple[str, ...] = ()
    metadata: ModelMetadata | None = None
    class_source: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return sha256(self.content).hexdigest()

    @property
    def interpretation(self) -> Interpretation | None:
        """How pixels enter the model and what its outputs mean, as recorded in its metadata."""
        return None if self.metadata is None else read_interpretation(self.metadata)

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
        if run.has_model():
            run.check_has_model()  # that it is the run's own
    if not path.is_file():
        raise ConfigError(
            "a saved model", f"model={path} (no such file)", "name a .keras file or a finished run"
        )
    return path


def fetch_model(model: str | Path | Uri) -> Path:
    """Returns a local model file, or a local run directory with a model, without loading it.

    Args:
        model: A model file or a run directory; path or URI. What is in a store is copied to the cache folder.

    Raises:
        ConfigError: There is no such file or object, or no run with a saved model.
        StoreError: The store denies access or does not respond.
    """
    location = resolve_location(model)
    if isinstance(location, Path):
        path = location
    elif location.suffix in MODEL_SUFFIXES or location.is_read_only:
        path = fetch_file(location)
    else:
        path = fetch_run(location, ("model",)).path
    find_model_file(path)
    return path


def open_model(path: str | Path, custom_objects: Sequence[str] = ()) -> tuple[SavedModel, keras.Model]:
    """Reads and loads a model file, or that of a run, together with its metadata.

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
    run = Run(path) if Path(path).is_dir() else None
    if run is not None:
        custom_objects = (*custom_objects, *run.custom_objects())
    model = load_model(file, custom_objects)
    names = find_class_names(file, run, class_count(model))
    saved = SavedModel(
        name=file.name,
        content=file.read_bytes(),
        classes=names.classes,
        custom_objects=tuple(custom_objects),
        metadata=names.metadata,
        class_source=names.source,
    )
    return saved, model


@dataclass(frozen=True)
class ClassNames:
    """The class names of a model, and where they come from.

    Attributes:
        classes: Class names in the order of the outputs; None if they are not known.
        source: Where they come from, or why they are not known, as a phrase.
        metadata: Metadata of the file or of its run; None if there is none.
    """

    classes: tuple[str, ...] | None
    source: str
    metadata: ModelMetadata | None = None


def find_class_names(file: Path, run: Run | None, count: int) -> ClassNames:
    """Finds the class names of a model: in its file, in its run, or for older runs in their shard set.

    Args:
        file: The model file.
        run: Run that it belongs to; None for a file alone.
        count: Number of classes that the model distinguishes.

    Raises:
        ConfigError: The metadata is damaged, or is that of another model.
    """
    metadata = read_metadata(file)
    source = "recorded in the model file"
    if metadata is None and run is not None:
        metadata = run.read_metadata()
        source = "recorded in the run"
    if metadata is not None:
        if len(metadata.classes) != count:
            raise ConfigError(
                f"metadata of a model of {count} classes",
                f"model={file} (metadata of {len(metadata.classes)} classes)",
                "restore the file, or train again",
            )
        return ClassNames(metadata.classes, source, metadata)
    if run is None:
        return ClassNames(None, "the file has no class names")
    return _find_names_of_old_run(run, count)


def _find_names_of_old_run(run: Run, count: int) -> ClassNames:
    """Reads the class names of the shard set of a run that has no record of them."""
    shards = run.config().get("shards") or ""
    try:
        manifest = load_manifest(shards)
    except DataError:
        return ClassNames(None, f"the run has no record of its classes, and shards={shards} no longer exists")
    digest = run.read_data_digest()
    is_other = len(manifest.classes) != count or (digest is not None and digest != manifest.digest())
    if is_other:
        return ClassNames(
            None, f"the run has no record of its classes, and shards={shards} is another set now"
        )
    if digest is None:
        source = f"the run has no record of its classes; those of shards={shards}, as it is now"
        return ClassNames(manifest.classes, source)
    return ClassNames(manifest.classes, "those of the shard set that the run was trained on")


def read_interpretation(metadata: ModelMetadata) -> Interpretation:
    """Returns how pixels enter a model and what its outputs mean, as recorded in its metadata."""
    reason = "recorded when the model was trained"
    head: Head = "logits" if metadata.head == "logits" else "probabilities"
    return Interpretation(
        pixels=PixelTransform(metadata.scale, metadata.offset),
        head=head,
        pixels_reason=reason,
        head_reason=reason,
        image_fit=ImageFit(metadata.fit, metadata.resize, metadata.antialias),
        fit_reason=reason,
    )


@dataclass(frozen=True)
class InferenceJob:
    """Model, options and images of an inference, as sent to every worker.

    Attributes:
        model: Saved model that every worker loads.
        options: Pixel scale, head and test-time augmentation.
        interpretation: How pixels enter the model and what its outputs mean.
        dataset: Images to predict.
        reduce: Module-level function that maps a batch and its probabilities, float32 `[n, K]`, to the result
            of the batch.
    """

    model: SavedModel
    options: PredictOptions
    interpretation: Interpretation
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


def uses_cluster(workers: int | None) -> bool:
    """Tells whether an inference runs on a Ray cluster, see `run_inference`."""
    return bool(os.environ.get("RAY_ADDRESS")) or (workers or 1) > 1


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
    total = sum(block.stop - block.start for block in blocks)
    if uses_cluster(workers) and len(blocks) > 1:
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

        is_shared = bool(os.environ.get("RAY_ADDRESS"))
        resources = choose_task_resources(list_nodes(), min(len(blocks), workers or len(blocks)), is_shared)
        reference = (ray.put(job),)  # inside a tuple, so that Ray does not send the content with every task
        tasks = [(reference, block) for block in blocks]
        with closing(run_tasks(_predict_block_task, tasks, describe, workers, resources)) as results:
            yield from results


def _predict_block_task(reference: tuple[Any], block: Block) -> list[Any]:
    """Predicts one block in a Ray worker."""
    job, classifier = _load_job(reference[0])
    return _predict_block(job, classifier, block)


@lru_cache(maxsize=1)  # once per worker process
def _load_job(reference: Any) -> tuple[InferenceJob, Classifier]:
    import ray

    from service.inference.classifier import Classifier

    job: InferenceJob = ray.get(reference)
    return job, Classifier(job.model.load(), job.options, job.interpretation)


def _predict_block(job: InferenceJob, classifier: Classifier, block: Block) -> list[Any]:
    results = []
    for batch in job.dataset.batches(block, classifier.data):
        is_real = np.arange(BATCH) < len(batch.ids)
        probabilities = classifier(batch.images, is_real)
        results.append(job.reduce(batch, probabilities))
    return results
