"""Renders a report page from a run directory or a model file, and a shard set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.registry import Registry
from pipelines.remote.uri import Location
from service.devices import configure_devices
from service.report.drawing.album import Album
from service.report.fingerprint import compute_fingerprint
from service.report.options import PageOptions, ReportOptions
from service.report.pages import page
from service.report.pages.summary import summarize
from service.report.publish import PAGE, publish, remove_unfinished
from service.report.reported import ReportedRun, find_shards_and_mix
from service.report.sections import (
    ablation,
    activations,
    architecture,
    attention,
    augmentation,
    calibration,
    class_scores,
    compare,
    confusion,
    curves,
    diagnosis,
    dynamics,
    edges,
    embedding,
    filters,
    gallery,
    health,
    heatmaps,
    linear_probes,
    predictions,
    rejected,
    saliency,
    samples,
    thresholds,
    training_images,
    trust,
    weights,
)
from service.report.sections.channel_crops import CropPictures
from service.report.sections.filter_cards import FilterCards
from service.report.sections.section import Section
from service.report.subject import (
    Subject,
    check_has_manifest,
    open_model,
    open_run,
    read_manifest,
)
from service.runs import Run

SectionBuilder = Callable[[Subject, Album], Section | None]
Progress = Callable[[int, int, str], None]  # finished sections, number of all, name of the next one

# The sections of a report, in the order in which they are built. Each entry connects the values of a subject
# with the function that builds a section from them; it returns None if there is nothing to show.
SECTIONS: dict[str, SectionBuilder] = {
    "diagnosis": lambda subject, album: diagnosis.build_section(
        album,
        subject.provenance,
        epochs=subject.epochs,
        training=subject.training,
        evaluation=subject.evaluation,
        issues=subject.label_issues,
    ),
    "curves": lambda subject, album: curves.build_section(
        epochs=subject.epochs,
        labels=subject.evaluation.labels,
    ),
    "dynamics": lambda subject, album: dynamics.build_section(
        records=() if subject.run is None else subject.run.layers(),
    ),
    "health": lambda subject, album: health.build_section(
        album,
        health=subject.health,
        read_picture=subject.read_picture,
        shards_digest=subject.shards_digest,
        mix=subject.mix,
    ),
    "training images": lambda subject, album: training_images.build_section(
        album,
        subject.provenance,
        images=subject.training,
        classes=subject.classes,
        input_shape=subject.network.shape,
        count=subject.options.training_images,
        mix=subject.mix,
    ),
    "samples": lambda subject, album: samples.build_section(
        album,
        subject.provenance,
        model=subject.model,
        classes=subject.classes,
        folder=subject.options.samples,
        interpretation=subject.interpretation,
        levels=subject.levels,
    ),
    "predictions": lambda subject, album: predictions.build_section(
        album,
        subject.provenance,
        predictions=subject.predictions,
        images=subject.evaluation,
        classes=subject.classes,
        count=subject.options.predictions,
    ),
    "confusion": lambda subject, album: confusion.build_section(
        predictions=subject.predictions,
        classes=subject.classes,
    ),
    "calibration": lambda subject, album: calibration.build_section(
        predictions=subject.predictions,
        calibration=subject.calibration,
    ),
    "class scores": lambda subject, album: class_scores.build_section(
        predictions=subject.predictions,
        classes=subject.classes,
    ),
    "thresholds": lambda subject, album: thresholds.build_section(
        predictions=subject.predictions,
        classes=subject.classes,
        seed=subject.options.seed,
    ),
    "embedding": lambda subject, album: embedding.build_section(
        predictions=subject.predictions,
        features=subject.features,
        embedding=subject.embedding,
        classes=subject.classes,
        split=subject.evaluation.split,
    ),
    "architecture": lambda subject, album: architecture.build_section(
        architecture=subject.architecture,
        times=subject.layer_times,
    ),
    "heatmaps": lambda subject, album: heatmaps.build_section(
        album,
        subject.provenance,
        examples=subject.examples,
        forward_pass=subject.forward_pass,
        classes=subject.classes,
    ),
    "attention": lambda subject, album: attention.build_section(
        album,
        subject.provenance,
        network=subject.network,
        examples=subject.examples,
        classes=subject.classes,
    ),
    "saliency": lambda subject, album: saliency.build_section(
        album,
        subject.provenance,
        network=subject.network,
        examples=subject.examples,
        classes=subject.classes,
        seed=subject.options.seed,
    ),
    "activations": lambda subject, album: activations.build_section(
        album,
        subject.provenance,
        architecture=subject.architecture,
        examples=subject.activation_examples,
        forward_pass=subject.forward_pass,
        classes=subject.classes,
        sheet_format=subject.options.sheets,
    ),
    "filters": lambda subject, album: filters.build_section(
        album,
        subject.provenance,
        network=subject.network,
        forward_pass=subject.forward_pass,
        cards=_open_filter_cards(subject, album),
        count=subject.options.patterns,
        seed=subject.options.seed,
    ),
    "ablation": lambda subject, album: ablation.build_section(
        album,
        subject.provenance,
        ablation=subject.ablation,
        network=subject.network,
        crops=_open_crops(subject, album),
        classes=subject.classes,
    ),
    "weights": lambda subject, album: weights.build_section(
        album,
        subject.provenance,
        network=subject.network,
    ),
    "edges": lambda subject, album: edges.build_section(
        album,
        subject.provenance,
        examples=subject.examples,
    ),
    "trust": lambda subject, album: trust.build_section(
        network=subject.network,
        predictions=subject.predictions,
        images=subject.evaluation,
        count=subject.options.trust_images,
        seed=subject.options.seed,
    ),
    "linear probes": lambda subject, album: linear_probes.build_section(
        network=subject.network,
        training=subject.training,
        evaluation=subject.evaluation,
        seed=subject.options.seed,
    ),
    "augmentation": lambda subject, album: augmentation.build_section(
        album,
        shards=subject.shards,
        split=subject.training.split,
        config=subject.config,
        epoch_count=len(subject.epochs),
    ),
    "compare": lambda subject, album: compare.build_section(
        album,
        subject.provenance,
        run=subject.run,
        images=subject.evaluation,
        classes=subject.classes,
        count=subject.options.checkpoints,
    ),
    "gallery": lambda subject, album: gallery.build_section(
        album,
        subject.provenance,
        predictions=subject.predictions,
        clusters=subject.clusters,
        images=subject.evaluation,
        classes=subject.classes,
        links=gallery.build_links(subject.examples, is_run=subject.run is not None),
    ),
    "rejected": lambda subject, album: rejected.build_section(
        count=subject.facts.rejected_count,
        listed=subject.facts.rejected,
        kept=subject.image_count,
    ),
}


def _open_crops(subject: Subject, album: Album) -> CropPictures:
    return CropPictures(
        album,
        subject.provenance,
        images=subject.evaluation,
        scan=subject.scan,
        fields=subject.receptive_fields,
        shape=subject.network.shape[:2],
    )


def _open_filter_cards(subject: Subject, album: Album) -> FilterCards:
    return FilterCards(
        album,
        subject.provenance,
        network=subject.network,
        crops=_open_crops(subject, album),
        fields=subject.receptive_fields,
        colours=subject.colours,
        count=subject.options.filters,
        seed=subject.options.seed,
    )


# Sections from outside this package by name: of installed packages through their entry points, of other code
# through `@MORE_SECTIONS.register(name)`. They follow the sections above.
MORE_SECTIONS: Registry[SectionBuilder] = Registry("report section", group="glassbox.report_sections")


def render_report(
    run: Run,
    shards: Location | None = None,
    options: ReportOptions | None = None,
    page_options: PageOptions | None = None,
    progress: Progress = lambda done, total, name: None,
) -> Path:
    """Renders the report of a run into its directory, in place of an older one.

    Args:
        run: Run with a saved model.
        shards: Path or URI of the shard set, if it is no longer where the run was trained.
        options: Content of the report.
        page_options: Format of the page.
        progress: Called with sections finished, sections in all, and the name of the next one.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: The run has no model yet, the shard set is missing, does not fit or was replaced by
            another one, or another process renders this report.
        DataError: The shard set is damaged.
    """
    render_reported_run(ReportedRun.from_run(run), shards, options, page_options, progress)
    return run.report / PAGE


def render_reported_run(
    reported: ReportedRun,
    shards: Location | None = None,
    options: ReportOptions | None = None,
    page_options: PageOptions | None = None,
    progress: Progress = lambda done, total, name: None,
) -> Location:
    """Renders the report of a run, each in a directory or in a store; see `render_report`.

    A run in a store is copied to the cache folder, as far as its report shows it.

    Returns:
        Path or URI of `index.html`.
    """
    options = options or ReportOptions()
    page_options = page_options or PageOptions()
    if isinstance(reported.location, Path):
        reported.fetch().check_has_model()
    configure_devices()
    is_own_data = shards is None
    with reported.hold_lease() as lease:
        if isinstance(reported.report, Path):
            remove_unfinished(reported.report)
        # Before anything is read that is shown: later changes of the inputs make the report outdated.
        inputs = _hash_inputs(reported)
        run = reported.fetch()
        shards, mix = find_shards_and_mix(run, shards)
        check_has_manifest(shards)
        fingerprint = compute_fingerprint(reported, shards, options, page_options, mix, inputs)
        manifest = read_manifest(shards, run)
        if is_own_data:
            run.check_data(str(shards), manifest.digest())
        subject = open_run(run, shards, manifest, options)

        def publish_progress(done: int, total: int, name: str) -> None:
            lease.renew(f"{done}/{total} {name}")  # an error if the lease was lost
            progress(done, total, name)

        return render(subject, reported.report, page_options, fingerprint, publish_progress)


def _hash_inputs(reported: ReportedRun) -> dict[str, Any]:
    """Returns what identifies the content of a run.

    Raises:
        ConfigError: There is no run, or it has no model yet.
    """
    try:
        return reported.hash_inputs()
    except FileNotFoundError:
        reported.fetch().check_has_model()
        raise


def render_model_report(
    model_path: Path,
    shards: Location,
    out: Location,
    options: ReportOptions | None = None,
    page_options: PageOptions | None = None,
    custom_objects: Sequence[str] = (),
) -> Location:
    """Renders a report of a model without a run: everything except its training history.

    Args:
        model_path: A `.keras` file.
        shards: Path or URI of a shard set with images of the model's classes.
        out: Directory for the page, or its URI; a report in it is replaced.
        options: Content of the report.
        page_options: Format of the page.
        custom_objects: Modules that define the custom layers of the model.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: The model cannot be used or does not fit the shard set, or `out` holds something else.
        DataError: The shard set is damaged.
    """
    manifest = read_manifest(shards)
    configure_devices()
    options = options or ReportOptions()
    subject = open_model(Path(model_path), shards, manifest, options, custom_objects)
    return render(subject, out, page_options or PageOptions())


def render(
    subject: Subject,
    out: Location,
    page_options: PageOptions,
    fingerprint: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total, name: None,
    sections: Mapping[str, SectionBuilder] | None = None,
) -> Location:
    """Renders a report completely or not at all.

    Args:
        subject: Model, data and options of the report.
        out: Directory for the page, or its URI; a report in it is replaced.
        page_options: Format of the page.
        fingerprint: Digests of the report's inputs, for its manifest.
        progress: Called with sections finished, sections in all, and the name of the next one.
        sections: Builders of the sections by name; None for all of them, see `list_sections`.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: `out` holds something that is not a report, or cannot be written.
    """
    builders = list_sections() if sections is None else sections
    with publish(out) as directory:
        album = Album(directory)
        built_sections = []
        for done, (name, build) in enumerate(builders.items()):
            progress(done, len(builders), name)
            section = build(subject, album)
            if section is not None:
                built_sections.append(section)
        content = page.Page(
            subject=subject,
            summary=summarize(subject),
            sections=built_sections,
            album=album,
            options=page_options,
            fingerprint=fingerprint or {},
        )
        page.write(directory, content)
        progress(len(builders), len(builders), "page")
    return out / PAGE


def list_sections() -> dict[str, SectionBuilder]:
    """Lists the builders of all sections by name, those from outside this package last.

    Raises:
        ConfigError: The module of a registered section cannot be imported.
    """
    return SECTIONS | {name: MORE_SECTIONS.get(name) for name in MORE_SECTIONS.names()}
