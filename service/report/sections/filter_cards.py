"""Filter cards: for single filters the pattern in the Fourier basis, the strongest crops, and the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.fourier_patterns import STEPS, compute_fourier_patterns
from service.report.analysis.network import LayerInfo, Network
from service.report.analysis.patterns import FilterPatterns
from service.report.analysis.receptive_field import ReceptiveField
from service.report.drawing.album import Album, Drawing, Picture
from service.report.drawing.crops import compose_kernels
from service.report.rasters import repeat_pixels
from service.report.sections.channel_crops import CropPictures
from service.report.sections.provenance import Provenance
from service.report.sections.weights import find_limit

KERNEL_SIDE = 96  # smallest longer side of a kernel, in pixels


@dataclass(frozen=True)
class LayerCards:
    """The cards of one layer.

    Attributes:
        values: Values for the template.
        figures: The numbers on the cards, for the manifest.
    """

    values: dict[str, Any]
    figures: dict[str, Any]


@dataclass(frozen=True)
class FilterCards:
    """Builds the cards of filters, layer by layer.

    Attributes:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        network: Network whose filters are shown.
        crops: Pictures of the strongest crops.
        fields: Receptive fields by name of the layer.
        colours: Axes of the colours of the images, see `measure_colours`.
        count: Number of filters per layer.
        seed: Seed of the patterns.
    """

    album: Album
    provenance: Provenance
    network: Network
    crops: CropPictures
    fields: dict[str, ReceptiveField]
    colours: NDArray[np.floating]
    count: int
    seed: int

    def build(self, layer: LayerInfo, states: Sequence[str]) -> LayerCards:
        """Builds the cards of the first filters of a layer.

        Args:
            layer: Layer whose filters are shown.
            states: Of each filter of its sheet, see `classify_filters`.
        """
        filters = range(min(self.count, len(states)))
        if not filters:
            return LayerCards({"cards": []}, {})
        field = self.fields[layer.name]
        patterns = compute_fourier_patterns(
            self.network,
            layer.name,
            filters,
            self.colours,
            field,
            seed=self.seed,
        )
        pictures = self._add_patterns(patterns)
        kernels, limit = self._add_kernels(layer, filters)
        crops = self.crops.add(layer, filters)
        cards = []
        for index in filters:
            cards.append(
                {
                    "filter": index,
                    "state": states[index],
                    "pattern": pictures[index],
                    "activation": float(patterns.final_activation[index]),
                    "crops": crops[index],
                    "kernel": kernels[index],
                }
            )
        values = {
            "cards": cards,
            "field": [round(side) for side in field.size],
            "is_global": field.is_global,
            "is_marked": any(item["is_marked"] for item in crops if item),
            "kernel_limit": limit,
        }
        figures = {
            "fourier": {
                "before": patterns.initial_activation.tolist(),
                "after": patterns.final_activation.tolist(),
            },
            "crops": [item and {"rows": item["rows"], "activations": item["activations"]} for item in crops],
            "receptive_field": {"size": list(field.size), "is_global": field.is_global},
            "kernel_limit": limit,
        }
        return LayerCards(values, figures)

    def _add_patterns(self, patterns: FilterPatterns) -> list[Picture | None]:
        """Adds the picture of every pattern; None for a filter that was not activated."""
        responsive = np.flatnonzero(~patterns.is_unresponsive)
        drawings = []
        for index in responsive:
            number = patterns.filters[index]
            origin = {
                "checkpoint": self.provenance.model_digest,
                "layer": patterns.layer,
                "filters": [number],
                "steps": STEPS,
                "seed": self.seed,
                "basis": "fourier",
            }
            text = f"Pattern that maximizes filter {number} of {patterns.layer}"
            pixels = np.asarray(np.clip(patterns.images[index], 0, 255).round(), np.uint8)
            grey_or_colour = pixels[..., 0] if pixels.shape[2] == 1 else pixels
            drawings.append(Drawing(grey_or_colour, "patterns", text, origin, "webp"))
        by_index = dict(zip(responsive.tolist(), self.album.add_all(drawings), strict=True))
        return [by_index.get(index) for index in range(len(patterns.filters))]

    def _add_kernels(
        self, layer: LayerInfo, filters: Sequence[int]
    ) -> tuple[list[Picture | None], float | None]:
        """Adds the kernels of the first convolution as pictures, and returns their common limit.

        Other layers have none, because their inputs are not colours.
        """
        first = self.network.convolutions[0] if self.network.convolutions else None
        if layer != first or layer.kind != "Conv2D":
            return [None] * len(filters), None
        kernel = np.asarray(layer.operation.kernel, np.float32)  # [h, w, in, out]
        if kernel.shape[2] != self.network.shape[2]:
            return [None] * len(filters), None
        limit = find_limit(kernel)
        origin = {"checkpoint": self.provenance.model_digest, "layer": layer.name, "limit": limit}
        drawings = []
        for index, pixels in enumerate(compose_kernels(kernel[..., : len(filters)], limit)):
            enlarged = repeat_pixels(pixels[None], KERNEL_SIDE)[0]
            text = f"Kernel of filter {index} of {layer.name}, grey is zero"
            shown = enlarged[..., 0] if enlarged.shape[2] == 1 else enlarged
            drawings.append(Drawing(shown, "weights", text, {**origin, "filters": [index]}))
        return list(self.album.add_all(drawings)), limit
