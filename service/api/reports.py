"""HTML pages: the report of a run or a model, a look at single images, and the preview of an augmentation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location, Uri
from pipelines.spec import AugmentSpec, DataSpec, check
from service.failures import translate_failures

if TYPE_CHECKING:
    from pipelines.spec import Fit
    from service.inference.interpretation import Head


@translate_failures()
def report(
    model: str | os.PathLike[str] | Uri,
    data: str | os.PathLike[str] | Uri | None = None,
    out: str | os.PathLike[str] | Uri | None = None,
    *,
    single_file: bool = False,
    custom_objects: Sequence[str] = (),
    **options: Any,
) -> Location:
    """Renders the HTML report of a run, or of any model file.

    Args:
        model: A run, or path or URI of a run directory or of a `.keras` file.
        data: Shard set, or path or URI of one; required with a model file, and with a run whose shard set was
            moved.
        out: Directory of the page, or its URI; required with a model file. A run's report is written into the
            run.
        single_file: Embed the pictures in the page, to share it as one file.
        custom_objects: With a model file: modules with the custom layers of the model.
        options: Settings of `ReportOptions`, such as `patterns=4` or `seed=1`.

    Returns:
        Path or URI of `index.html`.

    Raises:
        ConfigError: There is no such run or model, or it does not fit the shard set.
        DataError: The shard set is damaged.
    """
    from pipelines.errors import ConfigError
    from service.inference.jobs import MODEL_SUFFIXES, fetch_model
    from service.report.job import render_model_report, render_reported_run
    from service.report.options import PageOptions, ReportOptions
    from service.report.reported import ReportedRun
    from service.runs import REPORT

    report_options = check(ReportOptions, options, "report")
    page_options = PageOptions(single_file)
    location = resolve_location(model)
    shards = None if data is None else resolve_location(data)
    is_run = location.is_dir() if isinstance(location, Path) else location.suffix not in MODEL_SUFFIXES
    if is_run:
        if out is not None:
            raise ConfigError(
                "a run without out", f"out={out}", "leave it out: the report of a run is written into the run"
            )
        reported = ReportedRun(location.name, location, location / REPORT)
        return render_reported_run(reported, shards, report_options, page_options)
    if isinstance(location, Path) and not location.exists():
        received = f"model={location} (does not exist)"
        raise ConfigError("a run directory or a model file", received, "correct it")
    if shards is None or out is None:
        raise ConfigError("data and out with a model file", f"data={data} out={out}", "pass both")
    return render_model_report(
        fetch_model(location), shards, resolve_location(out), report_options, page_options, custom_objects
    )


@translate_failures()
def look(  # noqa: PLR0913 (keyword options of a public function)
    model: str | os.PathLike[str] | Uri,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    out: str | os.PathLike[str] | Uri = "look",
    *,
    rows: Sequence[int] = (),
    label: str | None = None,
    data: str | os.PathLike[str] | Uri | None = None,
    classes: Sequence[str] | None = None,
    scale: float | None = None,
    offset: float | None = None,
    head: Head | None = None,
    fit: Fit | None = None,
    resize: int | None = None,
    antialias: bool = False,
    single_file: bool = False,
    custom_objects: Sequence[str] = (),
) -> Location:
    """Renders heatmaps, activations and sanity checks of single images, apart from the report of the run.

    Args:
        model: A run, or path or URI of a run directory or of a model file made anywhere.
        images: An image file, a folder of images, or several of these.
        out: Directory of the page, or its URI; an older page of this kind is replaced.
        rows: Instead of images: rows of the validation split of the shard set.
        label: Name of the true class of all images; None if it is not known.
        data: With rows: shard set, or path or URI of one; None for that of the run.
        classes: Class names; None for those of the model, else `class_0`, `class_1` and so on.
        scale: Factor on pixels of 0 to 255 before they enter the model; None infers it.
        offset: Summand after the multiplication; requires `scale`.
        head: Whether the outputs are `probabilities` or `logits`; None infers it.
        fit: How images of other proportions are made to fit: `stretch`, `crop` or `pad`; None for what the
            model was trained with.
        resize: With `fit` crop, the length that the shorter side is resized to before the crop.
        antialias: With `fit`, whether images that are made smaller are low-pass filtered.
        single_file: Embed the pictures in the page, to share it as one file.
        custom_objects: Modules with the custom layers of the model, see `load_model`.

    Returns:
        Path or URI of `index.html`.

    Raises:
        ConfigError: The model, the images, the rows or the label cannot be used.
        DataError: No image can be decoded.
    """
    from service.inference.options import PredictOptions
    from service.report.options import LookRequest, PageOptions
    from service.report.pages.look import render_look

    several = [images] if isinstance(images, str | os.PathLike) else images
    request = LookRequest(
        model=resolve_location(model),
        images=tuple(os.fspath(image) for image in several),
        rows=tuple(rows),
        label=label,
        data=None if data is None else resolve_location(data),
        classes=None if classes is None else tuple(classes),
        options=PredictOptions(scale, "none", offset, head, fit, resize, antialias),
        custom_objects=tuple(custom_objects),
    )
    return render_look(request, resolve_location(out), PageOptions(single_file)).page


@translate_failures()
def preview(
    shards: str | os.PathLike[str] | Uri,
    augment: AugmentSpec | Mapping[str, Any],
    out: str | os.PathLike[str] | Uri = "preview",
    *,
    data: Mapping[str, Any] | None = None,
    **options: Any,
) -> Location:
    """Renders training images next to their augmented versions, exactly as training sees them.

    Args:
        shards: Shard set, or path or URI of one.
        augment: Augmentation, an `AugmentSpec` or its settings as a dict: `{"rotation": 40, "flip": True}`.
        out: Directory of the page, or its URI; an older preview is replaced.
        data: Settings of `DataSpec`, such as `{"image_size": 96}`.
        options: Settings of `PreviewOptions`: `split`, `seed`, `epoch`, `rows`, `versions`.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: No augmentation is on, or an option is invalid.
        DataError: The shard set cannot be used.
    """
    from service.report.analysis.augmented import PreviewOptions
    from service.report.pages.preview import render_preview

    if not isinstance(augment, AugmentSpec):
        augment = check(AugmentSpec, dict(augment), "augment")
    return render_preview(
        resolve_location(shards),
        check(DataSpec, dict(data or {}), "data"),
        augment,
        check(PreviewOptions, options, "preview"),
        resolve_location(out),
    )
