"""Gallery: every image of the evaluated split as a thumbnail, to sort, filter and search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.classifier import Predictions
from service.report.analysis.examples import ReportExample
from service.report.analysis.gallery import build_table, list_columns, select_images
from service.report.analysis.images import Images
from service.report.drawing.album import Album, Picture
from service.report.drawing.sprites import SHEET_IMAGES, SpriteSpec, choose_sprites
from service.report.sections.provenance import Provenance, draw_examples
from service.report.sections.section import Section

MAX_IMAGES = 10_000  # the largest number, which images of few pixels reach
LOOK_AT_RUN = "glassbox look RUN --rows {row}"
LOOK_AT_MODEL = "glassbox look MODEL.keras --data SHARDS --rows {row}"


@dataclass(frozen=True)
class GalleryLinks:
    """What the gallery says about further views of an image.

    Attributes:
        examples: Images with heatmaps, in the order of the selector of their view; the page has them in full.
        command: Command that renders the views of any image, with `{row}` for its row.
    """

    examples: Sequence[ReportExample] = ()
    command: str = LOOK_AT_RUN

    @property
    def in_split(self) -> list[tuple[int, ReportExample]]:
        """The images that are rows of the split, with their numbers in the selector."""
        return [(index, example) for index, example in enumerate(self.examples) if example.row is not None]


def build_links(examples: Sequence[ReportExample], is_run: bool) -> GalleryLinks:
    """Builds the links of a gallery.

    Args:
        examples: Images with heatmaps.
        is_run: Whether the report is that of a run, rather than of a model file.
    """
    return GalleryLinks(examples, LOOK_AT_RUN if is_run else LOOK_AT_MODEL)


def build_section(
    album: Album,
    provenance: Provenance,
    predictions: Predictions,
    clusters: NDArray[np.int64] | None,
    images: Images,
    classes: Sequence[str],
    links: GalleryLinks,
) -> Section | None:
    """Builds the gallery: sprite sheets of thumbnails, and a table from which the page's script shows them.

    Args:
        album: Album the sheets are added to.
        provenance: Model and shard set the sheets are recorded with in the manifest.
        predictions: Predictions for the evaluated split.
        clusters: Clusters of the predicted images, see `assign_clusters`; None leaves them out.
        images: Split the predictions were computed on.
        classes: Class names; labels are indices into them.
        links: Further views of the images.
    """
    count = len(predictions.labels)
    if not count:
        return None
    input_shape = images.read(predictions.rows[:1].tolist()).shape[1:]
    sprites = choose_sprites(input_shape, count)
    indices = select_images(predictions, min(MAX_IMAGES, sprites.max_images))
    rows = predictions.rows[indices]
    table = build_table(predictions, indices, clusters, images.read_ids(rows.tolist()))
    figures = {
        "images": count,
        "shown": len(indices),
        "clustered": 0 if clusters is None else int((clusters >= 0).sum()),
        "clusters": [] if clusters is None else describe_clusters(predictions, clusters, classes),
    }
    examples = links.in_split
    is_enlarged = sprites.size != input_shape[:2]
    photographed = [example for _, example in examples] if is_enlarged else []
    photos = album.add_all(draw_examples(photographed, provenance))
    values = figures | {
        "split": images.split,
        "input_size": input_shape[:2],
        "thumbnail_size": sprites.size,
        "sheets": _add_sheets(album, provenance, images, rows, sprites),
        "photos": [(example.row, photo) for example, photo in zip(photographed, photos, strict=True)],
        "page": {
            **list_columns(table),
            "layout": asdict(sprites.compute_layout()),
            "names": list(classes),
            "examples": {example.row: index for index, example in examples},
            "is_enlarged": is_enlarged,
            "command": links.command,
        },
    }
    return Section("gallery", "Gallery", values, figures)


def describe_clusters(
    predictions: Predictions, clusters: NDArray[np.int64], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Describes each cluster: its images, its most frequent true class and the share that is correct."""
    is_correct = predictions.classes == predictions.labels
    descriptions = []
    for cluster in range(int(clusters.max()) + 1):
        members = clusters == cluster
        per_class = np.bincount(predictions.labels[members], minlength=len(classes))
        most_frequent = int(per_class.argmax())
        descriptions.append(
            {
                "images": int(members.sum()),
                "class": classes[most_frequent],
                "share": float(per_class[most_frequent] / members.sum()),
                "accuracy": float(is_correct[members].mean()),
            }
        )
    return descriptions


def _add_sheets(
    album: Album,
    provenance: Provenance,
    images: Images,
    rows: NDArray[np.int64],
    sprites: SpriteSpec,
) -> list[Picture]:
    """Adds the sheets of some rows; at most one sheet of images is in memory at a time."""
    sheets: list[Picture] = []
    for start in range(0, len(rows), SHEET_IMAGES):
        on_sheet = rows[start : start + SHEET_IMAGES].tolist()
        alt = f"Thumbnails of {images.split} images {on_sheet[0]} to {on_sheet[-1]}"
        origin = provenance.describe_outputs(images.split, on_sheet)
        sheets += album.add_all([sprites.draw(images.read(on_sheet), alt, origin)])
    return sheets
