"""Attention of transformers: the weights of every head, and how attention flows through all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.report.analysis.network import ATTENTION_KINDS, LayerInfo, Network

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Attention:
    """Self-attention of N images over the T tokens of L layers, with h x w patches.

    Attributes:
        layers: Names of the attention layers, in the order in which they run.
        heads: For every layer, the attention that each patch receives from the tokens that the prediction is
            made of, float32 `[N, heads, h, w]`: from the class token, or the mean over all patches.
        rollout: Attention rollout, float32 `[N, h, w]`.
        gradient_rollout: Gradient-weighted rollout for the class of every image, float32 `[N, h, w]`.
    """

    layers: tuple[str, ...]
    heads: tuple[np.ndarray, ...]
    rollout: np.ndarray
    gradient_rollout: np.ndarray


def list_attention_layers(network: Network) -> list[LayerInfo]:
    """Lists the layers of self-attention over patches: those of Keras whose output has tokens."""
    return [layer for layer in network.layers if layer.has_tokens and layer.kind in ATTENTION_KINDS]


def compute_attention(network: Network, images: np.ndarray, classes: np.ndarray) -> Attention | None:
    """Computes the attention maps of some images.

    Args:
        network: Network to explain.
        images: Images `[N, H, W, C]`, 0 to 255.
        classes: Class that the gradient-weighted rollout explains, int `[N]`.

    Returns:
        The maps; None for a network without self-attention over patches, or with layers of different tokens.
    """
    layers = list_attention_layers(network)
    if not layers or not len(images) or len({(layer.shape[:2], layer.extra_tokens) for layer in layers}) > 1:
        return None
    tokens = layers[0].shape[0] * layers[0].shape[1] + int(layers[0].extra_tokens or 0)

    def run(x: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            trace = network.run(x, with_attention=True)
            logits = tf.gather(trace.logits, labels, batch_dims=1)  # [B]
        weights = [trace.attention[layer.name] for layer in layers]
        return weights, tape.gradient(logits, weights, unconnected_gradients="zero")

    graph = network.compile_graph(run, tf.TensorSpec((None,), tf.int32))
    weights, gradients = graph(images, tf.constant(classes, tf.int32))
    weights = [tensor.numpy().astype(np.float64) for tensor in weights]  # [N, heads, T, T] each
    gradients = [tensor.numpy().astype(np.float64) for tensor in gradients]
    if any(layer_weights.shape[2:] != (tokens, tokens) for layer_weights in weights):
        return None  # attention to other tokens than those of the image
    return Attention(
        layers=tuple(layer.name for layer in layers),
        heads=tuple(
            select_patches(layer_weights, layer) for layer, layer_weights in zip(layers, weights, strict=True)
        ),
        rollout=select_patches(roll_out(weights), layers[0]),
        gradient_rollout=select_patches(roll_out_gradients(weights, gradients), layers[0]),
    )


def select_patches(flow: Floats, layer: LayerInfo) -> np.ndarray:
    """Selects what the patches contribute to the tokens that the prediction is made of.

    Args:
        flow: Contribution of every token (last axis) to every token (last but one), float `[..., T, T]`.
        layer: Attention layer, which knows the arrangement of the tokens.

    Returns:
        float32 `[..., h, w]`: of the class token, or averaged over all patches where there is none.
    """
    extra = int(layer.extra_tokens or 0)
    rows = flow[..., 0, :] if extra else flow.mean(axis=-2)  # [..., T]
    height, width, _ = layer.shape
    # [..., h * w] -> [..., h, w]
    return np.asarray(rows[..., extra:].reshape(*rows.shape[:-1], height, width), np.float32)


def roll_out(weights: Sequence[Floats]) -> Floats:
    """Computes attention rollout (Abnar and Zuidema, 2020, "Quantifying attention flow in transformers").

    The residual connection around every layer counts as half of its output.

    Args:
        weights: Attention weights of every layer, float `[N, heads, T, T]` each.

    Returns:
        float64 `[N, T, T]`; every row sums to 1.
    """
    identity = np.eye(weights[0].shape[-1])
    flow: Any = identity
    for layer_weights in weights:
        mean = layer_weights.mean(axis=1)  # [N, T, T]
        flow = (0.5 * mean + 0.5 * identity) @ flow
    return np.asarray(flow)


def roll_out_gradients(weights: Sequence[Floats], gradients: Sequence[Floats]) -> Floats:
    """Computes rollout of attention weighted by its gradient (Chefer et al., 2021).

    "Generic attention-model explainability for interpreting bi-modal and encoder-decoder transformers",
    equations 5 and 6: only weights that raise the logit count.

    Args:
        weights: Attention weights of every layer, float `[N, heads, T, T]` each.
        gradients: Gradients of a logit with respect to the weights, of the same shapes.

    Returns:
        float64 `[N, T, T]`, without the share of a token in itself that is there before the first layer.
    """
    identity = np.eye(weights[0].shape[-1])
    relevance: Any = np.broadcast_to(identity, (len(weights[0]), *identity.shape))
    for layer_weights, layer_gradients in zip(weights, gradients, strict=True):
        mean = np.maximum(layer_weights * layer_gradients, 0).mean(axis=1)  # [N, T, T]
        relevance = relevance + mean @ relevance
    return np.asarray(relevance - identity)
