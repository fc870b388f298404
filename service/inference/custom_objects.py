"""Finds the custom Keras layers that a model file needs, and collects them from the user's modules."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import h5py
import keras

from pipelines.plugins import load_module

_KERAS_MODULES = (
    keras,
    keras.activations,
    keras.constraints,
    keras.initializers,
    keras.layers,
    keras.ops,
    keras.regularizers,
)
_FUNCTIONAL = "Functional"  # class of most models in HDF5 files; no module of Keras exports it
# Classes in which Keras 2 saved calls of TensorFlow functions
_KERAS_2_OPERATIONS = (
    "TFOpLambda",
    "SlicingOpLambda",
    "TensorFlowOpLayer",
    "ClassMethod",
    "InstanceMethod",
    "InstanceProperty",
)


def find_custom_names(path: Path) -> tuple[str, ...]:
    """Returns the custom layers and functions that a model file needs, by registered name, in their order.

    Args:
        path: A `.keras` or `.h5` model file.

    Raises:
        ValueError: The file holds no readable configuration.
    """
    names = dict.fromkeys(_iterate_custom_names(_read_model_config(path)))
    return tuple(names)


def find_tensorflow_operations(path: Path) -> tuple[str, ...]:
    """Returns the TensorFlow functions, such as `tf.nn.softmax`, that a model calls outside of any layer.

    Keras 2 saved such calls; Keras 3 cannot load them.

    Args:
        path: A `.keras` or `.h5` model file.

    Raises:
        ValueError: The file holds no readable configuration.
    """
    names = dict.fromkeys(_iterate_operation_names(_read_model_config(path)))
    return tuple(names)


def collect_custom_objects(modules: Sequence[str]) -> dict[str, Any]:
    """Imports modules and collects the layers, functions and other Keras objects that they define.

    Args:
        modules: `package.module`, `FOLDER/package.module` or `file.py`. For a package, objects from its other
            loaded modules are included.

    Returns:
        Objects by class or function name and by the name they are registered with in Keras.

    Raises:
        ConfigError: A module cannot be imported.
    """
    objects: dict[str, Any] = {}
    for name in modules:
        module = load_module(name, "custom_objects")
        for source in (module, *_iterate_siblings(module)):
            for item in vars(source).values():
                if _is_custom(item):
                    objects.setdefault(keras.saving.get_registered_name(item), item)
                    objects.setdefault(item.__name__, item)
    return objects


def _read_model_config(path: Path) -> Any:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    with h5py.File(path, "r") as file:
        return json.loads(file.attrs.get("model_config", "null"))


def _iterate_custom_names(config: Any) -> Iterator[str]:
    if isinstance(config, list):
        for item in config:
            yield from _iterate_custom_names(item)
    elif isinstance(config, dict):
        if {"class_name", "config"} <= config.keys() and not _is_builtin(config):
            yield _read_name(config)
        for item in config.values():
            yield from _iterate_custom_names(item)


def _iterate_operation_names(config: Any) -> Iterator[str]:
    if isinstance(config, list):
        for item in config:
            yield from _iterate_operation_names(item)
    elif isinstance(config, dict):
        if config.get("class_name") in _KERAS_2_OPERATIONS:
            settings = config.get("config")
            function = settings.get("function") if isinstance(settings, dict) else None
            yield f"tf.{function}" if function else str(config["class_name"])
        for item in config.values():
            yield from _iterate_operation_names(item)


def _read_name(config: dict[str, Any]) -> str:
    if config["class_name"] == "function":
        return str(config["config"])
    return str(config.get("registered_name") or config["class_name"])


def _is_builtin(config: dict[str, Any]) -> bool:
    """Tells whether Keras itself defines the object that a part of a configuration names."""
    name = str(config["class_name"])
    if name == "function":
        return any(hasattr(module, str(config["config"])) for module in _KERAS_MODULES)
    if name.startswith("__"):  # tensors, lambdas and the like, which no module defines
        return True
    if name == _FUNCTIONAL and "module" not in config:
        return True
    if "module" in config:
        return f"{config['module']}.".startswith("keras.")
    return any(hasattr(module, name) for module in _KERAS_MODULES)  # HDF5 files of older Keras


def _iterate_siblings(module: ModuleType) -> Iterator[ModuleType]:
    """Yields the other loaded modules of the same package."""
    package = module.__name__.partition(".")[0]
    for name, other in list(sys.modules.items()):
        if name.partition(".")[0] == package and other is not module and isinstance(other, ModuleType):
            yield other


def _is_custom(item: Any) -> bool:
    """Tells whether an object is a function, or a class that Keras can save, and not part of Keras."""
    if str(getattr(item, "__module__", "")).partition(".")[0] in ("keras", "tensorflow"):
        return False
    if isinstance(item, type):
        return hasattr(item, "get_config") and hasattr(item, "from_config")
    return isinstance(item, FunctionType)
