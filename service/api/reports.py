"""HTML pages: the report of a run or a model, and the preview of an augmentation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location, Uri
from pipelines.spec import AugmentSpec, DataSpec, check
from service.failures import translate_failures


@translate_failures()
def report(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    single_file: bool = False,
    custom_objects: Sequence[str] = (),
    **options: Any,
) -> Path:
    """Renders the HTML report of a run, or of any model file.

    Args:
        model: A run or run directory, or a `.keras` file.
        data: Shard set; required with a model file, and with a run whose shard set was moved.
        out: Directory of the page; required with a model file. A run's report is written into the run.
        single_file: Embed the pictures in the page, to share it as one file.
        custom_objects: With a model file: modules with the custom layers of the model.
        options: Settings of `ReportOptions`, such as `patterns=4` or `seed=1`.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: There is no such run or model, or it does not fit the shard set.
        DataError: The shard set is damaged.
    """
    from pipelines.errors import ConfigError
    from service.report.job import render_model_report, render_report
    from service.report.options import PageOptions, ReportOptions
    from service.runs import Run

    report_options = check(ReportOptions, options, "report")
    page_options = PageOptions(single_file)
    path = Path(os.fspath(model))
    shards = None if data is None else Path(os.fspath(data))
    if path.is_dir():
        if out is not None:
            raise ConfigError(
                "a run without out", f"out={out}", "leave it out: the report of a run is written into the run"
            )
        return render_report(Run(path), shards, report_options, page_options)
    if not path.exists():
        raise ConfigError("a run directory or a model file", f"model={path} (does not exist)", "correct it")
    if shards is None or out is None:
        raise ConfigError("data and out with a model file", f"data={data} out={out}", "pass both")
    return render_model_report(
        path, shards, Path(out).absolute(), report_options, page_options, custom_objects
    )


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
