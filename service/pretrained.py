"""Pretrained weights: names, files, and checks that need neither a model nor TensorFlow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.remote.files import is_file
from pipelines.remote.uri import parse_location

NONE = "none"
IMAGENET = "imagenet"
SAVED = "saved"
KERAS_SUFFIX = ".keras"
SUFFIXES = (KERAS_SUFFIX, ".h5")  # `.weights.h5` ends in the latter


@dataclass(frozen=True)
class Base:
    """A network with ImageNet weights published by Keras.

    Attributes:
        name: Function in `keras.applications` that builds it.
        smallest: Side in pixels of the smallest images it takes.
        file: Weights without the classifier, as Keras names the file in its cache.
    """

    name: str
    smallest: int
    file: str


_MOBILE = "weights_mobilenet_v3_{}_224_1.0_float_no_top_v2.h5"
BASES = {
    "vgg16": Base("VGG16", 32, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "xception": Base("Xception", 71, "xception_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "resnet50v2": Base("ResNet50V2", 32, "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "efficientnetv2b0": Base("EfficientNetV2B0", 32, "efficientnetv2-b0_notop.h5"),
    "convnexttiny": Base("ConvNeXtTiny", 32, "convnext_tiny_notop.h5"),
    "mobilenetv3small": Base("MobileNetV3Small", 32, _MOBILE.format("small")),
    "mobilenetv3large": Base("MobileNetV3Large", 32, _MOBILE.format("large")),
}


def is_weights_file(weights: str) -> bool:
    """Tells whether `weights` names a file, not a kind of weights."""
    return weights not in (NONE, IMAGENET, SAVED)


def check_weights(model: str, weights: str) -> None:
    """Checks that weights exist and have a suffix that the model can load.

    Args:
        model: Name of the model in the configuration.
        weights: `none`, `imagenet`, `saved`, or path or URI of a file.

    Raises:
        ConfigError: The file does not exist, or has another suffix.
    """
    if not is_weights_file(weights):
        return
    path = parse_location(weights)
    if not is_file(path):
        raise ConfigError(
            "imagenet, none or a file with weights", f"weights={weights} (no such file)", "correct the path"
        )
    allowed = SUFFIXES if model in BASES else (KERAS_SUFFIX,)
    if path.suffix not in allowed:
        raise ConfigError(
            f"a file of weights for {model}, {' or '.join(allowed)}",
            f"weights={weights}",
            "name a model.keras",
        )


def check_images(model: str, shape: tuple[int, int, int], key: str = "data.image_size") -> None:
    """Checks that a base takes images of some shape.

    Args:
        model: Name of the model in the configuration.
        shape: Height, width and channels.
        key: Setting that height and width come from, for the message.

    Raises:
        ConfigError: The images are too small, or have one channel.
    """
    base = BASES.get(model)
    if base is None:
        return
    if min(shape[:2]) < base.smallest:
        size = "x".join(map(str, shape[:2]))
        raise ConfigError(
            f"images of {base.smallest}x{base.smallest} or larger for {model}",
            f"{key}={size}",
            f"set {key}=[{base.smallest},{base.smallest}] or more",
        )
    if shape[2] != 3:
        raise ConfigError(f"images in colour for {model}", f"data.channels={shape[2]}", "set data.channels=3")


def cache_path(model: str) -> Path:
    """Returns the path at which Keras caches the published weights of a base; the file may be missing."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    return home / "models" / BASES[model].file
