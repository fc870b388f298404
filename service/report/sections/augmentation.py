"""Augmentation: some training images as augmented in the epochs of this run, next to the originals."""

from __future__ import annotations

from typing import Any

from pipelines.augment.draw import signature
from pipelines.input.mix import open_reader
from pipelines.input.mixed_manifest import select_mix
from pipelines.remote.uri import Location
from pipelines.spec import AugmentSpec, DataSpec, check
from service.report.analysis.augmented import PreviewOptions, augment_images
from service.report.drawing.album import Album
from service.report.sections.augmented_images import add_augmented_images
from service.report.sections.section import Section

IMAGES = 3  # number of images: the first ones of the first epoch
VERSIONS = 4  # largest number of epochs in which each image is shown


def build_section(
    album: Album, shards: Location, split: str, config: dict[str, Any], epoch_count: int
) -> Section | None:
    """Builds the augmented images exactly as used in training, with the parameters drawn for each.

    Args:
        album: Album the pictures are added to.
        shards: Shard set the run was trained on.
        split: Split the run was trained on.
        config: Configuration of the run, see `service.runs.Run.config`; empty for a model without a run.
        epoch_count: Number of epochs the run was trained for.

    Returns:
        The section; None for a run without augmentation.

    Raises:
        ConfigError: The run's configuration does not match this version.
    """
    augment = check(AugmentSpec, config.get("augment") or {}, "config.yaml")
    data = check(DataSpec, config.get("data") or {}, "config.yaml")
    mix = select_mix(config, shards)
    data = data.model_copy(update={"mix": mix.mix, "epoch_images": mix.epoch_images})
    if not signature(augment, data):
        return None
    options = PreviewOptions(
        split=split,
        seed=int(config.get("seed", 0)),
        rows=IMAGES,
        versions=min(VERSIONS, max(1, epoch_count)),
        global_batch=int(config.get("global_batch", 32)),
    )
    reader = open_reader(shards, split, data)
    augmented = augment_images(shards, reader, data, augment, options)
    images = add_augmented_images(album, augmented, reader.manifest.digest(), split)
    values = {"images": images, "ranges": augment.list_changed(), "seed": options.seed}
    figures = {
        "augment": augment.model_dump(mode="json"),
        "seed": options.seed,
        "rows": [image.row for image in images],
    }
    return Section("augmentation", "Augmentation", values, figures)
