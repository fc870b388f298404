"""Explanations of single images: class activation heatmaps and the activations of every layer."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Uri
from pipelines.text import escape_html
from service.failures import translate_failures

if TYPE_CHECKING:
    import keras

    from service.inference.interpretation import Interpretation
    from service.report.analysis.network import Network

OPACITY = 0.55  # opacity of a heatmap over its image
MIN_SIDE = 160  # pixels; smaller photos are enlarged for display
MAX_CHANNELS = 16  # channels drawn per layer
COLUMNS = 8  # channels per row
TILE_SIDE = 56  # pixels of a channel
GAP = 2  # pixels between channels
CELL = 12  # pixels of a unit of a dense layer
CELLS = 32  # units per row
GAP_COLOUR = 255


@dataclass(frozen=True, repr=False)
class Heatmaps:
    """Class activation heatmaps of N images. Renders as a gallery in a notebook.

    Attributes:
        images: uint8 `[N, H, W, C]`, the images.
        maps: float32 `[N, H, W]`, resized to the images and scaled so that the largest value of each is 1; a
            map of zeros stays zero.
        classes: int64 `[N]`, the classes that are explained.
        probabilities: float32 `[N, K]`, the predicted probabilities.
        class_names: Names of the K classes.
        layer: Name of the layer whose feature maps were used.
        method: `gradcam`, `gradcam++` or `layercam`.
    """

    images: np.ndarray
    maps: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    layer: str
    method: str

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Heatmaps({self.method} of {self.layer}, images={len(self)})"

    def overlay(self, index: int, opacity: float = OPACITY) -> Image.Image:
        """Draws one image with its heatmap on top.

        Args:
            index: Index of the image.
            opacity: Opacity of the heatmap, 0 to 1.
        """
        from service.report.drawing.colours import apply_viridis

        photo = _to_rgb(self.images[index]).astype(np.float32)
        levels = np.rint(np.clip(self.maps[index], 0, 1) * 255).astype(np.uint8)
        colours = apply_viridis(levels).astype(np.float32)  # [H, W, 3]
        blended = photo * (1 - opacity) + colours * opacity
        return _enlarge(np.rint(blended).astype(np.uint8))

    def _repr_html_(self) -> str:
        figures = []
        for index, label in enumerate(self.classes):
            caption = f"{self.class_names[label]} {self.probabilities[index, label]:.1%}"
            figures.append(_figure(self.overlay(index), caption))
        return f"<div>{escape_html(self.method)} of {escape_html(self.layer)}</div>{''.join(figures)}"


@dataclass(frozen=True, repr=False)
class Activations:
    """The outputs of every layer for one image. Renders as one picture per layer in a notebook.

    Attributes:
        image: uint8 `[H, W, C]`, the image.
        outputs: float32 outputs by layer name, in the order in which the layers run: `[h, w, channels]` or
            `[units]`.
    """

    image: np.ndarray
    outputs: dict[str, np.ndarray]

    def sparsity(self) -> dict[str, float]:
        """Returns the fraction of zeros of every layer, by name."""
        return {name: float((values == 0).mean()) for name, values in self.outputs.items()}

    def picture(self, layer: str) -> Image.Image:
        """Draws the first channels of a feature map side by side, each on its own scale.

        Args:
            layer: Name of the layer.

        Raises:
            KeyError: The model has no such layer.
        """
        values = self.outputs[layer]
        if values.ndim == 1:
            cells = np.full(-(-len(values) // CELLS) * CELLS, values.min())
            cells[: len(values)] = values
            rows = _draw_channel(cells.reshape(-1, CELLS))  # [rows, CELLS, 3]
            return _resize(rows, rows.shape[0] * CELL, CELLS * CELL)
        count = min(values.shape[-1], MAX_CHANNELS)
        tiles = [_draw_channel(values[..., channel]) for channel in range(count)]
        return _tile(tiles)

    def __repr__(self) -> str:
        return f"Activations(layers={list(self.outputs)})"

    def _repr_html_(self) -> str:
        figures = [_figure(_enlarge(_to_rgb(self.image)), "input")]
        for name, values in self.outputs.items():
            caption = f"{name}: {' x '.join(map(str, values.shape))}"
            if values.size == 1:
                figures.append(f"<div>{escape_html(caption)}, value {values.item():.4g}</div>")
                continue
            sparsity = float((values == 0).mean())
            figures.append(f"<div>{_figure(self.picture(name), f'{caption}, sparsity {sparsity:.0%}')}</div>")
        return "".join(figures)


@translate_failures()
def heatmaps(
    model: str | os.PathLike[str] | Uri | keras.Model,
    images: np.ndarray,
    *,
    classes: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    layer: str | None = None,
    method: str = "gradcam",
    scale: float | None = None,
) -> Heatmaps:
    """Computes class activation heatmaps.

    Grad-CAM (Selvaraju et al., 2017), Grad-CAM++ (Chattopadhay et al., 2018) or LayerCAM (Jiang et al.,
    2021), differentiated from the logits.

    Args:
        model: A run or run directory, a model file, or a Keras model.
        images: Images at the size the model takes, `[N, H, W, C]` with pixel values 0 to 255.
        classes: Class to explain for each image; None for the predicted ones.
        class_names: Names of the classes; None for those of the run, else `class_0`, `class_1` and so on.
        layer: Name of a layer with feature maps; None for the last one.
        method: `gradcam`, `gradcam++` or `layercam`.
        scale: Factor on pixels of 0 to 255 before they enter the model; None infers it.

    Raises:
        ConfigError: The model is not a classifier with feature maps, or the images or the method do not fit
            it.
    """
    from pipelines.errors import ConfigError, suggest
    from service.report.analysis.gradcam import METHODS, CamExtractor
    from service.report.rasters import resize_bilinear

    if method not in METHODS:
        raise ConfigError(f"one of {', '.join(METHODS)}", f"method={method}", suggest(method, METHODS))
    images = np.asarray(images)
    network, names = _open_network(model, images, class_names, scale)
    if layer is None:
        if network.last_feature_map is None:
            raise ConfigError("a model with feature maps", f"model={model}", "use a convolutional network")
        layer = network.last_feature_map.name
    probabilities = _predict(network, images)
    labels = probabilities.argmax(axis=1) if classes is None else np.asarray(classes, np.int64)
    if labels.shape != (len(images),) or not set(labels.tolist()) <= set(range(len(names))):
        raise ConfigError(
            f"one class from 0 to {len(names) - 1} per image, of {len(images)}",
            f"classes={labels.tolist()}",
            "pass one index per image, or leave classes out",
        )
    result = CamExtractor(network, [layer], [method])(images, labels[:, None])
    maps = []
    for values in result.maps[layer, method][:, 0]:  # [h, w]
        peak = float(values.max())
        fractions = values / peak if peak > 0 else values
        maps.append(resize_bilinear(fractions, *images.shape[1:3]))
    return Heatmaps(images, np.stack(maps), labels, probabilities, names, layer, method)


@translate_failures()
def activations(
    model: str | os.PathLike[str] | Uri | keras.Model, image: np.ndarray, *, scale: float | None = None
) -> Activations:
    """Computes the outputs of every layer for one image.

    Args:
        model: A run or run directory, a model file, or a Keras model.
        image: Image at the size the model takes, `[H, W, C]` with pixel values 0 to 255.
        scale: Factor on pixels of 0 to 255 before they enter the model; None infers it.

    Raises:
        ConfigError: The model is not an image classifier, or the image does not fit it.
    """
    import tensorflow as tf

    image = np.asarray(image)
    network, _ = _open_network(model, image[None], None, scale)
    graph = network.compile_graph(lambda x: dict(network.run(x).outputs))
    outputs: dict[str, Any] = graph(image[None])
    values = {
        layer.name: tf.cast(layer.arrange(outputs[layer.name]), tf.float32).numpy()[0]
        for layer in network.layers
    }
    return Activations(image, values)


def _open_network(
    model: Any, images: np.ndarray, class_names: Sequence[str] | None, scale: float | None
) -> tuple[Network, tuple[str, ...]]:
    """Opens a model for analysis, checks that the images fit it, and returns it with its class names."""
    import keras

    from pipelines.errors import ConfigError
    from service.inference.classifier import class_count, input_spec
    from service.inference.inspection import interpret_model
    from service.inference.jobs import fetch_model, open_model
    from service.inference.options import PredictOptions
    from service.report.analysis.network import Network

    saved_names: Sequence[str] | None = None
    known: Interpretation | None = None
    if not isinstance(model, keras.Model):
        saved, model = open_model(fetch_model(resolve_location(model)))
        saved_names = saved.classes
        known = saved.interpretation
    spec = input_spec(model)
    shape = (*spec.image_size, spec.channels)
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise ConfigError(
            f"one or more images of shape {shape}, as the model takes",
            f"images of shape {images.shape[1:]}" if len(images) else "no images",
            "read them at that size, for example with ShardSet.images(rows, size=...)",
        )
    count = class_count(model)
    names = tuple(class_names or saved_names or (f"class_{label}" for label in range(count)))
    if len(names) != count:
        raise ConfigError(f"{count} class names", f"class_names={len(names)}", "name them all")
    interpretation = interpret_model(model, PredictOptions(scale), known, pixels=np.asarray(images, np.uint8))
    pixels = interpretation.pixels
    network = Network(model, pixels.scale, offset=pixels.offset, head=interpretation.head)
    return network, names


def _predict(network: Network, images: np.ndarray) -> np.ndarray:
    """Predicts the probabilities of all classes, float32 `[N, K]`."""
    import tensorflow as tf

    graph = network.compile_graph(lambda x: tf.nn.softmax(network.run(x).logits))
    return np.asarray(graph(images))


def _draw_channel(values: np.ndarray) -> np.ndarray:
    """Draws `[h, w]` in viridis on its own scale, uint8 `[h, w, 3]`; a constant channel is dark."""
    from service.report.drawing.colours import apply_viridis

    low = float(values.min())
    spread = float(values.max()) - low
    fractions = (values - low) / spread if spread > 0 else np.zeros_like(values)
    return apply_viridis(np.rint(fractions * 255).astype(np.uint8))


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts an image `[H, W, 1 or 3]` to uint8 `[H, W, 3]`."""
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _tile(tiles: Sequence[np.ndarray]) -> Image.Image:
    """Puts channels, uint8 `[h, w, 3]` each, into rows of `COLUMNS` with gaps between them."""
    longer = max(tiles[0].shape[:2])
    height = round(tiles[0].shape[0] * TILE_SIDE / longer)
    width = round(tiles[0].shape[1] * TILE_SIDE / longer)
    columns = min(len(tiles), COLUMNS)
    rows = -(-len(tiles) // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, (GAP_COLOUR,) * 3)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(_resize(tile, height, width), (column * (width + GAP), row * (height + GAP)))
    return sheet


def _resize(pixels: np.ndarray, height: int, width: int) -> Image.Image:
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def _enlarge(pixels: np.ndarray) -> Image.Image:
    """Enlarges a picture by a whole factor until it is at least `MIN_SIDE` pixels high or wide."""
    factor = max(1, -(-MIN_SIDE // max(pixels.shape[:2])))
    return _resize(pixels, pixels.shape[0] * factor, pixels.shape[1] * factor)


def _figure(picture: Image.Image, caption: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    source = base64.b64encode(buffer.getvalue()).decode()
    text = escape_html(caption)
    return (
        '<figure style="display:inline-block;margin:4px">'
        f'<img src="data:image/png;base64,{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'
    )
