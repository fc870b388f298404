"""What a model takes images for, as a table: `glassbox predict`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.errors import ConfigError, DataError
from pipelines.records import Rejected
from pipelines.shards.manifest import FILE_NAME
from pipelines.shards.task import writable
from pipelines.sources import open_source
from pipelines.storage import write_atomically
from service.inference.classifier import DEFAULT_OPTIONS, Classifier, PredictOptions
from service.inference.datasets import ImageDataset, InferenceBatch, ShardDataset, SourceDataset
from service.inference.jobs import InferenceJob, Throughput, answers, blocks_of, open_model
from service.inference.tables import Pieces, check_output, pieces

OWN_COLUMNS = ("id", "class")


@dataclass(frozen=True)
class Predicted:
    """What came of it.

    Attributes:
        images: Rows of the table.
        rejected: Images that could not be decoded.
        rejected_path: Where they are listed, if there are any.
        pace: How fast it went.
    """

    images: int
    rejected: int
    rejected_path: Path
    pace: Throughput


def predict(
    model: str | Path,
    data: str,
    out: str | Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    asking: PredictOptions = DEFAULT_OPTIONS,
    workers: int | None = None,
) -> Predicted:
    """Asks a model about every image, and writes id, class and the probability of each class, in the order of the images.

    Images that cannot be decoded are listed in `OUT.rejected.jsonl`, with the suffix of `out` replaced.

    Args:
        model: A file made anywhere, or a run directory.
        data: A shard set, or a source, among them `photos:DIR` for photos without classes.
        out: File to write, `.parquet` or `.csv`; an older one is replaced.
        split: Which split; None for all, one after the other.
        classes: Class names; None for those of the run, else `class_0`, `class_1` and so on.
        asking: How the model is asked.
        workers: See `service.inference.jobs.answers`.

    Raises:
        ConfigError: The model, the data, the output or the class names cannot be used.
        DataError: The data is damaged, or not one image can be decoded.
    """
    path = check_output(out, ".parquet", ".csv")
    saved, net = open_model(model)
    feed = open_feed(data)
    rows = _chosen(feed, split, data)
    classifier = Classifier(net, asking)
    names = _names(classifier.classes, classes, saved.classes)
    schema = pa.schema(
        [(name, pa.string()) for name in OWN_COLUMNS] + [(name, pa.float32()) for name in names]
    )
    pace, blocks = Throughput(), blocks_of(rows)
    images, refused = 0, dict[int, list[Rejected]]()
    with pieces(path, schema) as parts:
        with closing(
            answers(InferenceJob(saved, asking, feed, _taken), classifier, blocks, workers, pace)
        ) as results:
            for place, batches in results:
                images += _keep(parts, place, batches, schema)
                refused[place] = [item for *_, rejected in batches for item in rejected]
        listed = [item for _, items in sorted(refused.items()) for item in items]
        rejected_path = _list(path, listed)
        if not images:
            received = f"data={data}: all {len(listed)} images rejected (reasons in {rejected_path})"
            raise DataError("images that can be decoded", received, "see whether these are photos")
        parts.join()
    return Predicted(images, len(listed), rejected_path, pace)


def open_feed(data: str) -> ImageDataset:
    """Opens a shard set, or a source by its `kind:argument` name.

    Raises:
        ConfigError: There is neither.
        DataError: It is there but cannot be used.
    """
    path = Path(data)
    if path.is_dir() and not (path / FILE_NAME).is_file():
        fix = f"write photos:{data} for the images below it, or build shards with 'glassbox shards build folder:{data} OUT'"
        raise ConfigError("a shard set or a source", f"data={data} (a folder without {FILE_NAME})", fix)
    return (
        ShardDataset(str(path.absolute()))
        if path.is_dir()
        else SourceDataset(open_source(data, labelled=False))
    )


def _chosen(feed: ImageDataset, split: str | None, data: str) -> dict[str, int]:
    rows = dict(feed.rows())
    if split is not None and split not in rows:
        raise DataError(
            f"a split named one of {', '.join(rows)}",
            f"split={split}",
            "pick one of these, or leave --split out for all",
        )
    if split is not None:
        rows = {split: rows[split]}
    if not sum(rows.values()):
        raise DataError("images", f"data={data}: none", "check the path")
    return rows


def _names(count: int, given: Sequence[str] | None, known: tuple[str, ...] | None) -> tuple[str, ...]:
    """The class names; each becomes a column."""
    names = tuple(given or known or (f"class_{label}" for label in range(count)))
    if len(names) != count:
        raise ConfigError(
            f"{count} class names, one for each class of the model",
            f"--classes with {len(names)}",
            "name them all",
        )
    if given and known and names != known:
        fix = "leave --classes out, or name the model.keras of the run instead of the run"
        raise ConfigError(f"the classes of the run: {', '.join(known)}", f"classes={', '.join(given)}", fix)
    if twice := [name for name, times in Counter((*OWN_COLUMNS, *names)).items() if times > 1]:
        fix = "give other names with --classes, for a run beside its model.keras"
        raise ConfigError(
            "class names that can be columns beside id and class", f"class={twice[0]} twice", fix
        )
    return names


def _taken(fed: InferenceBatch, probabilities: np.ndarray) -> tuple[list[str], np.ndarray, list[Rejected]]:
    """What a worker sends back of a batch."""
    return fed.ids, probabilities, fed.rejected


def _keep(parts: Pieces, place: int, batches: list[Any], schema: pa.Schema) -> int:
    """Keeps a block's part of the table; returns its rows."""
    ids = [name for names, *_ in batches for name in names]
    probabilities = np.concatenate([found for _, found, _ in batches])  # [rows, classes]
    classes = np.array(schema.names[len(OWN_COLUMNS) :], object)[probabilities.argmax(axis=1)]
    columns = [
        pa.array(ids, pa.string()),
        pa.array(classes, pa.string()),
        *map(pa.array, np.ascontiguousarray(probabilities.T)),
    ]
    parts.put(place, pa.Table.from_arrays(columns, schema=schema))
    return len(ids)


def _list(out: Path, rejected: list[Rejected]) -> Path:
    """Writes the list of images that were rejected; without any, removes the one of an older table."""
    path = out.with_suffix(".rejected.jsonl")
    with writable(out.parent):
        if rejected:
            write_atomically(
                path, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in rejected)
            )
        else:
            path.unlink(missing_ok=True)
    return path
