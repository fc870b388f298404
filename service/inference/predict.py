"""Writes the predictions of a saved model to a table. TensorFlow is imported after the inputs are checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.errors import ConfigError, DataError
from pipelines.records import Rejected
from pipelines.remote.uri import Location
from pipelines.shards.output import report_write_errors
from pipelines.sources import SourceOptions
from pipelines.spec import DataSpec
from pipelines.storage import write_atomically
from service.inference.classes import list_names
from service.inference.datasets import (
    BATCH,
    Block,
    ImageDataset,
    InferenceBatch,
    find_split,
    open_dataset,
    use_levels,
)
from service.inference.jobs import (
    InferenceJob,
    SavedModel,
    Throughput,
    fetch_model,
    open_model,
    run_inference,
    split_into_blocks,
)
from service.inference.options import DEFAULT_OPTIONS, PredictOptions
from service.inference.outputs import Output, open_output
from service.inference.tables import TableSpool, open_spool

REJECTED_SUFFIX = ".rejected.jsonl"
METADATA_KEY = "glassbox"  # entry in the metadata of a Parquet file
FIXED_COLUMNS = ("id", "class")  # followed by one column of probabilities per class
BatchResult = tuple[list[str], np.ndarray, list[Rejected]]  # ids, probabilities [n, K], rejected images


@dataclass(frozen=True)
class PredictionSummary:
    """Number of predicted and rejected images, and the throughput.

    Attributes:
        images: Rows of the table.
        rejected: Number of images that could not be decoded.
        rejected_path: File that lists the rejected images, if there are any.
        throughput: Images per second, and the time until the first result.
        notes: How pixels, outputs and classes were interpreted, a line each.
    """

    images: int
    rejected: int
    rejected_path: Location
    throughput: Throughput
    notes: tuple[str, ...] = ()


def predict(  # noqa: PLR0913 (keyword options of a public function)
    model: str | Path,
    data: str,
    out: str | Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    options: PredictOptions = DEFAULT_OPTIONS,
    workers: int | None = None,
    custom_objects: Sequence[str] = (),
    source_options: SourceOptions | None = None,
) -> PredictionSummary:
    """Predicts every image, and writes a table of id, class and class probabilities in their order.

    A Parquet file also records how pixels and outputs were interpreted, in the entry `glassbox` of its
    metadata.
    Images that cannot be decoded are listed in a file next to `out`, with the suffix `.rejected.jsonl`.

    Args:
        model: Any Keras model file, or a run directory; path or URI.
        data: Shard set, path or URI, or a source such as `photos:DIR` for photos without classes.
        out: File to write, `.parquet` or `.csv`, path or URI; an existing file is replaced.
        split: Name of the split, or a usual one for it, such as `val`; None for all, one after the other.
        classes: Class names; None for those of the model, else `class_0`, `class_1` and so on.
        options: Pixel scale, head and test-time augmentation.
        workers: Maximum number of Ray tasks, see `service.inference.jobs.run_inference`.
        custom_objects: Modules that define the custom layers of the model, see `load_model`.
        source_options: Splits and columns that the user specified for a source.

    Raises:
        ConfigError: The model, the data, the output or the class names cannot be used.
        DataError: The data is damaged, or no image can be decoded.
    """
    with open_output(out, ".parquet", ".csv", companions=(REJECTED_SUFFIX,)) as output:
        return _predict(
            model,
            data,
            output,
            split=split,
            classes=classes,
            options=options,
            workers=workers,
            custom_objects=custom_objects,
            source_options=source_options,
        )


def _predict(  # noqa: PLR0913 (the options of `predict`)
    model: str | Path,
    data: str,
    output: Output,
    *,
    split: str | None,
    classes: Sequence[str] | None,
    options: PredictOptions,
    workers: int | None,
    custom_objects: Sequence[str],
    source_options: SourceOptions | None,
) -> PredictionSummary:
    """Writes the table and the list of rejected images to local files, see `predict`."""
    file = fetch_model(model)
    dataset = open_dataset(data, source_options)
    rows = _select_splits(dataset, split, data)

    from service.inference.classifier import Classifier, class_count, input_spec
    from service.inference.inspection import decide_image_fit, interpret_model

    saved, net = open_model(file, custom_objects)
    dataset = use_levels(dataset, saved.metadata)
    names = name_classes(class_count(net), classes, saved.classes)
    pixels = None
    if saved.interpretation is None:
        image_fit, _ = decide_image_fit(options, None)
        pixels = _read_first_images(dataset, rows, input_spec(net, image_fit))
    interpretation = interpret_model(net, options, saved.interpretation, pixels=pixels)
    classifier = Classifier(net, options, interpretation)
    notes = (*interpretation.notes, describe_names(names, classes, saved))
    probability_columns = [(name, pa.float32()) for name in names]
    metadata = interpretation.describe() | {"model_sha256": saved.digest, "classes": notes[-1]}
    schema = pa.schema(
        [(name, pa.string()) for name in FIXED_COLUMNS] + probability_columns,
        metadata={METADATA_KEY: json.dumps(metadata, ensure_ascii=False)},
    )
    job = InferenceJob(saved, options, interpretation, dataset, _collect_batch)
    throughput = Throughput()
    images = 0
    rejected_in_block: dict[int, list[Rejected]] = {}
    with open_spool(output.path, schema) as spool:
        results = run_inference(job, classifier, split_into_blocks(rows), workers, throughput)
        with closing(results):
            for index, batches in results:
                images += _spool_block(spool, index, batches, schema)
                rejected_in_block[index] = [item for *_, rejected in batches for item in rejected]
        rejected = [item for _, items in sorted(rejected_in_block.items()) for item in items]
        _write_rejections(output.path.with_suffix(REJECTED_SUFFIX), rejected)
        rejected_path = output.locate_companion(REJECTED_SUFFIX)
        if not images:
            raise DataError(
                "images that can be decoded",
                f"data={data}: all {len(rejected)} images rejected (reasons in {rejected_path})",
                "check that these files are photos",
            )
        spool.write()
    return PredictionSummary(images, len(rejected), rejected_path, throughput, notes)


def _read_first_images(dataset: ImageDataset, rows: dict[str, int], data: DataSpec) -> np.ndarray:
    """Reads the images of the first batch, uint8 `[n, H, W, C]`, on which the outputs are inspected."""
    split = next(name for name, count in rows.items() if count)
    block = Block(split, 0, min(BATCH, rows[split]))
    batches = dataset.batches(block, data)
    first = next(iter(batches))
    return np.asarray(first.images)[: len(first.ids)]


def describe_names(names: Sequence[str], requested: Sequence[str] | None, saved: SavedModel) -> str:
    """Says where class names come from, as a line for the terminal; see `name_classes`."""
    if requested:
        return f"classes: {list_names(names)}: as set by --classes"
    if saved.classes:
        return f"classes: {list_names(names)}: {saved.class_source}"
    return (
        f"classes: {list_names(names)}: by position, because {saved.class_source}; name them with --classes"
    )


def _select_splits(dataset: ImageDataset, split: str | None, data: str) -> dict[str, int]:
    """Returns the number of rows of the requested split, or of each split."""
    rows = dict(dataset.rows())
    if split is not None:
        split = find_split(rows, split)
        if split not in rows:
            raise DataError(
                f"a split named one of {', '.join(rows)}",
                f"split={split}",
                "name one of these, or leave --split out for all",
            )
        rows = {split: rows[split]}
    if not sum(rows.values()):
        raise DataError("images", f"data={data}: none", "check the path")
    return rows


def name_classes(
    count: int, requested: Sequence[str] | None, of_model: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Returns the class names, each of which becomes a column."""
    names = tuple(requested or of_model or (f"class_{label}" for label in range(count)))
    if len(names) != count:
        raise ConfigError(
            f"{count} class names, one for each class of the model",
            f"--classes with {len(names)}",
            "name them all",
        )
    are_columns = of_model is None or not _list_repeated(of_model)
    if requested and of_model and names != of_model and are_columns:
        raise ConfigError(
            f"the classes of the model: {list_names(of_model)}",
            f"classes={list_names(requested)}",
            "leave --classes out",
        )
    repeated = _list_repeated(names)
    if repeated:
        raise ConfigError(
            "class names that can be columns next to id and class",
            f"class={repeated[0]} twice",
            "pass other names with --classes, in the order of the outputs",
        )
    return names


def _list_repeated(names: Sequence[str]) -> list[str]:
    """Lists the class names that cannot be columns, because another column has the same name."""
    return [name for name, times in Counter((*FIXED_COLUMNS, *names)).items() if times > 1]


def _collect_batch(batch: InferenceBatch, probabilities: np.ndarray) -> BatchResult:
    return batch.ids, probabilities, batch.rejected


def _spool_block(spool: TableSpool, index: int, batches: list[BatchResult], schema: pa.Schema) -> int:
    """Stores the rows of a block; returns their number."""
    ids = [image_id for batch_ids, *_ in batches for image_id in batch_ids]
    probabilities = np.concatenate([values for _, values, _ in batches])  # [rows, K]
    names = np.array(schema.names[len(FIXED_COLUMNS) :], object)
    predicted = names[probabilities.argmax(axis=1)]
    columns = [
        pa.array(ids, pa.string()),
        pa.array(predicted, pa.string()),
        *map(pa.array, np.ascontiguousarray(probabilities.T)),
    ]
    spool.put(index, pa.Table.from_arrays(columns, schema=schema))
    return len(ids)


def _write_rejections(path: Path, rejected: list[Rejected]) -> None:
    """Lists rejected images next to the table; without any, removes the list of a previous table."""
    with report_write_errors(path.parent):
        if rejected:
            lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in rejected]
            write_atomically(path, "".join(lines))
        else:
            path.unlink(missing_ok=True)
