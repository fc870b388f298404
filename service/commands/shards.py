"""What `glassbox shards build` and `glassbox shards verify` do and say."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pipelines.errors import DataError
from pipelines.shards.build import build_shards
from pipelines.shards.manifest import Manifest
from pipelines.sources import open_source
from pipelines.spec import ShardSpec, check
from service.progress_bar import Update, progress_bar


class Clock:
    """Tells the time until the workers were ready from the time they took; called as `build_shards` reports progress.

    Args:
        update: Receives the same calls.
    """

    def __init__(self, update: Update) -> None:
        self._update, self._began = update, time.perf_counter()
        self.ready, self.kept, self.total = self._began, 0, 0

    def __call__(self, done: int, total: int) -> None:
        """Notes when work began, and how much an earlier start had done of it."""
        if not self.total:
            self.ready, self.kept, self.total = time.perf_counter(), done, total
        self._update(done, total)

    def report(self, manifest: Manifest, out: str) -> str:
        """What was taken and how fast."""
        seconds = max(time.perf_counter() - self.ready, 1e-9)
        taken = sum(split.rows for split in manifest.splits.values())
        size = (
            sum(
                file.bytes
                for split in manifest.splits.values()
                for shard in split.shards
                for file in shard.files
            )
            / 1e6
        )
        share = 1 - self.kept / self.total if self.total else 0.0  # of the set, made by this start
        speed = f"{share * taken / seconds:.0f} images/s, {share * size / seconds:.1f} MB/s"
        kept = f", after {self.kept} candidates of an earlier start" if self.kept else ""
        reasons = f" (reasons in {out}/rejected.jsonl)" if manifest.rejected else ""
        return "\n".join(
            [
                f"{taken} images taken, {manifest.rejected} rejected{reasons}",
                f"{size:.1f} MB in {seconds:.1f} s: {speed} (Ray's start {self.ready - self._began:.1f} s apart{kept})",
            ]
        )


def build(options: argparse.Namespace) -> None:
    """Makes a shard set.

    Raises:
        ConfigError: An option is wrong; see `build_shards`.
        DataError: The source cannot be used.
    """
    settings = {
        name: value for name in ShardSpec.model_fields if (value := getattr(options, name)) is not None
    }
    spec = check(ShardSpec, settings, "the command line")
    source = open_source(options.source)
    with progress_bar("building shards") as update:
        clock = Clock(update)
        manifest = build_shards(
            source, Path(options.out), spec, clock, options.workers, lambda: open_source(options.source)
        )
    print(clock.report(manifest, options.out))


def verify(directory: Path) -> None:
    """Checks a shard set and prints a line for every bad file.

    Raises:
        DataError: The set has no manifest, or a file of it is bad.
    """
    from pipelines.shards.manifest import load_manifest
    from pipelines.shards.verify import verify_shards

    with progress_bar("verifying shards") as update:
        bad = verify_shards(directory, update)
    print(*bad, sep="\n", end="\n" * bool(bad))
    if bad:
        fix = "copy these files again from a sound copy, or build the shard set again"
        raise DataError("a sound shard set", f"data={directory}: bad files={len(bad)}", fix)
    splits = load_manifest(directory).splits
    rows, files = (
        sum(split.rows for split in splits.values()),
        sum(len(split.shards) for split in splits.values()),
    )
    print(f"sound: {rows} images in {files} shards, every checksum, count and image checked")
