"""Activations: what every layer makes of an image, one tile for each channel."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pipelines.errors import ConfigError
from service.inference import Predictions
from service.report.pictures import FLAT, Album, coloured, enlarged, reduced, tiled
from service.report.subject import Section, Subject

COLUMNS, SMALLEST, LARGEST = 16, 40, 96  # tiles a row; pixels a tile
CELLS, CELL = 64, 16  # units a row; pixels a unit
FEW = 16  # so many values are written out


@dataclass(frozen=True)
class LayerOutput:
    """What one layer gave for N images.

    Attributes:
        name: Of the layer; layers of a nested model carry its name before a slash.
        kind: Its class.
        values: float32 `[N, H, W, C]` or `[N, units]`.
    """

    name: str
    kind: str
    values: np.ndarray


def choose(predictions: Predictions, count: int) -> np.ndarray:
    """Picks images to look into: from each class in turn the surest right answer, else the least wrong one.

    Returns:
        int64 `[<= count]`, indices into the predictions.
    """
    of_truth = predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels]
    right = predictions.classes == predictions.labels
    best_first = np.lexsort((-of_truth, ~right))
    ranks = np.empty(len(best_first), np.int64)
    for label in np.unique(predictions.labels):
        members = best_first[predictions.labels[best_first] == label]
        ranks[members] = np.arange(len(members))
    return np.lexsort((predictions.labels, ranks))[:count]


def layer_outputs(model: keras.Model, images: np.ndarray) -> list[LayerOutput]:
    """Runs a model in inference mode and keeps what every layer gave, those of nested models too.

    Args:
        model: Sequential or functional.
        images: float32 `[N, H, W, C]`, scaled as the model wants them.

    Returns:
        The outputs `[N, H, W, C]` and `[N, units]`, in the order of the graph; Flatten adds nothing and is left out.
    """
    found: list[LayerOutput] = []
    _run(model, keras.ops.convert_to_tensor(images, "float32"), "", found)
    return found


def _run(model: keras.Model, x: Any, prefix: str, found: list[LayerOutput]) -> Any:
    def step(operation: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(operation, keras.Model) and hasattr(operation, "layers"):
                return _run(operation, args[0], f"{prefix}{operation.name}/", found)
            if "training" in inspect.signature(operation.call).parameters:
                kwargs["training"] = False
            y = operation(*args, **kwargs)
            if getattr(y, "ndim", 0) in (2, 4) and not isinstance(operation, keras.layers.Flatten):
                values = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
                found.append(LayerOutput(prefix + operation.name, type(operation).__name__, values))
            return y

        return call

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            x = step(layer)(x)
        return x
    # Keras has no public way to see inside a nested model in the graph it is part of.
    return model._run_through_graph(x, operation_fn=step)


def blank(maps: np.ndarray) -> np.ndarray:
    """Which channels carry no signal: never above zero, or the same everywhere. `[H, W, C]` to bool `[C]`."""
    highest, lowest = maps.max(axis=(0, 1)), maps.min(axis=(0, 1))
    return ~((highest > 0) & (highest > lowest))


def levels(values: np.ndarray) -> np.ndarray:
    """Brings values to mean 128 and standard deviation 64, clipped to 0..255.

    Args:
        values: float `[H, W, C]`, each channel for itself.

    Returns:
        float32 `[C, H, W]`; 128 where a channel is constant.
    """
    deviation = values.std(axis=(0, 1))
    centred = (values - values.mean(axis=(0, 1))) / np.where(deviation > 0, deviation, 1)
    return np.clip(centred * 64 + 128, 0, 255).transpose(2, 0, 1).astype(np.float32)


def sheet(maps: np.ndarray) -> np.ndarray:
    """Draws all channels of one image, 16 a row; blank ones flat grey.

    Args:
        maps: float `[H, W, C]`.

    Returns:
        uint8 `[height, width, 3]`.
    """
    tiles = coloured(np.rint(reduced(levels(maps), LARGEST)).astype(np.uint8))
    tiles[blank(maps)] = FLAT
    return tiled(enlarged(tiles, SMALLEST), COLUMNS)


def strip(values: np.ndarray) -> np.ndarray:
    """Draws the units of a dense layer as cells, 64 a row.

    Args:
        values: float `[units]`.

    Returns:
        uint8 `[height, width, 3]`.
    """
    cells = np.rint(levels(values[:, None, None])).astype(np.uint8).reshape(-1, 1, 1)
    return tiled(enlarged(coloured(cells), CELL), CELLS)


def statistics(output: LayerOutput) -> dict[str, Any]:
    """Shape, share of blank channels (of all images; None for dense layers) and share of zeros."""
    maps = output.values.ndim == 4
    return {
        "layer": output.name,
        "kind": output.kind,
        "shape": list(output.values.shape[1:]),
        "blank_channels": float(np.mean([blank(image) for image in output.values])) if maps else None,
        "zeros": float((output.values == 0).mean()),
    }


def part(subject: Subject, album: Album) -> Section | None:
    """Every layer's activations for some judged images."""
    predictions, images = subject.predictions, subject.evaluation
    chosen = _chosen(subject)
    if not len(chosen):
        return None
    rows = predictions.rows[chosen]
    pixels = images.read(rows)
    outputs = layer_outputs(subject.model, pixels.astype(np.float32) * subject.scale)
    looks = []
    for n, (index, row) in enumerate(zip(chosen, rows, strict=True)):
        predicted, truth = int(predictions.classes[index]), int(predictions.labels[index])
        name = f"{images.split} image {row}, {subject.classes[truth]}"
        origin = subject.origin(images, [row], checkpoint=subject.model_digest, scale=subject.scale)
        looks.append(
            {
                "picture": album.add_photo(pixels[n], "input", name.capitalize(), **origin),
                "truth": subject.classes[truth],
                "predicted": subject.classes[predicted],
                "probability": float(predictions.probabilities[index, predicted]),
                "layers": [_drawn(output, n, name, album, origin) for output in outputs],
            }
        )
    table = [statistics(output) for output in outputs]
    return Section("activations", "Activations", {"looks": looks, "table": table}, {"rows": rows.tolist(), "layers": table})


def _chosen(subject: Subject) -> np.ndarray:
    wanted, predictions = subject.options.activation_rows, subject.predictions
    if wanted is None:
        return choose(predictions, subject.options.activation_images)
    places = {int(row): index for index, row in enumerate(predictions.rows)}
    for row in wanted:
        if row not in places:
            raise ConfigError(
                f"rows from 0 to {len(places) - 1}", f"activation_rows={row}", f"pick rows of the {subject.evaluation.split} split"
            )
    return np.array([places[row] for row in wanted], np.int64)


def _drawn(output: LayerOutput, n: int, name: str, album: Album, origin: dict[str, Any]) -> dict[str, Any]:
    """One layer's output for image `n`: its picture, and words and numbers beside it."""
    values = output.values[n]
    made_from = {**origin, "layer": output.name}
    stem = "".join(letter if letter.isalnum() else "-" for letter in output.name)
    drawn: dict[str, Any] = {"layer": output.name, "kind": output.kind, "picture": None, "values": None}
    if values.ndim == 3:
        height, width, channels = values.shape
        flat = int(blank(values).sum())
        drawn["note"] = f"{channels} channels of {height} by {width}" + (f", {flat} blank" if flat else "")
        drawn["picture"] = album.add_sheet(sheet(values), stem, f"{output.name}: {drawn['note']}; {name}", **made_from)
        return drawn
    drawn["note"] = f"{len(values)} unit{'s' if len(values) > 1 else ''}"
    drawn["values"] = values.tolist() if len(values) <= FEW else None
    if len(values) > 1:
        alt = f"{output.name}: {drawn['note']} from {values.min():.3g} to {values.max():.3g}; {name}"
        drawn["picture"] = album.add_sheet(strip(values), stem, alt, **made_from)
    return drawn
