"""Candidates of the input benchmark: the same augmentation as commonly implemented with other libraries."""

from __future__ import annotations

import math
from typing import Any

from worker import Rounds

ROTATION = 40.0  # degrees
SHIFT = 0.2  # of the size
SHEAR = 0.2  # degrees
ZOOM = 0.2
# The same as an `AugmentSpec`; half of the images are flipped.
AUGMENTATION = {"rotation": ROTATION, "shift": SHIFT, "shear": SHEAR, "zoom": ZOOM, "flip": True}


def generator(folder: str, batch: int, size: int) -> Rounds:
    """Keras' `ImageDataGenerator.flow_from_directory`."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    image_generator = ImageDataGenerator(
        rotation_range=ROTATION,
        width_shift_range=SHIFT,
        height_shift_range=SHIFT,
        shear_range=SHEAR,
        zoom_range=ZOOM,
        horizontal_flip=True,
        fill_mode="nearest",
    )
    flow = image_generator.flow_from_directory(
        folder, target_size=(size, size), batch_size=batch, shuffle=True, seed=0
    )
    yield None
    while True:
        for step in range(len(flow)):
            flow[step]
        flow.on_epoch_end()
        yield None


def keras_layers(folder: str, batch: int, size: int) -> Rounds:
    """`keras.utils.image_dataset_from_directory` with Keras' random layers in a parallel map."""
    import keras
    import tensorflow as tf

    shear = math.tan(math.radians(SHEAR))
    augment = keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomRotation(ROTATION / 360, fill_mode="nearest"),
            keras.layers.RandomTranslation(SHIFT, SHIFT, fill_mode="nearest"),
            keras.layers.RandomShear(x_factor=shear, fill_mode="nearest"),
            keras.layers.RandomZoom(ZOOM, ZOOM, fill_mode="nearest"),
        ]
    )
    dataset = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=batch, shuffle=True, seed=0
    )
    dataset = dataset.map(
        lambda images, labels: (augment(images, training=True), labels), num_parallel_calls=tf.data.AUTOTUNE
    )
    yield from _iterate_epochs(dataset.prefetch(tf.data.AUTOTUNE))


def projective_transform(folder: str, batch: int, size: int) -> Rounds:
    """A careful tf.data pipeline: parallel decoding, one `ImageProjectiveTransformV3` per batch."""
    import tensorflow as tf

    def load(path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, (size, size)), tf.strings.split(path, "/")[-2]

    def augment(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _warp(images, _draw_transforms(tf.shape(images)[0], size), size), labels

    dataset = tf.data.Dataset.list_files(f"{folder}/*/*", shuffle=True, seed=0)
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch)
    dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    yield from _iterate_epochs(dataset.prefetch(tf.data.AUTOTUNE))


def _iterate_epochs(dataset: Any) -> Rounds:
    yield None
    while True:
        for _ in dataset:
            pass
        yield None


def _warp(images: Any, transforms: Any, size: int) -> Any:
    import tensorflow as tf

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=(size, size),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _draw_transforms(count: Any, size: int) -> Any:
    """Draws random matrices from output to input pixels, `[count, 8]`."""
    import tensorflow as tf

    def draw(bound: float) -> tf.Tensor:
        return tf.random.uniform([count], -bound, bound)

    angle = draw(math.radians(ROTATION))
    shear = draw(math.radians(SHEAR))
    mirror = tf.where(tf.random.uniform([count]) < 0.5, -1.0, 1.0)
    scale_x = (1 + draw(ZOOM)) * mirror
    scale_y = 1 + draw(ZOOM)
    # Rows of the matrix: (a, b, x) and (c, d, y).
    a = tf.cos(angle) * scale_x
    b = -tf.sin(angle + shear) * scale_y
    c = tf.sin(angle) * scale_x
    d = tf.cos(angle + shear) * scale_y
    centre = (size - 1) / 2
    x = centre - (a + b) * centre + draw(SHIFT * size)
    y = centre - (c + d) * centre + draw(SHIFT * size)
    zero = tf.zeros_like(a)
    return tf.stack([a, b, x, c, d, y, zero, zero], axis=1)


def torch_loader(folder: str, batch: int, size: int, workers: int) -> Rounds:
    """A PyTorch `DataLoader` over torchvision's `ImageFolder` and transforms."""
    import torch
    from torchvision import datasets, transforms

    affine = transforms.RandomAffine(
        ROTATION,
        (SHIFT, SHIFT),
        (1 - ZOOM, 1 + ZOOM),
        SHEAR,
        interpolation=transforms.InterpolationMode.BILINEAR,
    )
    augment = transforms.Compose(
        [
            transforms.Resize((size, size)),
            affine,
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    images = datasets.ImageFolder(folder, augment)
    loader = torch.utils.data.DataLoader(
        images, batch, shuffle=True, num_workers=workers, persistent_workers=True
    )
    yield from _iterate_epochs(loader)
