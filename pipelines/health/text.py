"""Describes the health of a shard set in plain text."""

from __future__ import annotations

from rich.table import Table

from pipelines.health.report import KIND_NAMES, DuplicateImages, Health, ImageName
from pipelines.text import escape_name, render_table

MAX_GROUPS = 10  # groups of duplicates that are listed
MAX_CLASSES = 40  # classes in the table: of more, the largest and the smallest ones
MAX_IMAGES = 6  # images listed of one group


def describe_health(health: Health) -> str:
    """Describes a check for people: warnings first, then the figures behind them."""
    parts = [_describe_warnings(health), _describe_classes(health)]
    if health.sizes is not None:
        parts.append(describe_sizes(health))
    if health.duplicates:
        parts.append(_describe_duplicates(health))
    if health.darkest:
        darkest, dark = health.darkest[0]
        brightest, bright = health.brightest[0]
        parts.append(
            f"Darkest image: {_format(darkest)}, mean brightness {dark:.0f} of 255\n"
            f"Brightest image: {_format(brightest)}, mean brightness {bright:.0f} of 255"
        )
    if health.constant:
        parts.append("Images of a single colour:\n" + _list_images(health.constant))
    return "\n\n".join(parts)


def describe_sizes(health: Health) -> str:
    """Describes sizes and aspect ratios in sentences; empty without images."""
    sizes = health.sizes
    if sizes is None:
        return ""
    height, width = sizes.most_common
    if sizes.distinct == 1:
        text = f"All images are {width} x {height} pixels (width x height)."
    else:
        text = (
            f"Images have {sizes.distinct:,} different sizes, most often {width} x {height} pixels "
            f"(width x height, {sizes.most_common_count:,} images). "
            f"Widths: {_format_range(sizes.widths)}; heights: {_format_range(sizes.heights)}."
        )
    if sizes.elongated:
        are = "image is" if sizes.elongated == 1 else "images are"
        text += f" {sizes.elongated:,} {are} more than twice as wide as high, or the other way round."
    if 0 < sizes.grey < health.images:
        are = "image is" if sizes.grey == 1 else "images are"
        text += f" {sizes.grey:,} {are} greyscale, the others are in colour."
    return text


def describe_scope(health: Health) -> str:
    """Describes which images were read."""
    if health.images == health.total:
        classes = "class" if len(health.classes) == 1 else "classes"
        return f"{health.images:,} images in {len(health.classes):,} {classes} were checked."
    return (
        f"The first {health.images:,} of {health.total:,} images were checked, of every split in proportion. "
        "'glassbox shards check' reads all of them."
    )


def select_classes(health: Health) -> list[int]:
    """Returns the classes to list: all, or of many the largest and the smallest ones, largest first."""
    counts = next(iter(health.class_counts.values()), ())
    if len(counts) <= MAX_CLASSES:
        return list(range(len(counts)))
    by_count = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    half = MAX_CLASSES // 2
    return by_count[:half] + by_count[-half:]


def _describe_warnings(health: Health) -> str:
    scope = describe_scope(health)
    if not health.warnings:
        return f"{scope} No problems were found."
    lines = [f"  {number}. {warning}" for number, warning in enumerate(health.warnings, 1)]
    return "\n".join([scope, "", "Warnings", *lines])


def _describe_classes(health: Health) -> str:
    """Renders a table with one row per class and its images in every split."""
    table = Table("class", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for split in health.class_counts:
        table.add_column(split, justify="right")
    labels = select_classes(health)
    for label in labels:
        counts = [f"{counts[label]:,}" for counts in health.class_counts.values()]
        table.add_row(health.classes[label], *counts)
    table.add_row("all", *(f"{sum(counts):,}" for counts in health.class_counts.values()))
    text = render_table(table)
    if len(labels) < len(health.classes):
        text += f"\n(the {MAX_CLASSES // 2} largest and smallest of {len(health.classes):,} classes)"
    return text


def _describe_duplicates(health: Health) -> str:
    count = len(health.duplicates)
    noun = "group" if count == 1 else "groups"
    lines = [f"{count:,} {noun} of images that show the same picture:"]
    for group in sort_duplicates(health.duplicates)[:MAX_GROUPS]:
        lines += [f"  {KIND_NAMES[group.kind]}", _list_images(group.images)]
    if count > MAX_GROUPS:
        lines.append(f"  and {count - MAX_GROUPS:,} more; --json lists all of them")
    return "\n".join(lines)


def sort_duplicates(groups: tuple[DuplicateImages, ...]) -> list[DuplicateImages]:
    """Sorts groups: those across splits first, then those with different labels."""
    return sorted(groups, key=lambda group: (not group.is_leak, not group.is_contradictory))


def _list_images(images: tuple[ImageName, ...]) -> str:
    lines = [f"    {_format(image)}" for image in images[:MAX_IMAGES]]
    if len(images) > MAX_IMAGES:
        lines.append(f"    and {len(images) - MAX_IMAGES:,} more")
    return "\n".join(lines)


def _format(image: ImageName) -> str:
    return escape_name(str(image))


def _format_range(values: tuple[float, float, float]) -> str:
    """Formats minimum, median and maximum."""
    return f"{values[0]:.0f} to {values[2]:.0f}, median {values[1]:.0f}"
