"""The health page of a shard set: what to correct before training, with pictures."""

from __future__ import annotations

from pipelines.health.pictures import PictureReader
from pipelines.health.report import Health
from pipelines.remote.uri import Location
from pipelines.shards.manifest import load_manifest
from pipelines.storage import write_atomically
from service.report.drawing.album import Album
from service.report.pages import page
from service.report.publish import PAGE, publish, write_page_manifest
from service.report.sections.health import build_section

KIND = "glassbox health"
VERSION = 1  # of the page and its manifest


def render_health(shards: Location, health: Health, out: Location) -> Location:
    """Renders the health of a shard set as a page, completely or not at all.

    Args:
        shards: Path or URI of the shard set.
        health: Result of its check.
        out: Directory for the page, or its URI; a health page in it is replaced.

    Returns:
        Path or URI of `index.html`.

    Raises:
        ConfigError: `out` holds something else, or cannot be written.
        DataError: The shard set is damaged.
    """
    manifest = load_manifest(shards)
    digest = manifest.digest()
    with publish(out, KIND) as directory:
        album = Album(directory)
        section = build_section(album, health, PictureReader(shards).read, digest)
        html = page.render(
            "health_page.html", [], name=shards.name, source=manifest.source, values=section.values
        )
        write_atomically(directory / PAGE, html)
        content = {
            "kind": KIND,
            "version": VERSION,
            "shards": digest,
            "figures": section.figures,
            "pictures": [album.entries[file] for file in sorted(album.entries)],
        }
        write_page_manifest(directory, content)
    return out / PAGE
