"""Augmentation: some training images as the epochs of this run saw them, beside the originals and with what was drawn."""

from __future__ import annotations

from pathlib import Path

from pipelines.augment.draw import signature
from pipelines.input.reader import ShardReader
from pipelines.spec import AugmentSpec, DataSpec, check
from service.report.analysis.augmented import Previewer, PreviewOptions
from service.report.drawing.album import Album
from service.report.subject import Section, Subject

IMAGES, VERSIONS = 3, 4  # that are shown: the first images of the first epoch, in so many epochs


def build_section(subject: Subject, album: Album, shards: Path) -> Section | None:
    """The very pictures that training saw; None for a run without augmentation.

    Args:
        subject: A run.
        album: Where pictures go.
        shards: Its shard set.

    Raises:
        ConfigError: The run's configuration is not one of this version.
    """
    config, split = subject.config, subject.training.split
    augment = check(AugmentSpec, config.get("augment") or {}, "config.yaml")
    data = check(DataSpec, config.get("data") or {}, "config.yaml")
    if not signature(augment, data):
        return None
    options = PreviewOptions(
        split=split,
        seed=int(config.get("seed", 0)),
        rows=IMAGES,
        versions=min(VERSIONS, max(1, len(subject.epochs))),
    )
    previewer = Previewer(shards, ShardReader(shards, split), data, augment, options)
    shown = previewer.show(album)
    figures = {
        "augment": augment.model_dump(mode="json"),
        "seed": options.seed,
        "rows": [image.row for image in shown],
    }
    return Section(
        "augmentation",
        "Augmentation",
        {"shown": shown, "ranges": previewer.ranges, "seed": options.seed},
        figures,
    )
