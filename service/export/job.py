"""Exports the model of a run: writes it, compares it with the model, and publishes it with its model card."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, DataError
from pipelines.remote.files import resolve_location
from pipelines.remote.store import has_objects, upload
from pipelines.remote.uri import Location, Uri
from pipelines.shards.manifest import Manifest, load_manifest
from pipelines.spec import DataSpec
from pipelines.storage import replace_directory
from service.checkpoint import Position
from service.export.formats import get_format
from service.inference.jobs import SavedModel, fetch_model, open_model
from service.inference.options import DEFAULT_OPTIONS, PredictOptions
from service.inference.predict import describe_names, name_classes
from service.mirror.fetch import fetch_run
from service.models.metadata import ModelMetadata
from service.runs import Run
from service.version import read_version

if TYPE_CHECKING:
    from service.export.card import Origin
    from service.export.verify import Comparison

CARD = "model-card.md"
FOLDER = "exports"  # of exports without --out
NAMES_OF_VARIABLES = re.compile(r"[A-Za-z0-9.].*")  # outside of any scope, as a SavedModel has them
VALIDATION = "validation"


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        model: A run, or a Keras model file made anywhere; path or URI.
        format: Name of the format, see `service.export.formats`.
        is_fitted: Whether the export takes only images that have been fitted to the size of the model.
        classes: Class names; None for those of the model, else `class_0`, `class_1` and so on.
        options: Pixel scale, head and fit, which take precedence over those of the model.
        custom_objects: Modules that define the custom layers of the model.
    """

    model: Location
    format: str = "savedmodel"
    is_fitted: bool = False
    classes: tuple[str, ...] | None = None
    options: PredictOptions = DEFAULT_OPTIONS
    custom_objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        file: File or folder of the exported model, path or URI.
        card: The model card, path or URI.
        notes: How pixels, outputs and classes were interpreted, a line each.
        comparison: How its answers differ from those of the model.
    """

    file: Location
    card: Location
    notes: tuple[str, ...]
    comparison: Comparison


def export_model(request: ExportRequest, out: Location | None = None) -> ExportResult:
    """Exports a model with its preprocessing and class names, and a model card beside it.

    The file is opened again and compared with the model; only then does it appear at `out`, as a whole.

    Args:
        request: What to export, and how.
        out: Directory to create, or its URI; None for `exports/NAME-FORMAT`.

    Raises:
        ConfigError: The model or the format cannot be used, `out` exists, or the answers differ.
        StoreError: The store denies access or does not respond.
    """
    export_format = get_format(request.format)
    target = out or resolve_location(f"{FOLDER}/{_name_model(request.model)}-{export_format.name}")
    _check_free(target)
    path = fetch_model(request.model)
    export_format.check_installed()

    from service.inference.classifier import check_layer_names, class_count
    from service.inference.inspection import interpret_model

    saved, model = open_model(path, request.custom_objects)
    expected = "layers whose names begin with a letter, a digit or a dot"
    check_layer_names(model, request.model, NAMES_OF_VARIABLES, expected)
    classes = name_classes(class_count(model), request.classes, saved.classes)
    interpretation = interpret_model(model, request.options, saved.interpretation)
    notes = (*interpretation.notes, describe_names(classes, request.classes, saved))

    from service.export.card import build_card
    from service.export.graph import ExportedModel
    from service.export.precision import computes_in_half, load_in_float32
    from service.export.verify import compare_export, read_stored_images
    from service.export.writers import open_export, write_export

    trained = ExportedModel(model, interpretation, classes)
    written = trained
    if export_format.is_float32 and computes_in_half(model):
        written = replace(trained, model=load_in_float32(saved))
    run = _fetch_run(request.model, path)
    manifest = _find_manifest(run)
    stored = read_stored_images(_name_shards(run), trained.data) if run and manifest else []
    metadata = _describe_export(saved, trained.data, classes)
    entries = export_format.list_entries(request.is_fitted)
    with publish_directory(target) as folder:
        file = write_export(export_format, written, metadata, entries, folder)
        predict = open_export(export_format, file)
        comparison = compare_export(predict, written, trained, entries, stored)
        origin = _describe_origin(_name_model(request.model), saved, run, manifest)
        card = build_card(export_format, metadata, trained.data, comparison, origin)
        (folder / CARD).write_text(card, encoding="utf-8")
    return ExportResult(target / export_format.file, target / CARD, notes, comparison)


def _name_model(location: Location) -> str:
    """Returns the name of a run, or of a model file without its suffix."""
    return location.stem if location.suffix else location.name


def _fetch_run(location: Location, path: Path) -> Run | None:
    """Returns the run with its metrics, if the model is that of a run."""
    if isinstance(location, Uri) and path.is_dir():
        return fetch_run(location, ("metrics", "model"))
    return Run(path) if path.is_dir() else None


def _name_shards(run: Run) -> str:
    return str(run.config().get("shards") or "")


def _find_manifest(run: Run | None) -> Manifest | None:
    """Returns the manifest of the shard set that a run was trained on; None if it is not there any more."""
    if run is None:
        return None
    try:
        manifest = load_manifest(_name_shards(run))
    except DataError:
        return None
    metadata = run.read_metadata()
    is_same = metadata is not None and (metadata.mix or metadata.data == manifest.digest())
    return manifest if is_same else None


def _describe_export(saved: SavedModel, data: DataSpec, classes: tuple[str, ...]) -> ModelMetadata:
    """Returns the metadata of the export, which takes pixels of 0 to 255 and returns probabilities."""
    trained = saved.metadata
    return ModelMetadata(
        classes=classes,
        data="" if trained is None else trained.data,
        image_size=data.image_size,
        channels=data.channels,
        levels="full" if trained is None else trained.levels,
        fit=data.fit,
        resize=data.resize,
        antialias=data.antialias,
        mix=() if trained is None else trained.mix,
    )


def _describe_origin(name: str, saved: SavedModel, run: Run | None, manifest: Manifest | None) -> Origin:
    from service.export.card import Origin, describe_recipe

    return Origin(
        name=name,
        model_digest=saved.digest,
        accuracy=_describe_accuracy(run, manifest),
        data=_describe_data(saved.metadata, manifest),
        recipe="not known: exported from a model file." if run is None else describe_recipe(run.config()),
        version=read_version(),
    )


def _describe_accuracy(run: Run | None, manifest: Manifest | None) -> str:
    """Describes the recorded accuracy of the best epoch, whose weights the model file holds."""
    history = [] if run is None else run.metrics()
    if not history:
        return "Accuracy: not known, because there are no metrics of a run."
    best = Position("", tuple(history)).best_epoch
    metrics = history[best - 1]
    if "val_accuracy" not in metrics:
        return f"Accuracy: {metrics['accuracy']:.4f} on the training images (epoch {best}; none held out)."
    split = None if manifest is None else manifest.splits.get(VALIDATION)
    count = "an unknown number of" if split is None else str(split.rows)
    return (
        f"Accuracy: {metrics['val_accuracy']:.4f} on {count} images of the validation split (epoch {best})."
    )


def _describe_data(metadata: ModelMetadata | None, manifest: Manifest | None) -> str:
    if metadata is None:
        return "Data: not known, because the model file does not say."
    text = f"Data: shard set with digest `{metadata.data}`"
    if manifest is None:
        return f"{text}."
    return f"{text}, from the source `{manifest.source}` with fingerprint `{manifest.fingerprint}`."


def _check_free(out: Location) -> None:
    """Refuses a place that holds anything.

    Raises:
        ConfigError: There is something, or it cannot be written.
        StoreError: The bucket is missing, or the store denies access or does not respond.
    """
    if isinstance(out, Uri):
        is_taken = has_objects(out)
    else:
        is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_taken:
        raise ConfigError(
            "an output that does not exist yet", f"out={out}", "choose another --out or remove it"
        )


@contextmanager
def publish_directory(out: Location) -> Iterator[Path]:
    """Yields an empty directory, which becomes `out` when the block succeeds; otherwise nothing is left.

    Args:
        out: Directory to create, or its URI. On a store, the model card is uploaded last.

    Raises:
        ConfigError: The directory cannot be written.
        StoreError: The store denies access or does not respond.
    """
    if isinstance(out, Uri):
        with tempfile.TemporaryDirectory(prefix="glassbox-export-") as name:
            folder = Path(name)
            yield folder
            _upload_directory(folder, out)
        return
    try:
        with replace_directory(out) as folder:
            yield folder
    except OSError as error:
        raise ConfigError(
            "an output that can be written", f"out={out}: {error.strerror or error}", "choose another --out"
        ) from None


def _upload_directory(folder: Path, out: Uri) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names.sort(key=lambda name: name == CARD)
    for name in names:
        upload(folder / name, out / name)
