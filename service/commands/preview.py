"""`glassbox preview`: an HTML page of training images and their augmented versions."""

from __future__ import annotations

import argparse

from pipelines.remote.files import resolve_location
from pipelines.text import print_lines
from service.commands.common import PRESET_HELP, SHARDS_HELP, Subparsers, add_command


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `preview` to the command line."""
    parser = add_command(commands, "preview", "render augmented training images as an HTML page", run)
    parser.add_argument("shards", metavar="SHARDS", help=SHARDS_HELP)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"preset that gives image size, seed and augmentation: {PRESET_HELP} "
        "(default: demo, which has no augmentation)",
    )
    parser.add_argument(
        "--augment",
        nargs="+",
        default=[],
        metavar="key=value",
        help="change the augmentation: rotation=40 flip=true",
    )
    parser.add_argument("--split", default="train", metavar="SPLIT", help="split to show (default: train)")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="number of images (default: 8)")
    parser.add_argument(
        "--versions", type=int, default=4, metavar="N", help="epochs shown of each image (default: 4)"
    )
    parser.add_argument("--epoch", type=int, default=1, metavar="N", help="the first epoch (default: 1)")
    parser.add_argument(
        "--out",
        default="preview",
        metavar="DIR",
        help="directory of the page, or its URI; replaces an older preview (default: preview)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change data or seed: data.image_size=64 seed=3"
    )


def run(options: argparse.Namespace) -> None:
    """Renders the page.

    Raises:
        GlassboxError: See `service.report.pages.preview.render_preview` for the conditions.
    """
    from pipelines.augment.draw import check_is_on
    from pipelines.shards.manifest import load_manifest
    from pipelines.spec import AugmentSpec, check
    from service.config import load_config

    overrides = [f"augment.{override}" for override in options.augment] + options.overrides
    config = load_config(options.preset or "demo", options.shards, overrides)
    augment = config.augment or AugmentSpec()
    # Before TensorFlow is imported.
    load_manifest(options.shards)
    check_is_on(augment, config.data)

    from service.report.analysis.augmented import PreviewOptions
    from service.report.pages.preview import render_preview

    settings = {
        "split": options.split,
        "epoch": options.epoch,
        "rows": options.rows,
        "versions": options.versions,
        "seed": config.seed,
        "global_batch": config.global_batch,
    }
    preview_options = check(PreviewOptions, settings, "the command line")
    page = render_preview(
        resolve_location(options.shards),
        config.data,
        augment,
        preview_options,
        resolve_location(options.out),
    )
    print_lines(f"open {page}")
