"""Computes the heatmaps of several models for the same images, to be shown on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.gradcam import CamExtractor
from service.report.analysis.images import Images
from service.report.analysis.network import Network


@dataclass(frozen=True)
class ModelMaps:
    """Heatmaps of one model for `N` images.

    Attributes:
        layer: Name of the layer, the last feature map of the model.
        images: The images as they enter the model, uint8 `[N, H, W, C]`.
        maps: Grad-CAM of the true classes, float32 `[N, h, w]`, at least 0, in units of the logit.
    """

    layer: str
    images: NDArray[np.uint8]
    maps: NDArray[np.float32]


def compute_model_maps(network: Network, images: Images, rows: Sequence[int]) -> ModelMaps | None:
    """Computes Grad-CAM of the true classes of some images, in the last feature map of a model.

    Args:
        network: Model that the maps explain; its last feature map is used.
        images: The split that the images are taken from, at the size the model takes.
        rows: Rows of the images.

    Returns:
        The maps; None for a model without feature maps.
    """
    last = network.last_feature_map
    if last is None:
        return None
    pixels = images.read(rows)
    labels = np.asarray(images.labels)[list(rows)]
    (by_class,) = CamExtractor(network, [last.name])(pixels, labels[:, None]).maps.values()  # [N, 1, h, w]
    return ModelMaps(last.name, pixels, np.asarray(by_class[:, 0]))
