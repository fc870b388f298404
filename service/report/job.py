"""The report job: from a run directory, or a model file, and a shard set to a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.shards.manifest import FILE_NAME, load_manifest
from pipelines.storage import replacing_directory, sha256
from service.inference import check_classes, data_spec_of, load_model, scale_of
from service.report import activations, curves, page, predictions, training_images
from service.report.pictures import Album
from service.report.subject import Part, ReportOptions, ShardImages, Subject
from service.report.summary import summarize
from service.runs import Run

PARTS: tuple[Part, ...] = (training_images.part, curves.part, predictions.part, activations.part)


@dataclass(frozen=True)
class _History:
    """What a run knows of its training; empty for a model made elsewhere."""

    epochs: tuple[dict[str, float], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)


def render_report(run: Run, shards: Path | None = None, options: ReportOptions | None = None) -> Path:
    """Renders the report of a run into its directory, in place of an older one.

    Args:
        run: A run with a saved model.
        shards: The shard set, where it no longer lies where the run was trained.
        options: What to show.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: The run has no model yet, or the shard set is gone or does not fit.
        DataError: The shard set is damaged.
    """
    config = run.config()
    if not run.model_path.is_file():
        raise ConfigError(
            "a run with a saved model",
            f"run={run.path} (not finished: no {run.model_path.name})",
            "wait until its first epoch is over, or continue it with 'glassbox train --resume'",
        )
    history = _History(tuple(run.metrics()), config)
    subject = _open(run.path.name, run.model_path, Path(shards or config.get("shards") or ""), options, history)
    return render(subject, run.report, str(run.status().get("state", "")))


def render_model_report(model_path: Path, shards: Path, out: Path, options: ReportOptions | None = None) -> Path:
    """Renders a report of a model made elsewhere: everything but its learning curves.

    Args:
        model_path: A `.keras` file.
        shards: Images of its classes.
        out: Directory for the page; a report that stands there is replaced.
        options: What to show.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: The model cannot be used or does not fit the shard set, or `out` holds something else.
        DataError: The shard set is damaged.
    """
    return render(_open(Path(model_path).stem, Path(model_path), Path(shards), options, _History()), Path(out))


def render(subject: Subject, out: Path, state: str = "") -> Path:
    """Renders a report whole or not at all, and returns the path of `index.html`.

    Raises:
        ConfigError: `out` holds something that is no report.
    """
    if out.exists() and not page.is_report(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("a new directory or an older report", f"out={out} (holds something else)", "choose another --out or remove it")
    try:
        with replacing_directory(out) as directory:
            album = Album(directory)
            sections = [section for part in PARTS if (section := part(subject, album)) is not None]
            page.write(directory, subject, summarize(subject), sections, album, state)
    except OSError as error:
        raise ConfigError(
            "a place for the report that can be written", f"out={out}: {error.strerror}", "make room or choose another"
        ) from None
    return out / "index.html"


def _open(name: str, model_path: Path, shards: Path, options: ReportOptions | None, history: _History) -> Subject:
    model = load_model(model_path)
    if not (shards / FILE_NAME).is_file():
        raise ConfigError("the shard set it was trained on", f"shards={shards} (no {FILE_NAME} there)", "say where it is with --data")
    manifest = load_manifest(shards)
    check_classes(model, manifest.classes)
    data, options = data_spec_of(model), options or ReportOptions()
    filled = [split for split in ("validation", "train") if split in manifest.splits and manifest.splits[split].rows]
    if not filled:
        raise ConfigError("a shard set with images", f"shards={shards} (splits: {', '.join(manifest.splits)})", "name another with --data")
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
        epochs=history.epochs,
        config=history.config,
    )
