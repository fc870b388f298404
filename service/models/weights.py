"""Loads initial weights into a model: those that Keras publishes, or those of a file."""

from __future__ import annotations

from pathlib import Path

import keras

from pipelines.errors import ConfigError
from pipelines.remote.files import fetch_file
from pipelines.remote.uri import parse_location
from pipelines.storage import lock_file
from service.inference.classifier import load_model
from service.models.bases import FEATURES, build_base
from service.pretrained import BASES, IMAGENET, KERAS_SUFFIX, SAVED, cache_path, check_weights


def fetch(name: str) -> Path:
    """Returns the file with the published weights of a base.

    Keras downloads it if it is missing, and checks its digest.

    Raises:
        ConfigError: The download failed.
    """
    path = cache_path(name)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_suffix(".lock")):  # the other workers of this machine wait
        if not path.is_file():
            _build_published(name)
    return path


def load_weights(model: keras.Model, name: str, weights: str, custom_objects: tuple[str, ...] = ()) -> None:
    """Loads weights into all layers before the head.

    The head is everything after the base, or the last layer with weights. Layers are matched by their order,
    not by their names.

    Args:
        model: Model that `build_model` built.
        name: Name of the model in the configuration.
        weights: `imagenet`; `saved`, for a model from a `.keras` file: all weights in it, head included; or
            another file: a `.keras` model that begins with the same layers, or for a base also an `.h5` or
            `.weights.h5` file of the base alone.
        custom_objects: Modules with the custom layers of a `.keras` file.

    Raises:
        ConfigError: The weights cannot be loaded, or are of another architecture.
    """
    check_weights(name, weights)
    if weights == SAVED:
        donor = load_model(name, custom_objects)
        _copy_weights(_list_weighted(model.layers), donor, name, weights)
        return
    if name in BASES:
        names = [layer.name for layer in model.layers]
        targets = _list_weighted(model.layers[: names.index(FEATURES)])
    else:
        targets = _list_weighted(model.layers)[:-1]
    _copy_weights(targets, _load_donor(name, weights, custom_objects), name, weights)


def _copy_weights(targets: list[keras.Layer], donor: keras.Model, name: str, weights: str) -> None:
    """Copies weights layer by layer; changes nothing if one of them does not fit."""
    sources = _list_weighted(donor.layers)
    for index, layer in enumerate(targets):
        source = sources[index] if index < len(sources) else None
        if source is None or _describe_shape(source) != _describe_shape(layer):
            actual = _describe_shape(source) if source else "missing"
            raise ConfigError(
                f"weights of {name}, with {_describe_shape(layer)} as {layer.name}",
                f"weights={weights} (layer {index + 1} with weights is {actual})",
                "name a file made from this model",
            )
    for layer, source in zip(targets, sources, strict=False):
        layer.set_weights(source.get_weights())


def _load_donor(name: str, weights: str, custom_objects: tuple[str, ...]) -> keras.Model:
    """Loads a model that has the weights."""
    if weights == IMAGENET:
        fetch(name)
        return _build_published(name)
    path = fetch_file(parse_location(weights))
    if path.suffix == KERAS_SUFFIX:
        return load_model(path, custom_objects)
    try:
        return build_base(name, weights=str(path))
    # Keras raises these for other layers, other shapes, and files that are not HDF5.
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise ConfigError(
            f"weights of {name} without its classifier", f"weights={weights} ({reason})", "name another file"
        ) from None


def _build_published(name: str) -> keras.Model:
    try:
        return build_base(name, weights=IMAGENET)
    except Exception as error:  # noqa: BLE001 (Keras raises no narrower one if a download fails)
        reason = " ".join(str(error).split())[:200]
        fix = (
            "connect to the network once, put the file there, or set weights to a file or to none: "
            f"{cache_path(name)}"
        )
        raise ConfigError(
            f"the weights of {name} that Keras publishes", f"weights={IMAGENET} ({reason})", fix
        ) from None


def _list_weighted(layers: list[keras.Layer]) -> list[keras.Layer]:
    """Lists the layers with weights, those of nested models in place of the model."""
    weighted = []
    for layer in layers:
        if isinstance(layer, keras.Model):
            weighted.extend(_list_weighted(layer.layers))
        elif layer.weights:
            weighted.append(layer)
    return weighted


def _describe_shape(layer: keras.Layer) -> str:
    """Returns class and weight shapes of a layer as text; weights fit if this is equal."""
    shapes = ["x".join(map(str, weight.shape)) or "1" for weight in layer.weights]
    return " ".join([type(layer).__name__, *shapes])
