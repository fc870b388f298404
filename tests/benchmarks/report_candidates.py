"""Candidates of the report benchmark; every round yields the CPU seconds of this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from worker import Rounds

# Layers of VGG16 whose filter patterns are computed.
PATTERN_LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")
PATTERN_STEPS = 20
SIZES = {"small": 150, "vgg16": 224}


@lru_cache
def build_network(name: str) -> Any:
    """Builds a functional classifier with random weights that ends in logits."""
    import keras

    keras.utils.set_random_seed(0)
    if name == "vgg16":
        return keras.applications.VGG16(weights=None, classifier_activation=None)
    if name == "vgg16 at 150":
        base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(150, 150, 3))
        features = keras.layers.GlobalAveragePooling2D()(base.output)
        return keras.Model(base.input, keras.layers.Dense(10)(features))
    from service.models import Task, build_model

    model = build_model("cats_dogs_small", Task((150, 150, 3), 10, (127.0,) * 3, (64.0,) * 3))
    return keras.Model(model.input, model.get_layer("logits").output)


@lru_cache
def load_photos(folder: str, size: int) -> Any:
    """Loads the photos at a size, uint8 `[N, size, size, 3]`."""
    import numpy as np
    from PIL import Image

    files = sorted(Path(folder).glob("*/*"))
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file in files])


def find_last_convolution(model: Any) -> str:
    """Returns the name of the last convolution."""
    import keras

    names = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    return str(names[-1])


def measure_rounds(work: Callable[[], Any]) -> Rounds:
    """Repeats a piece of work, in CPU seconds."""
    yield None
    while True:
        start = time.process_time()
        work()
        yield time.process_time() - start


def predict_classes(model: Any, images: Any) -> Any:
    """Returns the most probable class of each image, int `[N]`."""
    return model.predict(images, batch_size=16, verbose=0).argmax(axis=1)


def heatmaps(model: str, folder: str, fast: bool = False) -> Rounds:
    """The report's heatmaps of one batch."""
    from service.report.analysis.gradcam import CamExtractor
    from service.report.analysis.network import Network

    images = load_photos(folder, SIZES[model])
    keras_model = build_network(model)
    classes = predict_classes(keras_model, images)[:, None]
    extractor = CamExtractor(Network(keras_model, fast=fast), [find_last_convolution(keras_model)])
    yield from measure_rounds(lambda: extractor(images, classes))


def tutorial_heatmaps(model: str, folder: str) -> Rounds:
    """Image by image: a model with two outputs, a tape around it, weights by the mean gradient."""
    import keras
    import tensorflow as tf

    images = load_photos(folder, SIZES[model])
    keras_model = build_network(model)
    layer = keras_model.get_layer(find_last_convolution(keras_model))
    two_outputs = keras.Model(keras_model.inputs, [layer.output, keras_model.output])

    def work() -> None:
        for image in images:
            with tf.GradientTape() as tape:
                values, outputs = two_outputs(image[None].astype("float32"))
                best = outputs[:, tf.argmax(outputs[0])]
            weights = tf.reduce_mean(tape.gradient(best, values), axis=(0, 1, 2))
            heatmap = tf.squeeze(values[0] @ weights[..., None])
            (tf.maximum(heatmap, 0) / tf.reduce_max(heatmap)).numpy()

    yield from measure_rounds(work)


def tf_keras_vis_heatmaps(model: str, folder: str) -> Rounds:
    """tf-keras-vis on one batch."""
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    images = load_photos(folder, SIZES[model]).astype("float32")
    keras_model = build_network(model)
    classes = [int(label) for label in predict_classes(keras_model, images)]
    gradcam = Gradcam(keras_model, clone=False)
    layer = find_last_convolution(keras_model)
    yield from measure_rounds(
        lambda: gradcam(CategoricalScore(classes), images, penultimate_layer=layer, expand_cam=False)
    )


def xplique_heatmaps(model: str, folder: str) -> Rounds:
    """Xplique on one batch."""
    import keras
    from xplique.attributions import GradCAM

    images = load_photos(folder, SIZES[model]).astype("float32")
    keras_model = build_network(model)
    classes = predict_classes(keras_model, images)
    targets = keras.utils.to_categorical(classes, keras_model.output_shape[1])
    layer = find_last_convolution(keras_model)
    gradcam = GradCAM(keras_model, batch_size=len(images), conv_layer=layer)
    yield from measure_rounds(lambda: gradcam.explain(images, targets))


def patterns(filters: int, fast: bool = False) -> Rounds:
    """The report's filter patterns."""
    from service.report.analysis.network import Network
    from service.report.analysis.patterns import compute_filter_patterns

    network = Network(build_network("vgg16 at 150"), fast=fast)
    indices = range(filters // len(PATTERN_LAYERS))
    yield from measure_rounds(
        lambda: [compute_filter_patterns(network, layer, indices) for layer in PATTERN_LAYERS]
    )


def small_patterns(filters: int) -> Rounds:
    """The report's filter patterns from noise, of the small network."""
    from service.report.analysis.network import Network
    from service.report.analysis.patterns import choose_pattern_size, compute_filter_patterns

    network = Network(build_network("small"))
    layers = [layer.name for layer in network.convolutions]
    indices = range(filters // len(layers))
    yield from measure_rounds(
        lambda: [
            compute_filter_patterns(network, layer, indices, size=choose_pattern_size(network, layer))
            for layer in layers
        ]
    )


def small_fourier_patterns(filters: int) -> Rounds:
    """The same filters in the Fourier basis, with the graph of every layer traced every round."""
    import numpy as np

    from service.report.analysis.fourier_patterns import compute_fourier_patterns
    from service.report.analysis.network import Network
    from service.report.analysis.receptive_field import compute_receptive_fields

    network = Network(build_network("small"))
    fields = compute_receptive_fields(network)
    layers = [layer.name for layer in network.convolutions]
    indices = range(filters // len(layers))
    yield from measure_rounds(
        lambda: [
            compute_fourier_patterns(network, layer, indices, np.eye(3), fields[layer]) for layer in layers
        ]
    )


class _Photos:
    """Photos in memory, as the split of a shard set."""

    split = "validation"

    def __init__(self, pixels: Any) -> None:
        import numpy as np

        self._pixels = pixels
        self.labels = np.arange(len(pixels)) % 2

    def read(self, rows: Any) -> Any:
        """Returns some of the photos."""
        return self._pixels[list(rows)]


def last_feature_maps(folder: str) -> Rounds:
    """The forward pass up to the last convolution alone."""
    from service.report.analysis.network import Network

    images = load_photos(folder, SIZES["small"])
    network = Network(build_network("small"))
    last = network.convolutions[-1].name
    graph = network.compile_graph(lambda batch: network.run(batch, stop_after=last).outputs[last])
    yield from measure_rounds(lambda: graph(images))


def top_crops(folder: str, with_ablation: bool = False) -> Rounds:
    """The search for the strongest crops of 16 filters per layer, with the graph traced every round."""
    import numpy as np
    import tensorflow as tf

    from service.report.analysis.ablation import compute_ablation, find_head
    from service.report.analysis.network import Network
    from service.report.analysis.top_crops import scan_images

    images = load_photos(folder, SIZES["small"])
    photos: Any = _Photos(images)
    network = Network(build_network("small"))
    head = find_head(network)
    if head is None:
        raise ValueError("the small network has convolutions")
    channels = {layer.name: min(16, layer.shape[2]) for layer in network.convolutions}
    channels[head.layer.name] = head.layer.shape[2]
    probabilities = tf.nn.softmax(network.run(images).logits).numpy()

    def work() -> None:
        scan = scan_images(network, photos, np.arange(len(images)), channels, head.stored)
        if with_ablation and scan.features is not None:
            compute_ablation(network, head, scan.features, photos.labels, probabilities)

    yield from measure_rounds(work)


def tutorial_patterns(filters: int) -> Rounds:
    """Filter by filter: a model up to the layer, one image, a tape around it, 20 steps."""
    import keras
    import tensorflow as tf

    model = build_network("vgg16 at 150")

    def work() -> None:
        for layer in PATTERN_LAYERS:
            for number in range(filters // len(PATTERN_LAYERS)):
                inner = keras.Model(model.inputs, model.get_layer(layer).output)
                image = tf.random.uniform((1, 150, 150, 3), 118, 138)
                for _ in range(PATTERN_STEPS):
                    with tf.GradientTape() as tape:
                        tape.watch(image)
                        loss = tf.reduce_mean(inner(image)[..., number])
                    gradient = tape.gradient(loss, image)
                    image += gradient / (tf.sqrt(tf.reduce_mean(tf.square(gradient))) + 1e-12)

    yield from measure_rounds(work)


def convolutions(filters: int) -> Rounds:
    """The least work of float32 patterns: forward and backward convolutions below each layer, 20 times."""
    import keras
    import tensorflow as tf

    @tf.function
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(x), filter=kernel, out_backprop=y, strides=[1] * 4, padding="SAME"
        )

    model = build_network("vgg16 at 150")
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    count = filters // len(PATTERN_LAYERS)
    inputs = [tf.random.uniform((count, *layer.input.shape[1:])) for layer in layers]
    names = [layer.name for layer in layers]
    depths = [names.index(name) for name in PATTERN_LAYERS]

    def work() -> None:
        for depth in depths:
            for x, layer in zip(inputs[:depth], layers[:depth], strict=True):
                for _ in range(PATTERN_STEPS):
                    convolve(x, layer.kernel.value)

    yield from measure_rounds(work)


def grids(folder: str, out: str, kind: str) -> Rounds:
    """The report's activation sheets of eight layers, drawn and encoded."""
    from service.report.analysis.network import Network

    images = load_photos(folder, SIZES["small"])
    network = Network(build_network("small"))
    graph = network.compile_graph(lambda images: _collect_tiles(network, network.run(images)))
    album_path = Path(out) / "ours"
    yield from measure_rounds(
        lambda: _create_album(album_path).add_all(_draw_sheets(network, graph(images), kind))
    )


def reports(folder: str, out: str) -> Rounds:
    """The report's heatmaps and activation sheets of every image, with graphs traced every round."""
    from service.report.analysis.gradcam import CamExtractor
    from service.report.analysis.network import Network
    from service.report.drawing import heatmap

    images = load_photos(folder, SIZES["small"])
    model = build_network("small")
    classes = predict_classes(model, images)[:, None]
    layer = find_last_convolution(model)

    def work() -> None:
        network = Network(model)
        extractor = CamExtractor(network, [layer], extra_outputs=lambda trace: _collect_tiles(network, trace))
        result = extractor(images, classes)
        drawings = [
            heatmap.build_drawing(values[0], images.shape[1:3], "map", "", {})
            for values in result.maps[layer, "gradcam"]
        ]
        drawings += _draw_sheets(network, result.extras, "jpeg")
        _create_album(Path(out) / "report").add_all(drawings)

    yield from measure_rounds(work)


def _select_layers(network: Any) -> list[Any]:
    """Returns the first eight layers that output feature maps."""
    kinds = ("Conv2D", "MaxPooling2D")
    return [layer for layer in network.layers if layer.is_feature_map and layer.kind in kinds][:8]


def _collect_tiles(network: Any, trace: Any) -> list[tuple[Any, Any]]:
    """Returns the tiles of every layer, and which channels are inactive; runs inside the graph."""
    from service.report.analysis.activations import collect_layer_outputs

    outputs = collect_layer_outputs(network, trace)
    layers = _select_layers(network)
    return [(outputs[layer.name].tiles, outputs[layer.name].is_inactive) for layer in layers]


def _draw_sheets(network: Any, outputs: list[tuple[Any, Any]], kind: str) -> list[Any]:
    """Draws the sheets of every image and layer, to be encoded by the album."""
    import numpy as np

    from service.report.drawing.album import Drawing
    from service.report.drawing.colours import SEQUENTIAL
    from service.report.drawing.sheets import choose_scaling, draw_channel_sheet

    drawings = []
    for layer, (tiles, is_inactive) in zip(_select_layers(network), outputs, strict=True):
        scaling = choose_scaling(layer.shape, kind)
        for image_tiles, image_inactive in zip(np.asarray(tiles), np.asarray(is_inactive), strict=True):
            pixels = draw_channel_sheet(image_tiles, image_inactive, scaling)
            drawings.append(Drawing(pixels, "sheet", "", {}, kind, SEQUENTIAL))
    return drawings


def _create_album(out: Path) -> Any:
    import shutil

    from service.report.drawing.album import Album

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return Album(out)


def tutorial_grids(folder: str, out: str) -> Rounds:
    """Eight layers, copied channel by channel into a grid, drawn and saved by matplotlib."""
    images = load_photos(folder, SIZES["small"])
    inner = _build_first_layers(build_network("small"))

    def work() -> None:
        for image in images:
            for values in inner.predict(image[None], verbose=0):
                _save_grid(values[0], Path(out))

    yield from measure_rounds(work)


def tutorial_reports(folder: str, out: str) -> Rounds:
    """The grids, and a heatmap over every image, drawn and saved by matplotlib."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    images = load_photos(folder, SIZES["small"])
    heatmap_rounds = tutorial_heatmaps("small", folder)
    next(heatmap_rounds)
    grid_rounds = tutorial_grids(folder, out)
    next(grid_rounds)

    def work() -> None:
        next(heatmap_rounds)
        for image in images:
            plt.imshow(image)
            # Any map of the image's size costs as much to draw as the heatmap.
            plt.imshow(image.mean(axis=2), cmap="viridis", alpha=0.5)
            plt.axis("off")
            plt.savefig(Path(out) / "heatmap.png")
            plt.close()
        next(grid_rounds)

    yield from measure_rounds(work)


def _build_first_layers(model: Any) -> Any:
    """Builds a model whose outputs are the first eight convolution and pooling layers."""
    import keras

    kinds = (keras.layers.Conv2D, keras.layers.MaxPooling2D)
    outputs = [layer.output for layer in model.layers if isinstance(layer, kinds)]
    return keras.Model(model.inputs, outputs[:8])


def _save_grid(values: Any, out: Path) -> None:
    """Saves the published grid: 16 channels per row, each scaled to mean 128 and deviation 64."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    height, width, count = values.shape
    rows = -(-count // 16)
    grid = np.zeros((rows * height, 16 * width))
    for row in range(rows):
        for column in range(min(16, count - row * 16)):
            channel = values[:, :, row * 16 + column].copy()
            if channel.sum() != 0:
                channel -= channel.mean()
                channel /= channel.std()
                channel *= 64
                channel += 128
            channel = np.clip(channel, 0, 255).astype("uint8")
            top = row * height
            left = column * width
            grid[top : top + height, left : left + width] = channel
    plt.figure(figsize=(grid.shape[1] / width, grid.shape[0] / width))
    plt.grid(False)
    plt.imshow(grid, aspect="auto", cmap="viridis")
    plt.savefig(out / "grid.png")
    plt.close()
