"""ResNet-50 for ImageNet, as it is trained from scratch: version 1.5, without biases in the convolutions."""

from __future__ import annotations

import keras
from keras import layers

from service.models.base import Task
from service.models.layers import add_head, standardize

# Filters of the 3x3 convolutions, and number of blocks, of each stage.
STAGES_50 = ((64, 3), (128, 4), (256, 6), (512, 3))
EXPANSION = 4  # channels of a block's output for each filter
MOMENTUM = 0.9
EPSILON = 1e-5
HEAD_DEVIATION = 0.01  # of the initial weights of the classifier (Goyal et al., section 5.1)


def resnet50(task: Task, zero_gamma: bool = True, stochastic_depth: float = 0.0) -> keras.Model:
    """ResNet-50: 25,557,032 trainable parameters for 1,000 classes, as published with torchvision.

    Bottleneck blocks of He et al. ("Deep residual learning for image recognition", 2015) with the stride in
    the 3x3 convolution, which is known as version 1.5. Images are padded alike on both sides, as in PyTorch,
    so that weights trained there compute the same here.

    Args:
        task: Images and classes; the network halves the sides of an image five times.
        zero_gamma: Whether the last gamma of every block starts at 0, so that the block starts as its
            shortcut (Goyal et al., "Accurate, large minibatch SGD", 2017).
        stochastic_depth: Probability that the last block is skipped for an image in training; it rises
            linearly from 0 in the first block (Huang et al., "Deep networks with stochastic depth", 2016).
    """
    image = keras.Input(task.shape, name="image")
    x = _add_convolution(standardize(image, task), 64, 7, "stem", strides=2)
    x = layers.ReLU(name="stem_relu")(x)
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)  # after the ReLU, a zero is never the largest value
    x = layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    block = 0
    blocks = sum(count for _, count in STAGES_50)
    for stage, (filters, count) in enumerate(STAGES_50):
        for index in range(count):
            x = _add_block(
                x,
                filters,
                f"stage{stage + 1}_block{index + 1}",
                strides=2 if stage > 0 and index == 0 else 1,
                gamma="zeros" if zero_gamma else "ones",
                skipped=stochastic_depth * block / (blocks - 1),
            )
            block += 1
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    initializer = keras.initializers.RandomNormal(stddev=HEAD_DEVIATION)
    return keras.Model(image, add_head(x, task.classes, initializer), name="resnet50")


def _add_block(
    x: keras.KerasTensor, filters: int, name: str, strides: int, gamma: str, skipped: float
) -> keras.KerasTensor:
    """Adds a bottleneck of three convolutions in parallel with a shortcut.

    Args:
        x: `[B, H, W, C]`.
        filters: Filters of the first two convolutions.
        name: Prefix of the layers' names.
        strides: Stride of the second convolution and of the shortcut.
        gamma: Initial value of the last gamma, `zeros` or `ones`.
        skipped: Probability that the convolutions are skipped for an image in training.
    """
    y = layers.ReLU(name=f"{name}_relu1")(_add_convolution(x, filters, 1, f"{name}_conv1"))
    y = layers.ReLU(name=f"{name}_relu2")(_add_convolution(y, filters, 3, f"{name}_conv2", strides))
    y = _add_convolution(y, EXPANSION * filters, 1, f"{name}_conv3", gamma=gamma)
    if skipped:
        # One number per image: all of its values are dropped, or divided by 1 - skipped.
        y = layers.Dropout(skipped, noise_shape=(None, 1, 1, 1), name=f"{name}_depth")(y)
    if strides > 1 or x.shape[-1] != EXPANSION * filters:
        x = _add_convolution(x, EXPANSION * filters, 1, f"{name}_shortcut", strides)
    return layers.ReLU(name=f"{name}_relu3")(layers.Add(name=f"{name}_sum")([x, y]))


def _add_convolution(
    x: keras.KerasTensor, filters: int, size: int, name: str, strides: int = 1, gamma: str = "ones"
) -> keras.KerasTensor:
    """Adds a convolution without bias, padded by `size // 2` on each side, and batch normalization."""
    if size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    convolution = layers.Conv2D(
        filters,
        size,
        strides,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
    )
    normalization = layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=EPSILON, gamma_initializer=gamma, name=f"{name}_norm"
    )
    return normalization(convolution(x))
