"""Rejected images: what the shard set left out, and why, so that nobody believes the data to be whole."""

from __future__ import annotations

from service.report.analysis.run_facts import About
from service.report.drawing.album import Album
from service.report.subject import Section, Subject


def build_section(subject: Subject, album: Album, about: About) -> Section | None:
    """A table of source images that were not taken; None where all were."""
    if not about.rejected_count:
        return None
    taken = {images.split: len(images.labels) for images in (subject.training, subject.evaluation)}
    values = {"count": about.rejected_count, "taken": sum(taken.values()), "shown": about.rejected}
    return Section("rejected", "Rejected images", values, {"count": about.rejected_count})
