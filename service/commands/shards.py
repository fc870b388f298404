"""`glassbox shards`: builds, verifies and describes shard sets."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from pipelines.errors import DataError
from pipelines.remote.uri import parse_location
from pipelines.text import print_lines, print_text
from service.commands import check_shards
from service.commands.common import SHARDS_HELP, Subparsers, add_command, add_source_options
from service.progress_bar import Update, progress_bar

if TYPE_CHECKING:
    from pipelines.shards.manifest import Manifest
    from pipelines.sources import Source, SourceOptions


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `shards` with its three commands to the command line."""
    shards = commands.add_parser("shards", help="build, verify and describe shard sets")
    subcommands = shards.add_subparsers(metavar="COMMAND", required=True)
    _add_build(subcommands)
    verify = add_command(
        subcommands, "verify", "verify every byte, count and image of a shard set", run_verify
    )
    verify.add_argument("directory", metavar="SHARDS", help=SHARDS_HELP)
    info = add_command(subcommands, "info", "describe a shard set", run_info)
    info.add_argument("directory", metavar="SHARDS", help=SHARDS_HELP)
    check_shards.add_parser(subcommands)


def _add_build(subcommands: Subparsers[argparse.ArgumentParser]) -> None:
    build = add_command(subcommands, "build", "build a shard set from a source", run_build)
    build.add_argument(
        "source",
        metavar="SOURCE",
        help="folder:DIR, archive:FILE, synthetic:evidence and others; an unknown name lists all of them; "
        "DIR and FILE may be on a store, such as folder:s3://BUCKET/photos",
    )
    build.add_argument(
        "out",
        metavar="OUT",
        help="directory to create, on a disk or a store; the same command resumes an interrupted build",
    )
    build.add_argument("--format", metavar="FORMAT", help="arrow or tfrecord (default: arrow)")
    build.add_argument(
        "--encoding", metavar="ENCODING", help="as-found, jpeg:QUALITY, png or raw (default: as-found)"
    )
    build.add_argument(
        "--store-size",
        type=int,
        metavar="PIXELS",
        help="scale larger images down to this shorter side (default: keep the size)",
    )
    build.add_argument("--shard-rows", type=int, metavar="N", help="images per shard (default: about 96 MB)")
    build.add_argument(
        "--shard-mb",
        type=float,
        metavar="M",
        help="megabytes per shard instead, estimated from the first images",
    )
    build.add_argument(
        "--validation",
        type=float,
        metavar="SHARE",
        help="share of every class held out if the source has no validation split (default: 0.2)",
    )
    build.add_argument(
        "--check",
        metavar="CHECK",
        help="decode every image, or read only its header: decode or header (default: decode)",
    )
    build.add_argument(
        "--levels",
        metavar="LEVELS",
        help="values of images of more than 8 bits that become 0 and 255: auto, full or MIN:MAX "
        "(default: full)",
    )
    add_source_options(build)
    build.add_argument(
        "--classes", metavar="FILE", help="file with a class name per line, in the order of the labels"
    )
    build.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="shards built at a time (default: one per CPU of the cluster)",
    )


class BuildClock:
    """Separates the time until the workers were ready from the time of the work itself.

    Call it as the progress callback of `build_shards`.

    Args:
        update: Progress callback that receives the same calls.
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        self._start = time.perf_counter()
        self._ready = self._start
        self._resumed = 0  # candidates that an earlier, interrupted build had finished
        self._total = 0

    def __call__(self, done: int, total: int) -> None:
        """Records at the first call when work began, and how much of it was already done."""
        if not self._total:
            self._ready = time.perf_counter()
            self._resumed = done
            self._total = total
        self._update(done, total)

    def summarize(self, manifest: Manifest, out: str) -> str:
        """Describes the result of the build and its throughput.

        Args:
            manifest: Manifest of the finished shard set.
            out: Directory of the shard set, as the user wrote it.
        """
        seconds = max(time.perf_counter() - self._ready, 1e-9)
        images = sum(split.rows for split in manifest.splits.values())
        megabytes = sum(split.bytes for split in manifest.splits.values()) / 1e6
        share = 1 - self._resumed / self._total if self._total else 0.0  # of the set that this build made
        speed = f"{share * images / seconds:.0f} images/s, {share * megabytes / seconds:.1f} MB/s"
        resumed = f", after {self._resumed} candidates of an interrupted build" if self._resumed else ""
        reasons = f" (reasons in {out}/rejected.jsonl)" if manifest.rejected else ""
        startup = self._ready - self._start
        return (
            f"{images} images stored, {manifest.rejected} rejected{reasons}\n"
            f"{megabytes:.1f} MB in {seconds:.1f} s: {speed} (plus {startup:.1f} s to start Ray{resumed})"
        )


def run_build(options: argparse.Namespace) -> None:
    """Builds a shard set, or resumes an interrupted build.

    Raises:
        ConfigError: An option is invalid; see `build_shards`.
        DataError: The source cannot be used.
    """
    from pipelines.shards.build import build_shards, check_request
    from pipelines.sources import open_source
    from pipelines.spec import ShardSpec, check

    settings = {name: getattr(options, name) for name in ShardSpec.model_fields}
    requested = {name: value for name, value in settings.items() if value is not None}
    spec = check(ShardSpec, requested, "the command line")
    check_request(options.out, spec, options.workers)
    source_options = _read_source_options(options)
    source = open_source(options.source, options=source_options)

    def reopen() -> Source:
        return open_source(options.source, options=source_options, log_notes=False)

    with progress_bar("building shards") as update:
        clock = BuildClock(update)
        manifest = build_shards(source, options.out, spec, clock, options.workers, reopen)
    print_text(clock.summarize(manifest, options.out))


def _read_source_options(options: argparse.Namespace) -> SourceOptions:
    from pipelines.sources.options import SourceOptions, read_class_names

    names = None if options.classes is None else read_class_names(options.classes)
    return SourceOptions(options.splits, options.columns, names)


def run_verify(options: argparse.Namespace) -> None:
    """Verifies a shard set, and prints a line for every damaged file.

    Raises:
        DataError: The set has no manifest, or a file of it is damaged.
    """
    from pipelines.shards.manifest import load_manifest
    from pipelines.shards.verify import verify_shards

    directory = parse_location(options.directory)
    with progress_bar("verifying shards") as update:
        damaged = verify_shards(directory, update)
    for file in damaged:
        print_lines(file)
    if damaged:
        raise DataError(
            "an undamaged shard set",
            f"data={directory}: damaged files={len(damaged)}",
            "copy these files again from an undamaged copy, or build the shard set again",
        )
    splits = load_manifest(directory).splits.values()
    rows = sum(split.rows for split in splits)
    shards = sum(split.shard_count for split in splits)
    print_lines(f"verified: {rows} images in {shards} shards, every checksum, count and image")


def run_info(options: argparse.Namespace) -> None:
    """Prints splits, classes and sizes of a shard set.

    Raises:
        DataError: The set has no manifest, or it is damaged.
    """
    from pipelines.shards.info import describe_shards

    print_text(describe_shards(parse_location(options.directory)))
