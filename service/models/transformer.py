"""A small vision transformer."""

from __future__ import annotations

import keras
from keras import layers

from service.models.base import Task
from service.models.layers import add_head, standardize

WIDTH = 64  # channels of a token
HEADS = 4
BLOCKS = 4
SMALLEST_PATCH = 4  # pixels
LARGEST_GRID = 14  # patches per side


def vit_tiny(task: Task) -> keras.Model:
    """A vision transformer of four blocks with 64 channels: 142,922 parameters for the digits.

    The design is that of Dosovitskiy et al. (2021), "An image is worth 16x16 words", with the mean of the
    tokens instead of a class token (Beyer et al., 2022, "Better plain ViT baselines for ImageNet-1k"). An
    image becomes at most 14x14 patches of at least 4x4 pixels; pixels beyond the last whole patch are left
    out.

    All layers are those of Keras, so that a saved model needs nothing else.
    """
    inputs = keras.Input(task.shape, name="image")
    patch = max(SMALLEST_PATCH, -(-max(task.shape[:2]) // LARGEST_GRID))
    x = standardize(inputs, task)
    x = layers.Conv2D(WIDTH, patch, strides=patch, use_bias=False, name="patches")(x)  # [B, h, w, C]
    tokens = x.shape[1] * x.shape[2]
    x = layers.Reshape((tokens, WIDTH), name="tokens")(x)  # [B, h, w, C] -> [B, T, C]
    # A projection whose bias differs from token to token: the positional embedding.
    x = layers.EinsumDense(
        "btc,cd->btd",
        output_shape=(tokens, WIDTH),
        bias_axes="td",
        bias_initializer=keras.initializers.RandomNormal(stddev=0.02),
        name="positions",
    )(x)
    for number in range(1, BLOCKS + 1):
        x = _add_block(x, f"block{number}")
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="mean")(x)  # [B, T, C] -> [B, C]
    return keras.Model(inputs, add_head(x, task.classes), name="vit_tiny")


def _add_block(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Adds self-attention and a perceptron, each with a normalization before it and a sum after it.

    Args:
        x: Tokens `[B, T, C]`.
        name: Prefix of the layers' names.
    """
    normalized = layers.LayerNormalization(name=f"{name}_attention_norm")(x)
    attended = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"{name}_attention")(
        normalized, normalized
    )
    x = layers.Add(name=f"{name}_attention_sum")([x, attended])
    normalized = layers.LayerNormalization(name=f"{name}_mlp_norm")(x)
    hidden = layers.Dense(2 * WIDTH, activation="gelu", name=f"{name}_mlp_hidden")(normalized)
    changed = layers.Dense(WIDTH, name=f"{name}_mlp_out")(hidden)
    return layers.Add(name=f"{name}_mlp_sum")([x, changed])
