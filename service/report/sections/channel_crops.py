"""Pictures of the crops that activate a channel most, for the sections that show channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.report.analysis.images import Images
from service.report.analysis.network import LayerInfo
from service.report.analysis.receptive_field import ReceptiveField
from service.report.analysis.top_crops import Scan, TopPositions, cut_crop, place_crop
from service.report.drawing.album import Album, Drawing, Picture
from service.report.drawing.crops import draw_crops
from service.report.sections.provenance import Provenance


class CropPictures:
    """Adds the strongest crops of channels to an album.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        images: The split that was scanned.
        scan: Strongest positions of the channels; None if no image was scanned.
        fields: Receptive fields by name of the layer.
        shape: Height and width of the images.
    """

    def __init__(
        self,
        album: Album,
        provenance: Provenance,
        images: Images,
        scan: Scan | None,
        fields: Mapping[str, ReceptiveField],
        shape: Sequence[int],
    ) -> None:
        self._album = album
        self._provenance = provenance
        self._images = images
        self._scan = scan
        self._fields = fields
        self._shape = shape

    @property
    def scanned(self) -> int:
        """Number of images that were searched."""
        return 0 if self._scan is None else len(self._scan.rows)

    def find_top(self, layer: str) -> TopPositions | None:
        """Returns the strongest positions of a layer's first channels; None if it was not scanned."""
        return None if self._scan is None else self._scan.tops.get(layer)

    def add(self, layer: LayerInfo, channels: Sequence[int]) -> list[dict[str, Any] | None]:
        """Adds a picture for each of some channels of a layer.

        Returns:
            For each channel the picture, the activations of its crops, their rows, and whether positions are
            marked in them; None for a channel that no image activates.
        """
        top = self.find_top(layer.name)
        if top is None:
            return [None] * len(channels)
        shown = [channel for channel in channels if top.count(channel)]
        rows = np.unique([row for channel in shown for row in top.rows[channel][: top.count(channel)]])
        pixels = dict(zip(rows.tolist(), self._images.read(rows.tolist()), strict=True)) if shown else {}
        pictures = self._album.add_all([self._draw(layer, top, channel, pixels) for channel in shown])
        by_channel = dict(zip(shown, pictures, strict=True))
        return [
            self._describe(layer, top, channel, by_channel[channel]) if channel in by_channel else None
            for channel in channels
        ]

    def _draw(
        self, layer: LayerInfo, top: TopPositions, channel: int, pixels: Mapping[int, np.ndarray]
    ) -> Drawing:
        crops = []
        marks = []
        count = top.count(channel)
        for row, position in zip(top.rows[channel][:count], top.positions[channel][:count], strict=True):
            image = pixels[int(row)]
            place = place_crop(layer, self._fields[layer.name], position, self._shape)
            crops.append(cut_crop(image, place.window))
            marks.append(place.mark)
        rows = top.rows[channel][:count].tolist()
        origin = self._provenance.describe_outputs(
            self._images.split,
            rows,
            layer=layer.name,
            channel=channel,
            positions=top.positions[channel][:count].tolist(),
        )
        text = f"Parts of {count} images that activate channel {channel} of {layer.name} most"
        return Drawing(draw_crops(crops, marks), "crops", text, origin, "webp")

    def _describe(
        self, layer: LayerInfo, top: TopPositions, channel: int, picture: Picture
    ) -> dict[str, Any]:
        place = place_crop(layer, self._fields[layer.name], top.positions[channel][0], self._shape)
        count = top.count(channel)
        activations = top.activations[channel][:count].tolist()
        return {
            "picture": picture,
            "count": count,
            "strongest": activations[0],
            "weakest": activations[-1],
            "activations": activations,
            "is_marked": place.mark is not None,
            "rows": top.rows[channel][:count].tolist(),
        }
