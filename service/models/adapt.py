"""Adapts a user's Keras model to training: pixels of 0 to 255 in, `logits` and `probabilities` at the end.

Every inference about the model is reported with its reason, and a model whose head is not recognized is
refused.
"""

from __future__ import annotations

import traceback
from typing import Any

import keras

from pipelines.errors import ConfigError, GlassboxError
from pipelines.plugins import reference_file
from service.inference.classifier import load_model
from service.inference.graph import activation_name, last_operation
from service.inference.inspection import decide_head, find_pixel_evidence
from service.inference.interpretation import RAW
from service.models.base import MODELS, Task, is_saved_model
from service.models.layers import LOGITS, PROBABILITIES, add_probabilities

# Layers whose outputs are logits if they have no activation. Other layers may transform values nonlinearly.
LINEAR_LAYERS = {
    "Activation",
    "Add",
    "Average",
    "AveragePooling2D",
    "BatchNormalization",
    "Conv2D",
    "Dense",
    "EinsumDense",
    "GlobalAveragePooling2D",
    "Rescaling",
    "SeparableConv2D",
}
HEADS = (
    "Dense(classes) with softmax or without activation, or for two classes Dense(1) with sigmoid or without"
)


def build_user_model(
    name: str, task: Task, custom_objects: tuple[str, ...] = ()
) -> tuple[keras.Model, tuple[str, ...]]:
    """Builds a user's model with fresh weights and adapts it.

    Args:
        name: `file.py:function`, `package.module:function`, the name of an entry point, or `file.keras`.
        task: Images and classes that the model is for.
        custom_objects: Modules with the custom layers of a `.keras` file.

    Returns:
        The model, and sentences that say what was inferred.

    Raises:
        ConfigError: The function fails or returns no model, or the model is not a classifier for the task.
    """
    model = _reset_weights(load_model(name, custom_objects)) if is_saved_model(name) else _call(name, task)
    return adapt_model(model, name, task)


def adapt_model(model: Any, name: str, task: Task) -> tuple[keras.Model, tuple[str, ...]]:
    """Makes a model take pixels of 0 to 255 and end in the layers `logits` and `probabilities`.

    Args:
        model: Return value of the user's function; its head is changed in place.
        name: Name of the model in the configuration, for messages.
        task: Images and classes that the model is for.

    Returns:
        The model, and sentences that say what was inferred.

    Raises:
        ConfigError: The model is not a classifier for the task, or its head is not recognized.
    """
    functional = _check_graph(model, name, task)
    logits, head_note = _expose_logits(functional, name, task)
    if logits is not None:
        functional = keras.Model(functional.input, add_probabilities(logits), name=functional.name)
    functional, pixels_note = _accept_pixels(functional, name)
    return functional, (f"model={name}: {head_note}", f"model={name}: {pixels_note}")


def _call(name: str, task: Task) -> Any:
    """Calls a user's function."""
    builder = MODELS.get(name)
    if not callable(builder):
        received = f"model={name} (a {type(builder).__name__})"
        raise ConfigError("a function that builds a model", received, "name a function that takes a Task")
    try:
        return builder(task)
    except (GlassboxError, KeyboardInterrupt):
        raise
    except BaseException as error:
        reason = traceback.format_exception_only(error)[-1].strip().splitlines()[0].rstrip(".")
        received = f"model={name}: {reason}{_find_line(error, name)}"
        fix = f"repair the function; it is called with one argument, {task}"
        raise ConfigError("a function that builds a model", received, fix) from error


def _find_line(error: BaseException, name: str) -> str:
    """Returns the innermost line of the user's file in a traceback, as ` (line N)`, or an empty string."""
    file = reference_file(name)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if file and frame.filename == str(file.resolve())]
    return f" (line {lines[-1]})" if lines else ""


def _reset_weights(saved: keras.Model) -> keras.Model:
    """Copies an architecture with fresh weights, but with the statistics of its Normalization layers."""
    fresh = keras.models.clone_model(saved)
    for layer, original in zip(_iterate_layers(fresh), _iterate_layers(saved), strict=True):
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights(original.get_weights())
            layer.finalize_state()
    return fresh


def _iterate_layers(model: keras.Model) -> list[keras.Layer]:
    """Lists all layers, those of nested models in place of the model."""
    layers = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            layers.extend(_iterate_layers(layer))
        else:
            layers.append(layer)
    return layers


def _check_graph(model: Any, name: str, task: Task) -> keras.Model:
    """Checks input and output, and returns the model as a plain functional one."""
    if not isinstance(model, keras.Model):
        received = f"model={name} (returned {type(model).__name__})"
        raise ConfigError(
            "a function that returns a Keras model", received, "return keras.Model(image, outputs)"
        )
    inputs = list(getattr(model, "inputs", None) or [])
    if not inputs:
        if isinstance(model, keras.Sequential):
            received = f"model={name} (Sequential without an input)"
            raise ConfigError(
                "a model with a fixed input size", received, "begin it with keras.Input(task.shape)"
            )
        received = f"model={name} (a subclassed {type(model).__name__})"
        fix = "use its layers in a functional model: keras.Model(image, outputs)"
        raise ConfigError("a functional or Sequential model", received, fix)

    outputs = list(model.outputs)
    if len(inputs) != 1 or len(outputs) != 1:
        received = f"model={name} ({len(inputs)} inputs, {len(outputs)} outputs)"
        raise ConfigError("a model with one input and one output", received, "keep one of each")
    _check_input(inputs[0], name, task)
    units = _read_units(outputs[0], name, task)
    allowed_units = (task.classes, 1) if task.classes == 2 else (task.classes,)
    if units not in allowed_units:
        received = f"model={name} ({units} output units)"
        fix = "end it in task.classes units" if not is_saved_model(name) else _describe_new_head(name)
        raise ConfigError(f"a classifier for the {task.classes} classes of the shard set", received, fix)
    return keras.Model(inputs[0], outputs[0], name=model.name)


def _describe_new_head(name: str) -> str:
    return f"write a function that loads {name} and puts a new head on it, and use model=file.py:function"


def _check_input(image: keras.KerasTensor, name: str, task: Task) -> None:
    shape = tuple(image.shape[1:])
    received = f"model={name} (input {'x'.join('?' if size is None else str(size) for size in shape)})"
    expected = "x".join(map(str, task.shape))
    if None in shape or len(shape) != 3:
        raise ConfigError(
            "a model with a fixed input size",
            received,
            f"build it for images of {expected}: keras.Input(task.shape)",
        )
    if shape != task.shape:
        fix = "use keras.Input(task.shape)"
        if is_saved_model(name):
            fix = f"set data.image_size=[{shape[0]},{shape[1]}] data.channels={shape[2]}"
        raise ConfigError(f"a model for images of {expected}, as the configuration sets them", received, fix)
    if not keras.backend.is_float_dtype(image.dtype):
        received = f"model={name} (input of {image.dtype})"
        raise ConfigError("a model with a float32 input", received, "leave dtype out of keras.Input")


def _read_units(output: keras.KerasTensor, name: str, task: Task) -> int:
    if len(output.shape) != 2 or not isinstance(output.shape[1], int):
        received = f"model={name} (output {tuple(output.shape)})"
        raise ConfigError(
            "a classifier, with one output [batch, units]",
            received,
            f"end it in {task.classes} units per image",
        )
    return int(output.shape[1])


def _expose_logits(model: keras.Model, name: str, task: Task) -> tuple[keras.KerasTensor | None, str]:
    """Finds or creates the tensor of logits.

    Returns:
        The output of a layer named `logits`, or None if the model needs no change; and a sentence
        on the inference.
    """
    names = [layer.name for layer in model.layers]
    if names[-2:] == [LOGITS, PROBABILITIES]:
        _check_own_head(model, name)
        return None, "it ends in the layers logits and probabilities"
    last = last_operation(model)
    units = int(model.output.shape[1])
    layer_text = f"{type(last).__name__} {last.name}"
    if last.name == LOGITS and last is model.operations[-1]:
        return model.output, "its last layer is named logits, so its outputs are taken for logits"

    for reserved in (LOGITS, PROBABILITIES):
        if reserved in names:
            received = f"model={name} (layer {reserved} is not the last)"
            raise ConfigError(
                f"a model whose head alone has layers named {reserved}", received, "rename the layer"
            )

    activation = activation_name(last)
    is_known = type(last).__module__.startswith("keras.")
    if is_known and (activation, units > 1) in (("softmax", True), ("sigmoid", False)):
        logits = _remove_activation(model, last, name)
        note = f"it ends in {activation} ({layer_text}), which training and evaluation apply to its logits"
    elif is_known and activation == "linear" and type(last).__name__ in LINEAR_LAYERS:
        _check_are_logits(model, layer_text, name)
        logits = model.output
        note = f"its last layer ({layer_text}) has no activation, so its outputs are taken for logits"
    else:
        received = f"model={name} (ends in {layer_text}, activation {activation}, {units} units)"
        fix = "change the last layer, or name it logits where its outputs are logits"
        raise ConfigError(f"a head that is recognized: {HEADS}", received, fix)
    _compute_in_float32(last)
    return keras.layers.Activation("linear", dtype="float32", name=LOGITS)(logits), note


def _check_are_logits(model: keras.Model, layer_text: str, name: str) -> None:
    """Refuses outputs that are probabilities although the last layer has no activation, as of an average."""
    if isinstance(last_operation(model), keras.layers.Dense):
        return  # unbounded, whatever precedes it
    try:
        head = decide_head(model)[0]
    except ConfigError:  # bounded by its fresh weights
        return
    if head == "probabilities":
        received = f"model={name} (ends in {layer_text}, whose outputs are probabilities)"
        fix = "combine logits instead of probabilities, and end it in softmax"
        raise ConfigError(f"a head that is recognized: {HEADS}", received, fix)


def _check_own_head(model: keras.Model, name: str) -> None:
    expected = "sigmoid" if model.output.shape[1] == 1 else "softmax"
    actual = activation_name(model.layers[-1])
    if actual != expected or model.layers[-1].input is not model.get_layer(LOGITS).output:
        received = f"model={name} (layer probabilities, activation {actual})"
        raise ConfigError(
            f"a layer probabilities that is {expected} of the layer logits", received, "use add_head"
        )


def _remove_activation(model: keras.Model, last: Any, name: str) -> keras.KerasTensor:
    """Removes softmax or sigmoid from the end of a model, and returns the tensor of logits."""
    if hasattr(last, "activation"):
        last.activation = keras.activations.linear
        return model.output
    if last is model.operations[-1]:
        return last.input
    received = (
        f"model={name} (ends in {type(last).__name__} {last.name}, inside a nested model or before a Reshape)"
    )
    fix = "use keras.layers.Activation, or the activation of the last Dense layer"
    raise ConfigError("softmax or sigmoid that can be taken off", received, fix)


def _compute_in_float32(layer: Any) -> None:
    """Makes a head compute in float32 under a mixed precision policy, as the heads of this package do."""
    if isinstance(layer, keras.Layer) and layer.compute_dtype != "float32":
        layer.dtype_policy = keras.DTypePolicy("float32")


def build_save_error(name: str, error: Exception) -> ConfigError:
    """Builds the error for a model that Keras cannot restore from its configuration.

    Args:
        name: Name of the model in the configuration.
        error: Exception from Keras; its first sentence is quoted.
    """
    reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
    fix = "give custom layers a get_config with all arguments of __init__, and use no Lambda layers"
    return ConfigError("a model that can be saved and loaded", f"model={name} ({reason})", fix)


def _accept_pixels(model: keras.Model, name: str) -> tuple[keras.Model, str]:
    """Puts a Rescaling layer in front of a model that does not take pixels of 0 to 255.

    Layers are copied, because a layer that is called twice has no single output.
    """
    evidence = find_pixel_evidence(model)
    chosen = evidence.candidates[0]
    if chosen == RAW:
        return model, f"it takes pixels of 0 to 255: {evidence.reason}"
    image = keras.Input(model.input.shape[1:], name="image")
    rescaling = keras.layers.Rescaling(chosen.scale, chosen.offset, dtype="float32", name="pixels")
    pixels = rescaling(image)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        scaled = keras.tree.map_structure(lambda value: pixels if value is image else value, args)
        return layer(*scaled, **kwargs)

    try:
        adapted = keras.models.clone_model(model, image, call_function=call)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise build_save_error(name, error) from error
    adapted.set_weights(model.get_weights())
    note = f"{evidence.reason}, so pixels are rescaled to {chosen.range}"
    return adapted, f"{note}; add a Rescaling layer to decide yourself"
