"""The catalog of models: builds a model by its name in a configuration. Keras is imported late.

`model=NAME` in a configuration is one of these:

    small_cnn                 a model of this package, or of an installed one (entry points `glassbox.models`)
    file.py:function          a function in a file
    package.module:function   a function in an importable package; FOLDER/package.module:function in any other
    file.keras                the architecture saved in a file or object (`s3://BUCKET/file.keras`); with
                              `weights=saved` its weights too

A model function takes a `Task` and returns a Keras model with fresh weights:

    def build(task):
        image = keras.Input(task.shape)
        x = keras.layers.Rescaling(1 / 255)(image)
        x = keras.layers.Conv2D(32, 3, activation="relu")(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(image, keras.layers.Dense(task.classes, activation="softmax")(x))

- The model is functional or Sequential, with one input of `task.shape`, and can be saved and loaded by Keras
  (custom layers have a `get_config`).
- Pixels arrive as float32, 0 to 255. A model that begins with weights gets a layer `pixels` in front that
  divides them by 255. What precedes the first weights is run to find the range that it expects, for example
  0 to 255 for a Rescaling layer; add one to decide yourself.
- It ends in `task.classes` units with softmax or without an activation (logits), or, for two classes, in one
  unit with sigmoid or without an activation. The outputs of a last layer named `logits` are used as logits.
- Training uses the logits. `adapt_model` in `service/models/adapt.py` finds them, adds the layers `logits`
  and `probabilities` if they are missing, and reports what it inferred; an unsupported model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError
from pipelines.plugins import is_reference, reference_file
from pipelines.remote.files import is_file
from pipelines.remote.uri import parse_location
from service.models.base import MODELS, Builder, ModelOption, Task, is_saved_model
from service.user_code import find_package

if TYPE_CHECKING:
    import keras

__all__ = ["MODELS", "Task", "build_model", "check_name", "is_saved_model", "is_user_model"]

MODULES = {  # function of the same name -> module in this package
    "cats_dogs_best": "residual",
    "cats_dogs_lecture": "cats_dogs",
    "cats_dogs_lecture_dropout": "cats_dogs",
    "cats_dogs_small": "cats_dogs",
    "cats_dogs_small_dropout": "cats_dogs",
    "convnexttiny": "bases",
    "efficientnetv2b0": "bases",
    "linear": "small",
    "mnist_best": "residual",
    "mnist_cnn": "digits",
    "mnist_mlp": "digits",
    "mobilenetv3large": "bases",
    "mobilenetv3small": "bases",
    "resnet50": "resnet",
    "resnet50v2": "bases",
    "small_cnn": "small",
    "vgg16": "bases",
    "vit_tiny": "transformer",
    "xception": "bases",
}


def _import_when_called(name: str, module: str) -> Builder:
    """Returns a model function of this package that imports its module, and with it Keras, when called."""

    def build(task: Task, **options: ModelOption) -> keras.Model:
        builder: Builder = getattr(import_module(f"{__name__}.{module}"), name)
        return builder(task, **_check_options(name, builder, options))

    return build


def _check_options(
    name: str, builder: Builder, options: Mapping[str, ModelOption]
) -> Mapping[str, ModelOption]:
    """Returns the options of a model after checking their names and types against those of its function.

    Raises:
        ConfigError: The model does not have one of the options, or it has another type.
    """
    defaults = {
        parameter.name: parameter.default
        for parameter in signature(builder).parameters.values()
        if parameter.default is not Parameter.empty
    }
    for option, value in options.items():
        received = f"model_options.{option}={value}"
        if option not in defaults:
            fix = f"use {' or '.join(defaults)}" if defaults else "leave model_options out"
            raise ConfigError(f"an option of the model {name}", received, fix)
        kind = type(defaults[option])
        is_integer = kind is float and type(value) is int
        if type(value) is not kind and not is_integer:
            fix = f"write for example {option}={defaults[option]}"
            raise ConfigError(f"a value of type {kind.__name__}", received, fix)
    return options


for _name, _module in MODULES.items():
    MODELS.register(_name)(_import_when_called(_name, _module))


def is_user_model(name: str) -> bool:
    """Tells whether a model comes from outside this package: a file, a reference or an entry point."""
    return is_saved_model(name) or is_reference(name) or not MODELS.is_registered(name)


def check_name(name: str) -> None:
    """Checks that a model exists, without importing Keras or user code.

    Raises:
        ConfigError: The name is unknown, or the file or package does not exist.
    """
    file = parse_location(name) if is_saved_model(name) else reference_file(name)
    if file is not None:
        if not is_file(file):
            raise ConfigError("a model in a file", f"model={name} (no such file)", "correct the path")
    elif is_reference(name):
        find_package(name)
    elif name not in MODELS.names():
        MODELS.get(name)


def build_model(
    name: str,
    task: Task,
    custom_objects: tuple[str, ...] = (),
    options: Mapping[str, ModelOption] | None = None,
) -> keras.Model:
    """Builds a model with fresh weights that ends in the layers `logits` and `probabilities`.

    Args:
        name: A name, a reference or a `.keras` file, see above.
        task: Images and classes that the model is for.
        custom_objects: Modules with the custom layers of a `.keras` file, see `load_model`.
        options: Further arguments of a model function of this package, such as `stochastic_depth` of
            `resnet50`.

    Raises:
        ConfigError: The model does not exist, does not fit the task, needs larger images, or does not have
            one of the options.
    """
    if is_user_model(name):
        if options:
            received = f"model={name} model_options={dict(options)}"
            fix = "leave model_options out, and set them in the function that builds the model"
            raise ConfigError("options of a model of this package", received, fix)
        from service.models.adapt import build_user_model

        return build_user_model(name, task, custom_objects)[0]
    build = MODELS.get(name)
    try:
        return build(task, **(options or {}))
    except ValueError as error:
        # Keras raises it if a convolution or a pool has no pixel left.
        if "dimension" not in str(error).lower() and "size" not in str(error).lower():
            raise
        size = "x".join(map(str, task.shape[:2]))
        raise ConfigError(
            f"images large enough for the model {name}", f"data.image_size={size}", "raise data.image_size"
        ) from None
