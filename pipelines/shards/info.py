"""A shard set described in a few lines."""

from __future__ import annotations

from pathlib import Path

from pipelines.shards.manifest import Manifest, SplitManifest, load_manifest


def describe_shards(directory: Path) -> str:
    """What is in a shard set, for people to read.

    Raises:
        DataError: There is no shard set, or its manifest is damaged.
    """
    manifest = load_manifest(directory)
    size = (
        "of any size"
        if manifest.store_size is None
        else f"scaled down to a shorter side of {manifest.store_size} pixels"
    )
    lines = [
        f"shard set    {directory}",
        f"source       {manifest.source}",
        f"fingerprint  {manifest.fingerprint[:16]}",
        f"images       {manifest.encoding}, {size}, in {manifest.format} files",
        f"rejected     {manifest.rejected}" + (" (reasons in rejected.jsonl)" if manifest.rejected else ""),
        "",
        *_table(manifest),
    ]
    for name, split in manifest.splits.items():
        lines += ["", *_split(name, split)]
    return "\n".join(lines)


def _table(manifest: Manifest) -> list[str]:
    """A line per class with its rows in every split, and the totals."""
    header = ["class", *manifest.splits]
    counts = [
        [name, *(str(split.class_counts[i]) for split in manifest.splits.values())]
        for i, name in enumerate(manifest.classes)
    ]
    rows = [header, *counts, ["all", *(str(split.rows) for split in manifest.splits.values())]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in rows]


def _split(name: str, split: SplitManifest) -> list[str]:
    size = sum(shard.bytes for shard in split.shards)
    mean, std = (
        " ".join(f"{value:.2f}" for value in values) if values else "not computed"
        for values in (split.mean, split.std)
    )
    return [
        f"{name}: {len(split.shards)} files, {size / 1e6:.1f} MB",
        f"  mean (R G B)  {mean}",
        f"  std  (R G B)  {std}",
    ]
