"""The report job: from a run directory, or a model file, and a shard set to a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.shards.manifest import FILE_NAME, Manifest, load_manifest
from pipelines.storage import sha256
from service.inference.classifier import check_classes, data_spec_of, load_model, scale_of
from service.report.analysis.images import ShardImages
from service.report.analysis.run_facts import About, about_model, about_run
from service.report.drawing.album import Album
from service.report.fingerprint import fingerprint, shards_of
from service.report.lease import hold_lease
from service.report.options import ReportOptions
from service.report.pages import page
from service.report.pages.summary import summarize
from service.report.publish import PAGE, publishing, remove_unfinished
from service.report.sections import (
    activations,
    augmentation,
    compare,
    confusion,
    curves,
    diagnosis,
    edges,
    filters,
    heatmaps,
    linear_probes,
    predictions,
    rejected,
    saliency,
    samples,
    training_images,
    trust,
    weights,
)
from service.report.subject import SectionBuilder, Subject
from service.runs import Run

PARTS: tuple[SectionBuilder, ...] = (
    diagnosis.build_section,
    curves.build_section,
    training_images.build_section,
    samples.build_section,
    predictions.build_section,
    confusion.build_section,
    heatmaps.build_section,
    saliency.build_section,
    activations.build_section,
    filters.build_section,
    weights.build_section,
    edges.build_section,
    trust.build_section,
    linear_probes.build_section,
)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Form:
    """How a page is written.

    Attributes:
        single_file: Put the pictures into the page.
        home: Link to the page over all runs, relative to the report; empty for none.
    """

    single_file: bool = False
    home: str = ""


def parameters(options: ReportOptions, form: Form) -> dict[str, Any]:
    """What a page depends on beside the run and its data."""
    return {"options": options.model_dump(mode="json"), "single_file": form.single_file}


def lease_path(run: Run) -> Path:
    """The file that says who makes the report of a run."""
    return run.path / ".report.lock"


def render_report(
    run: Run,
    shards: Path | None = None,
    options: ReportOptions | None = None,
    form: Form | None = None,
    progress: Progress = lambda done, total, name: None,
) -> Path:
    """Renders the report of a run into its directory, in place of an older one.

    Args:
        run: A run with a saved model.
        shards: The shard set, where it no longer lies where the run was trained.
        options: What to show.
        form: How to write the page.
        progress: Called with parts done, parts in all, and the part that follows.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: The run has no model yet, the shard set is gone or does not fit, or somebody else makes this report.
        DataError: The shard set is damaged.
    """
    _check_has_model(run)
    options, form, shards = options or ReportOptions(), form or Form(), shards_of(run, shards)
    with hold_lease(lease_path(run)) as claim:
        remove_unfinished(run.report)
        manifest = manifest_of(shards)
        made_of = fingerprint(
            run, shards, parameters(options, form)
        )  # before anything is read: what changes later is made again
        subject = subject_of(run, shards, manifest, options)

        def tell(done: int, total: int, name: str) -> None:
            claim.tell(f"{done}/{total} {name}")  # and sees that the claim still holds
            progress(done, total, name)

        about = about_run(run, subject.config, shards, manifest)
        return render(
            subject,
            about,
            run.report,
            form,
            made_of,
            tell,
            (partial(augmentation.build_section, shards=shards), partial(compare.build_section, run=run)),
        )


def render_model_report(
    model_path: Path, shards: Path, out: Path, options: ReportOptions | None = None, form: Form | None = None
) -> Path:
    """Renders a report of a model made elsewhere: everything but its learning curves.

    Args:
        model_path: A `.keras` file.
        shards: Images of its classes.
        out: Directory for the page; a report that stands there is replaced.
        options: What to show.
        form: How to write the page.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: The model cannot be used or does not fit the shard set, or `out` holds something else.
        DataError: The shard set is damaged.
    """
    manifest = manifest_of(shards)
    subject = _subject(Path(model_path).stem, Path(model_path), shards, manifest, options or ReportOptions())
    return render(
        subject,
        about_model(Path(model_path), shards, manifest),
        Path(out),
        form or Form(),
        {},
        lambda *_: None,
    )


def render(
    subject: Subject,
    about: About,
    out: Path,
    form: Form,
    made_of: dict[str, Any],
    progress: Progress,
    more: Sequence[Any] = (),
) -> Path:
    """Renders a report whole or not at all, and returns the path of `index.html`.

    Raises:
        ConfigError: `out` holds something that is no report, or cannot be written.
    """
    parts: tuple[Any, ...] = (*PARTS, *more, partial(rejected.build_section, about=about))
    with publishing(out) as directory:
        album, sections = Album(directory), []
        for done, part in enumerate(parts):
            progress(
                done, len(parts), getattr(part, "func", part).__module__.rpartition(".")[2].replace("_", " ")
            )
            section = part(subject, album)
            if section is not None:
                sections.append(section)
        written = page.Page(
            subject, about, summarize(subject), sections, album, made_of, form.home, form.single_file
        )
        page.write(directory, written)
        progress(len(parts), len(parts), "page")
    return out / PAGE


def manifest_of(shards: Path) -> Manifest:
    """The manifest of a shard set.

    Raises:
        ConfigError: There is none.
        DataError: It is damaged.
    """
    if not (shards / FILE_NAME).is_file():
        raise ConfigError(
            "the shard set it was trained on",
            f"shards={shards} (no {FILE_NAME} there)",
            "say where it is with --data",
        )
    return load_manifest(shards)


def subject_of(run: Run, shards: Path, manifest: Manifest, options: ReportOptions) -> Subject:
    """What the report of a run is about.

    Raises:
        ConfigError: It has no model yet, or the shard set does not fit.
    """
    _check_has_model(run)
    subject = _subject(run.path.name, run.model_path, shards, manifest, options)
    return replace(subject, epochs=tuple(run.metrics()), config=run.config())


def _check_has_model(run: Run) -> None:
    run.config()
    if not run.model_path.is_file():
        raise ConfigError(
            "a run with a saved model",
            f"run={run.path} (not finished: no {run.model_path.name})",
            "wait until its first epoch is over, or continue it with 'glassbox train --resume'",
        )


def _subject(
    name: str, model_path: Path, shards: Path, manifest: Manifest, options: ReportOptions
) -> Subject:
    model = load_model(model_path)
    check_classes(model, manifest.classes)
    data = data_spec_of(model)
    filled = [
        split for split in ("validation", "train") if split in manifest.splits and manifest.splits[split].rows
    ]
    if not filled:
        raise ConfigError(
            "a shard set with images",
            f"shards={shards} (splits: {', '.join(manifest.splits)})",
            "name another with --data",
        )
    return Subject(
        name=name,
        model=model,
        model_digest=sha256(model_path),
        shards_digest=manifest.digest(),
        classes=manifest.classes,
        training=ShardImages(shards, filled[-1], data),
        evaluation=ShardImages(shards, filled[0], data),
        scale=options.scale or scale_of(model),
        options=options,
    )
