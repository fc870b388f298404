"""What several sections share: the examples as photos, and what a picture was made from."""

from __future__ import annotations

from service.report.analysis.examples import ReportExample
from service.report.drawing.album import Drawing, photo
from service.report.subject import Subject


def photos_of(subject: Subject) -> list[Drawing]:
    """The probes themselves as pictures."""
    return [
        photo(probe.pixels, "input", probe.name.capitalize(), origin_of(subject, probe))
        for probe in subject.examples
    ]


def origin_of(subject: Subject, probe: ReportExample, **parameters: object) -> dict[str, object]:
    """What a picture of a probe was made from, for the manifest."""
    return subject.origin(
        subject.evaluation, [probe.row], checkpoint=subject.model_digest, scale=subject.scale, **parameters
    )
