"""The preview page of an augmentation: training images next to their augmented versions."""

from __future__ import annotations

from pipelines.augment.draw import check_is_on
from pipelines.errors import ConfigError
from pipelines.input.mix import open_reader
from pipelines.remote.uri import Location
from pipelines.spec import AugmentSpec, DataSpec
from pipelines.storage import write_atomically
from service.devices import configure_devices
from service.report.analysis.augmented import PreviewOptions, augment_images
from service.report.drawing.album import Album
from service.report.pages import page
from service.report.publish import PAGE, publish, write_page_manifest
from service.report.sections.augmented_images import add_augmented_images

KIND = "glassbox preview"
VERSION = 1  # of the page and its manifest


def render_preview(
    shards: Location, data: DataSpec, augment: AugmentSpec, options: PreviewOptions, out: Location
) -> Location:
    """Renders a page of originals next to their augmented versions, completely or not at all.

    The versions are exactly the images that a training run with this seed uses in those epochs, including the
    images mixed in, provided that the batch on every replica is even.

    Args:
        shards: Path or URI of the shard set.
        data: Size and channels of the images.
        augment: Ranges that the parameters are drawn from.
        options: Images and epochs to show.
        out: Directory for the page, or its URI; a preview in it is replaced.

    Returns:
        Path or URI of `index.html`.

    Raises:
        ConfigError: No augmentation is on, there is nothing to show, or `out` holds something else or cannot
            be written.
        DataError: The shard set cannot be used.
    """
    check_is_on(augment, data)
    reader = open_reader(shards, options.split, data)
    if not reader.rows:
        raise ConfigError(
            "a split with images",
            f"split={options.split} of {shards} (empty)",
            "choose another one with --split",
        )
    configure_devices()
    with publish(out, KIND) as directory:
        album = Album(directory)
        images = augment_images(shards, reader, data, augment, options)
        html = page.render(
            "preview.html",
            [],
            images=add_augmented_images(album, images, reader.manifest.digest(), options.split),
            ranges=augment.list_changed(),
            options=options,
            rows=reader.rows,
        )
        write_atomically(directory / PAGE, html)
        manifest = {
            "kind": KIND,
            "version": VERSION,
            "shards": reader.manifest.digest(),
            "data": data.model_dump(mode="json"),
            "augment": augment.model_dump(mode="json"),
            "options": options.model_dump(mode="json"),
            "pictures": [album.entries[file] for file in sorted(album.entries)],
        }
        write_page_manifest(directory, manifest)
    return out / PAGE
