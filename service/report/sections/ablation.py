"""Ablation: which channels of the last feature map each class depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.ablation import Ablation
from service.report.analysis.network import Network
from service.report.drawing.album import Album, Drawing, Picture
from service.report.drawing.colours import DIVERGING, quantize_signed
from service.report.sections.channel_crops import CropPictures
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

TOP = 3  # channels listed for a class
MAX_CLASSES = 12  # classes listed, those that lose most first
MAX_CARDS = 12  # channels with a card
CARD_CLASSES = 4  # classes listed on a card
MAX_ROWS = 40  # classes in the picture of all channels
CELL = 12  # height of a cell in that picture, in pixels
PICTURE_WIDTH = 1024
LISTED_FIGURES = 20_000  # largest number of accuracies in the manifest

Floats = NDArray[np.floating]


def build_section(
    album: Album,
    provenance: Provenance,
    ablation: Ablation | None,
    network: Network,
    crops: CropPictures,
    classes: Sequence[str],
) -> Section | None:
    """Builds the effect of each channel on the accuracy of each class.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        ablation: Accuracy without each channel; None leaves the section out.
        network: Network whose channels are ablated.
        crops: Pictures of the crops that activate them most.
        classes: Class names; labels are indices into them.

    Returns:
        The section; None without an ablation.
    """
    if ablation is None:
        return None
    layer = network.find_layer(ablation.layer)
    order = rank_classes(ablation)
    listed = order[:MAX_CLASSES]
    tops = {int(label): rank_channels(ablation, int(label))[:TOP] for label in listed}
    shown = list(dict.fromkeys(index for indices in tops.values() for index in indices))[:MAX_CARDS]
    pictures = crops.add(layer, ablation.channels[shown].tolist())
    cards = [
        _describe_channel(ablation, index, picture, classes)
        for index, picture in zip(shown, pictures, strict=True)
    ]
    rows = [
        {
            "class": classes[label],
            "accuracy": float(ablation.accuracy[label]),
            "channels": [
                {
                    "channel": int(ablation.channels[index]),
                    "change": float(ablation.change[index, label]),
                }
                for index in indices
            ],
        }
        for label, indices in tops.items()
    ]
    drawn = order[:MAX_ROWS]
    limit = _find_limit(ablation)
    values = {
        "layer": layer.name,
        "channels": len(ablation.channels),
        "all_channels": layer.shape[2],
        "images": ablation.images,
        "split": provenance.split,
        "accuracy": ablation.mean_accuracy,
        "largest_loss": float(max(ablation.mean_accuracy - ablation.mean_without.min(), 0)),
        "harmless": float((ablation.mean_without >= ablation.mean_accuracy).mean()),
        "rows": rows,
        "omitted": len(order) - len(listed),
        "cards": cards,
        "picture": _draw(album, provenance, ablation, drawn, limit),
        "drawn": [classes[label] for label in drawn],
        "limit": limit,
        "table": [_describe_channel(ablation, index, None, classes) for index in _rank_all(ablation)],
    }
    return Section("ablation", "Channels that classes depend on", values, _figures(ablation))


def rank_classes(ablation: Ablation) -> list[int]:
    """Ranks the classes with images: those that lose most by one channel first."""
    labels = np.flatnonzero(~np.isnan(ablation.accuracy))
    losses = ablation.change[:, labels].min(axis=0)
    return [int(label) for label in labels[np.argsort(losses, kind="stable")]]


def rank_channels(ablation: Ablation, label: int) -> list[int]:
    """Ranks the channels that a class loses accuracy without, as indices, the largest loss first."""
    change = ablation.change[:, label]
    order = np.lexsort((ablation.mean_without, change))
    return [int(index) for index in order if change[index] < 0]


def _rank_all(ablation: Ablation) -> list[int]:
    """Ranks the channels by the accuracy on all images without them, the lowest first; at most 32."""
    return [int(index) for index in np.argsort(ablation.mean_without, kind="stable")[:32]]


def _find_limit(ablation: Ablation) -> float:
    """Finds the largest change of any class, the end of the colour scale; a hundredth if there is none."""
    return float(np.nanmax(np.abs(ablation.change), initial=0)) or 0.01


def _describe_channel(
    ablation: Ablation, index: int, crops: dict[str, Any] | None, classes: Sequence[str]
) -> dict[str, Any]:
    """Describes what removing a channel does: on all images, and for the classes it changes most."""
    change = ablation.change[index]
    labels = [label for label in np.argsort(-np.abs(change), kind="stable") if change[label] != 0]
    known = [label for label in labels if not np.isnan(change[label])]
    return {
        "channel": int(ablation.channels[index]),
        "crops": crops,
        "change": float(ablation.mean_without[index] - ablation.mean_accuracy),
        "classes": [
            {"class": classes[label], "change": float(change[label])} for label in known[:CARD_CLASSES]
        ],
    }


def _draw(
    album: Album, provenance: Provenance, ablation: Ablation, labels: Sequence[int], limit: float
) -> Picture:
    """Draws the change of every class (rows) without every channel (columns)."""
    change = np.nan_to_num(ablation.change[:, list(labels)].T)  # [rows, A]
    width = max(1, PICTURE_WIDTH // change.shape[1])
    indices = quantize_signed(change, limit).repeat(CELL, axis=0).repeat(width, axis=1)
    text = (
        f"Change of the accuracy of {len(labels)} classes (rows) without each of {change.shape[1]} channels "
        f"of {ablation.layer} (columns): from -{limit:.1%} (blue) to {limit:.1%} (red)"
    )
    origin = {
        "checkpoint": provenance.model_digest,
        "shards": provenance.shards_digest,
        "split": provenance.split,
        "layer": ablation.layer,
        "images": ablation.images,
    }
    return album.add_all([Drawing(indices, "ablation", text, origin, "png", DIVERGING)])[0]


def _figures(ablation: Ablation) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "layer": ablation.layer,
        "images": ablation.images,
        "channels": ablation.channels.tolist(),
        "accuracy": ablation.mean_accuracy,
        "accuracy_without": ablation.mean_without.tolist(),
        "class_accuracy": ablation.accuracy.tolist(),
    }
    if ablation.without.size <= LISTED_FIGURES:
        figures["class_accuracy_without"] = ablation.without.tolist()
    return figures
