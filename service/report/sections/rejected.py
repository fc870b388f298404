"""Rejected images: the source images that are not in the shard set, with reasons."""

from __future__ import annotations

from collections.abc import Sequence

from service.report.sections.section import Section


def build_section(count: int, listed: Sequence[tuple[str, str]], kept: int) -> Section | None:
    """Builds the table of source images that could not be used.

    Args:
        count: Number of rejected images.
        listed: Id and reason of each rejected image, up to a limit.
        kept: Number of images in the shard set.

    Returns:
        The section; None if no image was rejected.
    """
    if not count:
        return None
    values = {"count": count, "listed": listed, "kept": kept}
    return Section("rejected", "Rejected images", values, {"count": count})
