"""Writes a model in each format, and opens what was written as a function, to compare it with the model."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from pipelines.errors import ConfigError
from service.export.formats import ANY_SIZE, CLASSES_FILE, FITTED, ExportFormat
from service.export.graph import IMAGES, PROBABILITIES, ExportedModel
from service.models.metadata import MEMBER, ModelMetadata, append_metadata, append_text

CLASS = "class"  # output of a SavedModel: the name of the most probable class
CLASS_NAMES = "class_names"  # signature of a SavedModel without inputs
EXTRA_ASSETS = "assets.extra"  # folder of a SavedModel that TensorFlow leaves to others
MISSING_OPERATION = re.compile(r"'(tf\.\w+)' op is neither")
OPSET = 18  # the newest that tf2onnx writes
AXES = ("batch", "height", "width")  # names of the free dimensions in ONNX

# Maps the name of an entry and images, uint8 `[B, h, w, C]`, to probabilities, float32 `[B, K]`.
Predict = Callable[[str, NDArray[np.uint8]], NDArray[np.float32]]


def write_export(
    export_format: ExportFormat,
    exported: ExportedModel,
    metadata: ModelMetadata,
    entries: Sequence[str],
    folder: Path,
) -> Path:
    """Writes a model in a format, with its metadata inside.

    Args:
        export_format: Format whose runtime will read the model.
        exported: The model, in float32 if the format needs it.
        metadata: Metadata that describe the export.
        entries: Names of its entries.
        folder: Folder that the file or folder of the format is written to.

    Returns:
        The file or folder.

    Raises:
        ConfigError: The format lacks an operation of the model.
    """
    path = folder / export_format.file
    write = {"savedmodel": _write_saved_model, "onnx": _write_onnx, "tflite": _write_tflite}
    write[export_format.name](exported, metadata, entries, path)
    return path


def open_export(export_format: ExportFormat, path: Path) -> Predict:
    """Opens an export with the runtime of its format, as a function from images to probabilities.

    Args:
        export_format: Format that `path` is in.
        path: What `write_export` returned.
    """
    open_file = {"savedmodel": _open_saved_model, "onnx": _open_onnx, "tflite": _open_tflite}
    return open_file[export_format.name](path)


def _write_saved_model(
    exported: ExportedModel, metadata: ModelMetadata, entries: Sequence[str], path: Path
) -> None:
    module = exported.build_module(entries)
    names = tf.constant(exported.classes)

    def add_class(predict: Any) -> Any:
        def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = predict(images)
            best = tf.argmax(outputs[PROBABILITIES], axis=1)
            return {**outputs, CLASS: tf.gather(names, best)}

        return tf.function(run, input_signature=predict.input_signature, autograph=False)

    signatures = {name: add_class(getattr(module, name)) for name in entries}
    signatures.setdefault(ANY_SIZE, signatures[FITTED])  # TensorFlow Serving calls it by default
    signatures[CLASS_NAMES] = tf.function(lambda: {CLASS_NAMES: names}, input_signature=[], autograph=False)
    tf.saved_model.save(module, str(path), signatures=signatures)
    extra = path / EXTRA_ASSETS
    extra.mkdir()
    (extra / MEMBER).write_text(metadata.to_json())
    (extra / CLASSES_FILE).write_text(_list_lines(exported.classes))


def _open_saved_model(path: Path) -> Predict:
    loaded = tf.saved_model.load(str(path))

    def predict(entry: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs = loaded.signatures[entry](**{IMAGES: tf.constant(images)})
        return np.asarray(outputs[PROBABILITIES])

    return predict


def _write_tflite(
    exported: ExportedModel, metadata: ModelMetadata, entries: Sequence[str], path: Path
) -> None:
    module = exported.build_module(entries)
    with tempfile.TemporaryDirectory(prefix="glassbox-export-") as folder:
        tf.saved_model.save(module, folder, signatures={name: getattr(module, name) for name in entries})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(entries))
        try:
            with _silence_native_output():
                content = converter.convert()
        except ConverterError as error:
            operations = sorted(set(MISSING_OPERATION.findall(str(error))))
            raise _refuse_operations("tflite", ", ".join(operations) or "conversion failed") from None
    path.write_bytes(content)
    append_metadata(path, metadata)
    append_text(path, CLASSES_FILE, _list_lines(exported.classes))


def _open_tflite(path: Path) -> Predict:
    interpreter = _find_tflite_interpreter()(model_path=str(path))

    def predict(entry: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with _silence_native_output():
            outputs = interpreter.get_signature_runner(entry)(**{IMAGES: images})
        return np.asarray(outputs[PROBABILITIES])

    return predict


def _find_tflite_interpreter() -> Any:
    """Returns the interpreter of the package that replaces TensorFlow's, if installed, else TensorFlow's."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        return tf.lite.Interpreter
    return Interpreter


def _write_onnx(exported: ExportedModel, metadata: ModelMetadata, entries: Sequence[str], path: Path) -> None:
    import onnx
    import tf2onnx

    with _silence_loggers("tensorflow", "tf2onnx"):  # opening the file reports what is missing
        graph, inputs, outputs = _freeze(exported.build_entry(entries[0]))
        model, _ = tf2onnx.convert.from_graph_def(
            graph,
            input_names=[inputs],
            output_names=[outputs],
            opset=OPSET,
            custom_op_handlers={"Erfc": (_convert_erfc, [])},
            tensors_to_rename={inputs: IMAGES, outputs: PROBABILITIES},
        )
    for tensor in (*model.graph.input, *model.graph.output):
        for axis, dimension in zip(AXES, tensor.type.tensor_type.shape.dim, strict=False):
            if not dimension.dim_value:
                dimension.dim_param = axis
    properties = {
        "classes": json.dumps(exported.classes, ensure_ascii=False),
        "glassbox": metadata.to_json(),
    }
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(path))


def _freeze(entry: Any) -> tuple[Any, str, str]:
    """Returns the graph of an entry with its weights as constants, and the names of its input and output.

    Functions that Keras compiles on their own (grouped convolutions) become part of the graph.
    """
    was_eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        concrete = entry.get_concrete_function()
    finally:
        tf.config.run_functions_eagerly(was_eager)
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    return frozen.graph.as_graph_def(add_shapes=True), frozen.inputs[0].name, frozen.outputs[0].name


def _convert_erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """Converts erfc(x), of which GELU is made, to 1 - erf(x), because ONNX has no erfc."""
    from tf2onnx import utils

    output = node.output[0]
    node.type = "Erf"
    one = context.make_const(utils.make_name(f"{name}_one"), np.array(1, np.float32))
    context.insert_new_node_on_output(
        "Sub", output, name=utils.make_name(name), inputs=[one.output[0], output], domain=""
    )


def _open_onnx(path: Path) -> Predict:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, NotImplemented) as error:
        raise _refuse_operations("onnx", str(error).strip().splitlines()[0]) from None

    def predict(_: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        (outputs,) = session.run([PROBABILITIES], {IMAGES: images})
        return np.asarray(outputs)

    return predict


def _refuse_operations(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"a model made of operations that --format {name} has",
        f"format={name} ({reason})",
        "use --format savedmodel",
    )


def _list_lines(classes: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in classes)


@contextmanager
def _silence_loggers(*names: str) -> Iterator[None]:
    """Discards what is logged, such as warnings about the deprecated functions that a library calls."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _silence_native_output() -> Iterator[None]:
    """Discards what libraries in C++ write to the standard error, which is long and not for users."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
