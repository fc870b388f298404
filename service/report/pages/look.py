"""The page of `glassbox look`: what a model sees in the user's own images, or in rows of its data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import ConfigError, DataError, suggest
from pipelines.records import Rejected
from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location, Uri
from pipelines.spec import DataSpec
from pipelines.storage import write_atomically
from service.devices import configure_devices
from service.inference.classes import list_names
from service.inference.classifier import Classifier, class_count, input_spec
from service.inference.datasets import BATCH, Block, open_dataset, use_levels
from service.inference.inspection import decide_image_fit, interpret_model
from service.inference.interpretation import Interpretation
from service.inference.jobs import fetch_model, open_model
from service.inference.options import PredictOptions
from service.inference.predict import describe_names, name_classes
from service.report import subject as report_subject
from service.report.analysis.architecture import describe_architecture
from service.report.analysis.examples import ReportExample, build_file_example, build_row_example
from service.report.analysis.forward import ForwardPass, choose_heatmap_layers, forward
from service.report.analysis.network import Network
from service.report.drawing.album import Album
from service.report.options import LookRequest, PageOptions, ReportOptions
from service.report.pages import page
from service.report.pages.scripts import embed_pictures, load_scripts
from service.report.publish import PAGE, publish, write_page_manifest
from service.report.reported import find_shards
from service.report.sections import activations, attention, heatmaps, image_checks, saliency
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section
from service.runs import Run

if TYPE_CHECKING:
    import keras

    from service.models.metadata import ModelMetadata

KIND = "glassbox look page"
VERSION = 1  # of the page and its manifest
MAX_IMAGES = 50  # with the activations of every layer of each


@dataclass(frozen=True)
class LookResult:
    """What was rendered.

    Attributes:
        page: Path or URI of `index.html`.
        notes: How pixels, outputs and classes were interpreted, a line each.
        rejected: Images that could not be decoded.
    """

    page: Location
    notes: tuple[str, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class _Look:
    """Model and images of a page.

    Attributes:
        name: Name of the run or the model file.
        model: Classifier that predicted the images.
        digest: SHA-256 of the model file.
        interpretation: How pixels enter the model and what its outputs mean.
        notes: How pixels, outputs and classes were interpreted, a line each.
        classes: Class names in the order of the outputs.
        examples: The images, with their predictions.
        provenance: Model and images, as recorded with every picture.
        rejected: Images that could not be decoded.
    """

    name: str
    model: keras.Model
    digest: str
    interpretation: Interpretation
    notes: tuple[str, ...]
    classes: tuple[str, ...]
    examples: tuple[ReportExample, ...]
    provenance: Provenance
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class _Layout:
    """What the page has in common with a report.

    Attributes:
        views: Views of the page.
        options: Format of the page.
    """

    views: list[page.View]
    options: PageOptions


def render_look(request: LookRequest, out: Location, page_options: PageOptions | None = None) -> LookResult:
    """Renders heatmaps, activations and sanity checks of some images as a page of its own.

    The images are prepared as a shard set and `glassbox predict` prepare them. The report of the run is left
    as it is.

    Args:
        request: Model and images.
        out: Directory for the page, or its URI; an older page of this kind in it is replaced.
        page_options: Format of the page.

    Returns:
        Address of the page, and what was inferred.

    Raises:
        ConfigError: Model, images, rows or label cannot be used, or `out` holds something else.
        DataError: No image can be decoded.
    """
    configure_devices()
    look = _open_rows(request) if request.rows else _open_images(request)
    page_options = page_options or PageOptions()
    with publish(out, KIND) as directory:
        album = Album(directory)
        _write(directory, look, _build_sections(look, album), album, page_options)
    return LookResult(out / PAGE, look.notes, look.rejected)


def _open_images(request: LookRequest) -> _Look:
    """Opens the model, and reads and predicts image files."""
    saved, model = open_model(fetch_model(request.model), request.custom_objects)
    classes = name_classes(class_count(model), request.classes, saved.classes)
    truth = _find_label(request.label, classes)
    image_fit, _ = decide_image_fit(request.options, saved.interpretation)
    names, pixels, rejected = _read_images(request.images, input_spec(model, image_fit), saved.metadata)
    unknown = pixels if saved.interpretation is None else None
    interpretation = interpret_model(model, request.options, saved.interpretation, pixels=unknown)
    probabilities = _predict(model, request.options, interpretation, pixels)
    examples = [
        build_file_example(name, image, truth, row, classes)
        for name, image, row in zip(names, pixels, probabilities, strict=True)
    ]
    return _Look(
        name=_name_model(request.model),
        model=model,
        digest=saved.digest,
        interpretation=interpretation,
        notes=(*interpretation.notes, describe_names(classes, request.classes, saved)),
        classes=classes,
        examples=tuple(examples),
        provenance=_describe_origin(saved.digest, interpretation),
        rejected=tuple(rejected),
    )


def _open_rows(request: LookRequest) -> _Look:
    """Opens the model and its shard set as a report does, and predicts some rows."""
    subject = _open_subject(request)
    images = subject.evaluation
    count = len(images.labels)
    for row in request.rows:
        if not 0 <= row < count:
            raise ConfigError(
                f"rows from 0 to {count - 1}", f"rows={row}", f"pick rows of the {images.split} split"
            )
    _check_count(len(request.rows))
    pixels = images.read(request.rows)
    probabilities = _predict(subject.model, request.options, subject.interpretation, pixels)
    examples = [
        build_row_example(row, image, int(images.labels[row]), of_row, images.split, subject.classes)
        for row, image, of_row in zip(request.rows, pixels, probabilities, strict=True)
    ]
    return _Look(
        name=_name_model(request.model),
        model=subject.model,
        digest=subject.model_digest,
        interpretation=subject.interpretation,
        notes=subject.notes,
        classes=subject.classes,
        examples=tuple(examples),
        provenance=subject.provenance,
    )


def _open_subject(request: LookRequest) -> report_subject.Subject:
    """Opens model and shard set as those of a report."""
    path = fetch_model(request.model)
    chosen = request.options
    options = ReportOptions(
        scale=chosen.scale,
        offset=chosen.offset,
        head=chosen.head,
        fit=None if chosen.image_fit is None else chosen.image_fit.fit,
        resize=chosen.resize,
        antialias=chosen.antialias,
    )
    if path.is_dir():
        run = Run(path)
        shards = find_shards(run, request.data)
        manifest = report_subject.read_manifest(shards, run)
        if request.data is None:
            run.check_data(str(shards), manifest.digest())
        return report_subject.open_run(run, shards, manifest, options)
    if request.data is None:
        raise ConfigError(
            "the shard set of the rows", f"model={request.model} data=None", "name it with --data"
        )
    manifest = report_subject.read_manifest(request.data)
    return report_subject.open_model(path, request.data, manifest, options, request.custom_objects)


def _name_model(model: str | Path | Uri) -> str:
    location = resolve_location(model)
    return location.stem if isinstance(location, Path) and location.is_file() else location.name


def _describe_origin(digest: str, interpretation: Interpretation) -> Provenance:
    pixels = interpretation.pixels
    return Provenance(digest, "", pixels.scale, "", pixels.offset, interpretation.head)


def _find_label(name: str | None, classes: Sequence[str]) -> int | None:
    """Returns the index of a class.

    Raises:
        ConfigError: There is no class of this name.
    """
    if name is None:
        return None
    if name not in classes:
        raise ConfigError(
            f"a class of the model: {list_names(classes)}", f"label={name}", suggest(name, classes)
        )
    return list(classes).index(name)


def _read_images(
    locations: Sequence[str], data: DataSpec, metadata: ModelMetadata | None
) -> tuple[list[str], np.ndarray, list[Rejected]]:
    """Reads image files and folders as `predict` does.

    Returns:
        Names and pixels, uint8 `[N, H, W, C]`, of the images, and those that cannot be decoded.

    Raises:
        ConfigError: There is no such file or folder, or there are too many images.
        DataError: No image can be decoded.
    """
    datasets = [use_levels(open_dataset(f"photos:{location}"), metadata) for location in locations]
    counts = [dict(dataset.rows()) for dataset in datasets]
    _check_count(sum(sum(rows.values()) for rows in counts))
    names: list[str] = []
    pixels = [np.zeros((0, *data.image_size, data.channels), np.uint8)]
    rejected: list[Rejected] = []
    for dataset, rows in zip(datasets, counts, strict=True):
        for split, count in rows.items():
            for batch in dataset.batches(Block(split, 0, count), data):
                names += batch.ids
                pixels.append(np.asarray(batch.images)[: len(batch.ids)])
                rejected += batch.rejected
    if not names:
        reasons = "; ".join(f"{item.id}: {item.reason}" for item in rejected)
        raise DataError(
            "images that can be decoded", f"images={reasons}", "check that these files are photos"
        )
    return names, np.concatenate(pixels), rejected


def _check_count(count: int) -> None:
    if count > MAX_IMAGES:
        raise ConfigError(
            f"at most {MAX_IMAGES} images on a page",
            f"images={count}",
            "name fewer; 'glassbox predict' writes a table of any number",
        )


def _predict(
    model: keras.Model, options: PredictOptions, interpretation: Interpretation, pixels: np.ndarray
) -> np.ndarray:
    """Predicts images `[N, H, W, C]` in the batches of `predict`; returns probabilities `[N, K]`."""
    classifier = Classifier(model, options, interpretation)
    is_real = np.arange(BATCH) < len(pixels)
    padded = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    return classifier(padded, is_real)


def _build_sections(look: _Look, album: Album) -> list[Section]:
    """Builds the sections of the page, each from one module of `service/report/sections`."""
    options = ReportOptions()
    pixels = look.interpretation.pixels
    network = Network(look.model, pixels.scale, offset=pixels.offset, head=look.interpretation.head)
    layers = choose_heatmap_layers(network, options.heatmap_layers)
    forward_pass: ForwardPass = forward(network, look.examples, layers)
    shared: dict[str, Any] = {"examples": look.examples, "classes": look.classes}
    builders: list[Callable[..., Section | None]] = [
        lambda: heatmaps.build_section(album, look.provenance, forward_pass=forward_pass, **shared),
        lambda: attention.build_section(album, look.provenance, network=network, **shared),
        lambda: saliency.build_section(album, look.provenance, network=network, seed=options.seed, **shared),
        lambda: activations.build_section(
            album,
            look.provenance,
            architecture=describe_architecture(network),
            forward_pass=forward_pass,
            sheet_format=options.sheets,
            **shared,
        ),
        lambda: image_checks.build_section(
            album, look.provenance, network=network, seed=options.seed, **shared
        ),
    ]
    sections = [build() for build in builders]
    return [section for section in sections if section is not None]


def _write(
    directory: Path, look: _Look, sections: Sequence[Section], album: Album, page_options: PageOptions
) -> None:
    """Writes page and manifest next to the pictures."""
    layout = _Layout(page.arrange_views(sections, album), page_options)
    html = page.render("look.html", load_scripts(plots=False), sections, look=look, page=layout)
    if page_options.single_file:
        html = embed_pictures(html, directory)
        shutil.rmtree(directory / Album.FOLDER)
    write_atomically(directory / PAGE, html)
    manifest = {
        "kind": KIND,
        "version": VERSION,
        "name": look.name,
        "checkpoint": look.digest,
        **look.interpretation.describe(),
        "classes": list(look.classes),
        "images": [example.title for example in look.examples],
        "rejected": [{"id": item.id, "reason": item.reason} for item in look.rejected],
        "figures": {section.id: section.figures for section in sections},
        "pictures": [album.entries[file] for file in sorted(album.entries)],
    }
    write_page_manifest(directory, manifest)
