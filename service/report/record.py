"""Record of a published report: the part of its manifest that other jobs read, checked as any input."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.report.publish import KIND, PICTURES, VIEWS

# Such as `pictures/map-0123456789ab.png`: a plain name in one of the two folders of a page. The pattern is
# matched by pydantic itself, because a job over all runs checks hundreds of names of each.
FILE = rf"^({PICTURES}|{VIEWS})/[^./\\\x00][^/\\\x00]*$"


class _Part(BaseModel):
    """A part of the record; what else a version of the project has written in it is not read."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class PageFile(_Part):
    """A view or a picture of the page.

    Attributes:
        file: Path relative to the page.
    """

    file: Annotated[str, Field(pattern=FILE)]


class Thumbnail(PageFile):
    """A picture that represents the report on the index page.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
    """

    width: int
    height: int


class Check(_Part):
    """Result of a check, see `service.report.pages.page.CheckResult`.

    Attributes:
        name: Name of the check.
        passed: Whether it passed; None if that cannot be decided.
    """

    name: str
    passed: bool | None


class About(_Part):
    """Facts about the run, see `service.report.analysis.run_facts.RunFacts`.

    Attributes:
        source: Name of the source of the data.
        preset: Name of the preset.
        finished: Time in ISO 8601 at which the training ended.
        seconds: Length of the training.
    """

    source: str | None = None
    preset: str | None = None
    finished: str | None = None
    seconds: float | None = None


class SummaryFigures(_Part):
    """Figures of the verdict, see `service.report.pages.summary.Summary`."""

    accuracy: float | None = None
    best_accuracy: float | None = None
    gap: float | None = None
    epochs: int | None = None


class CurveFigures(_Part):
    """Learning curves: metrics of every epoch by name."""

    epochs: list[dict[str, float | None]] = []


class Figures(_Part):
    """Figures of the sections that the index page shows."""

    summary: SummaryFigures
    curves: CurveFigures = CurveFigures()


class ReportRecord(_Part):
    """What a job over all runs reads of a report.

    Attributes:
        made_of: Digests of the inputs, see `service.report.fingerprint`.
        about: Facts about the run.
        checks: Results of the checks.
        thumbnails: Pictures that represent the report.
        single_file: Whether views and pictures are embedded in the page.
        figures: Figures of the report.
        views: Files of the views; not in the summary of a report in a store.
        pictures: Files of the pictures; not in that summary either.
    """

    made_of: dict[str, Any]
    about: About = About()
    checks: list[Check] = []
    thumbnails: list[Thumbnail] = []
    single_file: bool
    figures: Figures
    views: list[PageFile] = []
    pictures: list[PageFile] = []


def is_report_record(content: dict[str, Any]) -> bool:
    """Tells whether a manifest of a page, or its summary, is that of a report and undamaged.

    Args:
        content: What was read, without its digest.
    """
    if content.get("kind") != KIND:
        return False
    try:
        ReportRecord.model_validate(content)
    except ValidationError:
        return False
    return True
