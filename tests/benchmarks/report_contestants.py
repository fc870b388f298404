"""Contestants of the report benchmark. Every round yields the CPU seconds it took in this process, over all its threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from worker import Rounds

LAYERS = (
    "block1_conv2",
    "block2_conv2",
    "block3_conv3",
    "block4_conv3",
    "block5_conv3",
)  # of VGG16, for patterns
SIZES = {"small": 150, "vgg16": 224}


@lru_cache
def network(name: str) -> Any:
    """A functional classifier with random weights that ends in logits."""
    import keras

    keras.utils.set_random_seed(0)
    if name == "vgg16":
        return keras.applications.VGG16(weights=None, classifier_activation=None)
    if name == "vgg16 at 150":
        base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(150, 150, 3))
        return keras.Model(
            base.input, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(base.output))
        )
    from service.models import Task, build_model

    model = build_model("cats_dogs_small", Task((150, 150, 3), 10, (127.0,) * 3, (64.0,) * 3))
    return keras.Model(model.input, model.get_layer("logits").output)


@lru_cache
def pictures(folder: str, size: int) -> Any:
    """The photos at a size, uint8 `[N, size, size, 3]`."""
    import numpy as np
    from PIL import Image

    files = sorted(Path(folder).glob("*/*"))
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file in files])


def last_convolution(model: Any) -> str:
    """The name of the last convolution."""
    import keras

    return str([layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)][-1])


def rounds(work: Callable[[], Any]) -> Rounds:
    """Rounds of the same work, in CPU seconds."""
    yield None
    while True:
        began = time.process_time()
        work()
        yield time.process_time() - began


def answers(model: Any, images: Any) -> Any:
    """The most probable class of each image, int `[N]`."""
    return model.predict(images, batch_size=16, verbose=0).argmax(axis=1)


def maps(model: str, folder: str, fast: bool = False) -> Rounds:
    """The report's heatmaps, one batch."""
    from service.report.analysis.gradcam import Heatmaps
    from service.report.analysis.network import Network

    images, keras_model = pictures(folder, SIZES[model]), network(model)
    classes = answers(keras_model, images)[:, None]
    heatmaps = Heatmaps(Network(keras_model, fast=fast), [last_convolution(keras_model)])
    yield from rounds(lambda: heatmaps(images, classes))


def tutorial_maps(model: str, folder: str) -> Rounds:
    """Image by image: a model with two outputs, a tape around all of it, weights by the mean gradient."""
    import keras
    import tensorflow as tf

    images, keras_model = pictures(folder, SIZES[model]), network(model)
    both = keras.Model(
        keras_model.inputs, [keras_model.get_layer(last_convolution(keras_model)).output, keras_model.output]
    )

    def work() -> None:
        for image in images:
            with tf.GradientTape() as tape:
                values, outputs = both(image[None].astype("float32"))
                best = outputs[:, tf.argmax(outputs[0])]
            weights = tf.reduce_mean(tape.gradient(best, values), axis=(0, 1, 2))
            heat = tf.squeeze(values[0] @ weights[..., None])
            (tf.maximum(heat, 0) / tf.reduce_max(heat)).numpy()

    yield from rounds(work)


def tf_keras_vis_maps(model: str, folder: str) -> Rounds:
    """tf-keras-vis, one batch."""
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    images, keras_model = pictures(folder, SIZES[model]).astype("float32"), network(model)
    classes, cam = [int(label) for label in answers(keras_model, images)], Gradcam(keras_model, clone=False)
    layer = last_convolution(keras_model)
    yield from rounds(
        lambda: cam(CategoricalScore(classes), images, penultimate_layer=layer, expand_cam=False)
    )


def xplique_maps(model: str, folder: str) -> Rounds:
    """Xplique, one batch."""
    import keras
    from xplique.attributions import GradCAM

    images, keras_model = pictures(folder, SIZES[model]).astype("float32"), network(model)
    asked = keras.utils.to_categorical(answers(keras_model, images), keras_model.output_shape[1])
    cam = GradCAM(keras_model, batch_size=len(images), conv_layer=last_convolution(keras_model))
    yield from rounds(lambda: cam.explain(images, asked))


def climbed(filters: int, fast: bool = False) -> Rounds:
    """The report's filter patterns."""
    from service.report.analysis.network import Network
    from service.report.analysis.patterns import patterns

    looked = Network(network("vgg16 at 150"), fast=fast)
    yield from rounds(lambda: [patterns(looked, layer, range(filters // len(LAYERS))) for layer in LAYERS])


def tutorial_climbed(filters: int) -> Rounds:
    """Filter by filter: a model up to the layer, one image, a tape around it, 20 steps."""
    import keras
    import tensorflow as tf

    model = network("vgg16 at 150")

    def work() -> None:
        for layer in LAYERS:
            for number in range(filters // len(LAYERS)):
                inner = keras.Model(model.inputs, model.get_layer(layer).output)
                image = tf.random.uniform((1, 150, 150, 3), 118, 138)
                for _ in range(20):
                    with tf.GradientTape() as tape:
                        tape.watch(image)
                        loss = tf.reduce_mean(inner(image)[..., number])
                    gradient = tape.gradient(loss, image)
                    image += gradient / (tf.sqrt(tf.reduce_mean(tf.square(gradient))) + 1e-12)

    yield from rounds(work)


def convolved(filters: int) -> Rounds:
    """What float32 patterns cannot do without: 20 times the convolutions below each layer, to and fro, for all its filters at once."""
    import keras
    import tensorflow as tf

    @tf.function
    def there_and_back(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(x), filter=kernel, out_backprop=y, strides=[1] * 4, padding="SAME"
        )

    found = [layer for layer in network("vgg16 at 150").layers if isinstance(layer, keras.layers.Conv2D)]
    work = [
        (tf.random.uniform((filters // len(LAYERS), *layer.input.shape[1:])), layer.kernel.value)
        for layer in found
    ]
    depths = [[layer.name for layer in found].index(name) for name in LAYERS]
    yield from rounds(
        lambda: [there_and_back(*work[n]) for depth in depths for n in range(depth) for _ in range(20)]
    )


def grids(folder: str, out: str, kind: str) -> Rounds:
    """The report's sheets of eight layers, drawn and encoded."""
    from service.report.analysis.network import Network

    images, looked = pictures(folder, SIZES["small"]), Network(network("small"))
    graph = looked.compiled(lambda images: _shaded(looked, looked.run(images)))
    yield from rounds(lambda: _album(Path(out) / "ours").add_all(_sheets(looked, graph(images), kind)))


def reports(folder: str, out: str) -> Rounds:
    """The report's heatmaps and sheets of every image, traced anew."""
    from service.report.analysis.gradcam import Heatmaps
    from service.report.analysis.network import Network
    from service.report.drawing import heatmap

    images, model = pictures(folder, SIZES["small"]), network("small")
    classes, layer = answers(model, images)[:, None], last_convolution(model)

    def work() -> None:
        looked = Network(model)
        seen = Heatmaps(looked, [layer], also=lambda trace: _shaded(looked, trace))(images, classes)
        maps_ = [
            heatmap.drawing(values[0], images.shape[1:3], "map", "", {})
            for values in seen.maps[layer, "gradcam"]
        ]
        _album(Path(out) / "report").add_all(maps_ + _sheets(looked, seen.also, "jpeg"))

    yield from rounds(work)


def _first_taps(looked: Any) -> list[Any]:
    """The first eight layers with maps."""
    return [tap for tap in looked.taps if tap.is_map and tap.kind in ("Conv2D", "MaxPooling2D")][:8]


def _shaded(looked: Any, trace: Any) -> list[tuple[Any, Any]]:
    """Shades of every channel of these layers, and which are blank; inside the graph."""
    from service.report.analysis.activations import layer_values

    made = layer_values(looked, trace)
    return [(made[tap.name].tiles, made[tap.name].blank) for tap in _first_taps(looked)]


def _sheets(looked: Any, found: list[tuple[Any, Any]], kind: str) -> list[Any]:
    """The sheets of every image and layer, to be encoded."""
    import numpy as np

    from service.report.analysis.activations import scaled
    from service.report.drawing.album import Drawing
    from service.report.drawing.colours import SEQUENTIAL
    from service.report.drawing.sheets import sheet

    pairs = zip(_first_taps(looked), found, strict=True)
    layers = [(scaled(tap, kind), np.asarray(tiles), np.asarray(blank)) for tap, (tiles, blank) in pairs]
    return [
        Drawing(sheet(places, is_blank, factor), "sheet", "", {}, kind, SEQUENTIAL)
        for factor, tiles, blank in layers
        for places, is_blank in zip(tiles, blank, strict=True)
    ]


def _album(out: Path) -> Any:
    import shutil

    from service.report.drawing.album import Album

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return Album(out)


def tutorial_grids(folder: str, out: str) -> Rounds:
    """Eight layers, channel by channel into a grid, drawn and saved by matplotlib."""
    model = network("small")
    images, inner = pictures(folder, SIZES["small"]), _first_eight(model)
    yield from rounds(
        lambda: [
            _matplotlib_grid(values[0], Path(out))
            for image in images
            for values in inner.predict(image[None], verbose=0)
        ]
    )


def tutorial_reports(folder: str, out: str) -> Rounds:
    """The grids, and the tutorials' heatmap laid over every image, drawn and saved by matplotlib."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    images, heatmaps = pictures(folder, SIZES["small"]), tutorial_maps("small", folder)
    next(heatmaps)
    drawn = tutorial_grids(folder, out)
    next(drawn)

    def work() -> None:
        next(heatmaps)
        for image in images:
            plt.imshow(image)
            plt.imshow(
                image.mean(axis=2), cmap="viridis", alpha=0.5
            )  # a map of the image's size stands for the heatmap
            plt.axis("off")
            plt.savefig(Path(out) / "heatmap.png")
            plt.close()
        next(drawn)

    yield from rounds(work)


def _first_eight(model: Any) -> Any:
    import keras

    kinds = (keras.layers.Conv2D, keras.layers.MaxPooling2D)
    return keras.Model(model.inputs, [layer.output for layer in model.layers if isinstance(layer, kinds)][:8])


def _matplotlib_grid(values: Any, out: Path) -> None:
    """The published grid: 16 channels a row, each to mean 128 and deviation 64, in one picture."""
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
            grid[row * height : (row + 1) * height, column * width : (column + 1) * width] = channel
    plt.figure(figsize=(grid.shape[1] / width, grid.shape[0] / width))
    plt.grid(False)
    plt.imshow(grid, aspect="auto", cmap="viridis")
    plt.savefig(out / "grid.png")
    plt.close()
