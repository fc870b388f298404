"""Begins a model with weights learned elsewhere: those Keras publishes, or those of a file."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from pipelines.errors import ConfigError
from service.inference.classifier import load_model
from service.models.bases import FEATURES, application
from service.pretrained import BASES, IMAGENET, cached, check_origin


def fetch(name: str) -> Path:
    """The file of the published weights of a base; Keras downloads it where it is not there yet, and checks its digest.

    Raises:
        ConfigError: It cannot be had.
    """
    path = cached(name)
    if not path.is_file():
        with _one_at_a_time(path):
            if not path.is_file():
                _published(name)
    return path


def load_weights(model: keras.Model, name: str, weights: str) -> None:
    """Puts weights into a model: of a base into all before its head, of any other into all but its `logits`.

    Layers are paired in their order, whatever they are called.

    Args:
        model: From `build_model`.
        name: Of the model.
        weights: `imagenet`, or a file: a `.keras` model that begins with the same layers, or for a base also an `.h5` or
            `.weights.h5` file of the base alone.

    Raises:
        ConfigError: They cannot be had, or are of another architecture.
    """
    check_origin(name, weights)
    end = FEATURES if name in BASES else "logits"
    names = [layer.name for layer in model.layers]
    wanted = _weighted(model.layers[: names.index(end)])
    found = _weighted(_donor(name, weights).layers)
    for place, layer in enumerate(wanted):
        other = found[place] if place < len(found) else None
        if other is None or _shape(other) != _shape(layer):
            received = f"weights={weights} (layer {place + 1} with weights is {_shape(other) if other else 'missing'})"
            raise ConfigError(
                f"weights of {name}, with {_shape(layer)} as {layer.name}",
                received,
                "name a file made from this model",
            )
    for layer, other in zip(wanted, found, strict=False):
        layer.set_weights(other.get_weights())


def _donor(name: str, weights: str) -> keras.Model:
    """A model that has the weights."""
    if weights == IMAGENET:
        fetch(name)
        return _published(name)
    if Path(weights).suffix == ".keras":
        return load_model(weights)
    try:
        return application(name, weights=weights)
    except (
        ValueError,
        OSError,
        KeyError,
        TypeError,
    ) as error:  # Keras, for other layers, other shapes, or no HDF5 at all
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise ConfigError(
            f"weights of {name} without its classifier", f"weights={weights} ({reason})", "name another file"
        ) from None


def _published(name: str) -> keras.Model:
    try:
        return application(name, weights=IMAGENET)
    except Exception as error:  # noqa: BLE001 (Keras raises no narrower one where a download fails)
        reason = " ".join(str(error).split())[:200]
        fix = f"connect to the network once, put the file there, or set weights to a file or to none: {cached(name)}"
        raise ConfigError(
            f"the weights of {name} that Keras publishes", f"weights={IMAGENET} ({reason})", fix
        ) from None


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Keeps the other workers of this machine waiting meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _weighted(layers: list[keras.Layer]) -> list[keras.Layer]:
    """Layers with weights, those of nested models in their place."""
    flat = (
        inner
        for layer in layers
        for inner in (_weighted(layer.layers) if isinstance(layer, keras.Model) else [layer])
    )
    return [layer for layer in flat if layer.weights]


def _shape(layer: keras.Layer) -> str:
    """What a layer is, in words: weights fit where this is the same."""
    return " ".join(
        [type(layer).__name__, *("x".join(map(str, weight.shape)) or "1" for weight in layer.weights)]
    )
