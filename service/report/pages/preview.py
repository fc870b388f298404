"""The preview of an augmentation: pictures as training would see them, beside the originals and with what was drawn."""

from __future__ import annotations

from pathlib import Path

from pipelines.augment.draw import signature
from pipelines.errors import ConfigError
from pipelines.input.reader import ShardReader
from pipelines.spec import AugmentSpec, DataSpec
from service.report.analysis.augmented import KIND, Previewer, PreviewOptions
from service.report.publish import PAGE, publishing


def render_preview(
    shards: Path, data: DataSpec, augment: AugmentSpec, options: PreviewOptions, out: Path
) -> Path:
    """Renders a page of originals beside their augmented versions, whole or not at all.

    The versions are the very pictures that a training run with this seed, and an even batch on every replica,
    sees in those epochs, those mixed in included.

    Args:
        shards: The shard set.
        data: Size and channels of the images.
        augment: The ranges.
        options: Which images, and of which epochs.
        out: Directory for the page; a preview that stands there is replaced.

    Returns:
        The path of `index.html`.

    Raises:
        ConfigError: No augmentation is on, there is nothing to show, or `out` holds something else or cannot be written.
        DataError: The shard set cannot be used.
    """
    if not signature(augment, data):
        raise ConfigError(
            "an augmentation", "augment with nothing turned on", "turn something on, for example flip=true"
        )
    reader = ShardReader(shards, options.split)
    if not reader.rows:
        raise ConfigError(
            "a split with images", f"split={options.split} of {shards} (empty)", "choose another with --split"
        )
    with publishing(out, KIND) as directory:
        Previewer(shards, reader, data, augment, options).write(directory)
    return out / PAGE
