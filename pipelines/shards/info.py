"""Describes a shard set in a few lines of text."""

from __future__ import annotations

from rich.table import Table

from pipelines.remote.uri import Location
from pipelines.shards.files import open_files
from pipelines.shards.images import FULL
from pipelines.shards.manifest import SHOWN_CLASSES, InlineSplit, Manifest, SplitManifest, load_manifest
from pipelines.shards.rejections import count_reasons
from pipelines.shards.split_index import open_table
from pipelines.text import escape_name, render_table


def describe_shards(directory: Location) -> str:
    """Returns a description of a shard set for people: its origin, encoding, classes and splits.

    Args:
        directory: Path or URI of the shard set.

    Raises:
        DataError: There is no shard set, or its manifest is damaged or belongs to other files.
    """
    manifest = load_manifest(directory)
    files = open_files(directory)
    for split in manifest.splits:
        open_table(files, manifest, split)
    if manifest.store_size is None:
        size = "of any size"
    else:
        size = f"scaled down to a shorter side of {manifest.store_size} pixels"
    reasons = " (reasons in rejected.jsonl)" if manifest.rejected else ""

    facts = Table.grid(padding=(0, 2))
    facts.add_row("shard set", str(directory))
    facts.add_row("source", manifest.source)
    facts.add_row("fingerprint", manifest.fingerprint[:16])
    facts.add_row("images", f"{manifest.encoding}, {size}, in {manifest.format} files")
    if manifest.levels != FULL:
        facts.add_row("levels", f"{manifest.levels} become 0 to 255")
    for note in manifest.notes:
        facts.add_row("note", note)
    facts.add_row("rejected", f"{manifest.rejected}{reasons}")
    for reason, count in count_reasons(directory).items():
        facts.add_row("", f"{count}  {reason}")
    for notice, count in manifest.notices.items():
        facts.add_row("notice", f"{count}  {notice}")

    splits = [_describe_split(name, split) for name, split in manifest.splits.items()]
    return "\n\n".join([render_table(facts), render_table(_build_class_table(manifest)), *splits])


def _build_class_table(manifest: Manifest) -> Table:
    """Builds a table with the first classes, their counts in every split, and the totals."""
    table = Table("class", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in manifest.splits:
        table.add_column(name, justify="right")
    for index, name in enumerate(manifest.classes[:SHOWN_CLASSES]):
        table.add_row(name, *(str(split.class_counts[index]) for split in manifest.splits.values()))
    more = len(manifest.classes) - SHOWN_CLASSES
    if more > 0:
        counts = [sum(split.class_counts[SHOWN_CLASSES:]) for split in manifest.splits.values()]
        table.add_row(f"... and {more} more", *map(str, counts))
    table.add_row("all", *(str(split.rows) for split in manifest.splits.values()))
    return table


def _describe_split(name: str, split: SplitManifest | InlineSplit) -> str:
    megabytes = split.bytes / 1e6
    return "\n".join(
        [
            f"{escape_name(name)}: {split.shard_count} files, {megabytes:.1f} MB",
            f"  mean (R G B)  {_format_channels(split.mean)}",
            f"  std  (R G B)  {_format_channels(split.std)}",
        ]
    )


def _format_channels(values: tuple[float, ...] | None) -> str:
    if values is None:
        return "not computed"
    return " ".join(f"{value:.2f}" for value in values)
