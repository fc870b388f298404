"""Checks a model file before Keras allocates anything for it: its format, sizes and checksums."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import keras
from keras.src.backend.common import global_state

from pipelines.errors import ConfigError
from service.models.metadata import MODEL_FILE_ERRORS

LEGACY_SUFFIXES = {".h5", ".hdf5"}
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
CONFIG = "config.json"
# Of unpacked to packed bytes: Keras does not compress, and trained weights hardly can be compressed.
MAX_RATIO = 20
MAX_CONFIG_BYTES = 1 << 28
FREE_BYTES = 1 << 26  # below which no file is refused for its size
CREATED = "uninitialized_variables"  # where Keras lists the variables created in a stateless scope


def check_model_file(path: Path) -> None:
    """Checks format, declared sizes and checksums of a model file without building anything.

    Args:
        path: A `.keras` file, which is a zip archive, or a `.h5` file.

    Raises:
        ConfigError: The file is in another format, damaged, or unpacks to many times its size.
    """
    fix = "save it with model.save('NAME.keras')"
    if path.suffix in LEGACY_SUFFIXES and _read_start(path) == HDF5_SIGNATURE:
        return
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise ConfigError("a Keras model file, .keras or .h5", f"model={path}", fix)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if CONFIG not in archive.namelist():
                raise ConfigError("a Keras model file, .keras or .h5", f"model={path} (no {CONFIG})", fix)
            _check_sizes(path, members)
            damaged = archive.testzip()
    except MODEL_FILE_ERRORS as error:
        damaged = str(error) or type(error).__name__
    if damaged is not None:
        raise ConfigError("an undamaged model file", f"model={path} ({damaged})", "restore the file")


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(HDF5_SIGNATURE))


def _check_sizes(path: Path, members: list[zipfile.ZipInfo]) -> None:
    unpacked = sum(member.file_size for member in members)
    config = sum(member.file_size for member in members if member.filename == CONFIG)
    packed = path.stat().st_size
    if unpacked <= max(FREE_BYTES, MAX_RATIO * packed) and config <= MAX_CONFIG_BYTES:
        return
    raise ConfigError(
        f"a model file that unpacks to at most {MAX_RATIO} times its size",
        f"model={path} ({unpacked:,} bytes from {packed:,})",
        "save it again with model.save, from a source that you trust",
    )


def check_parameter_count(path: Path, custom_objects: dict[str, Any]) -> None:
    """Checks that a model has no more parameters than its file holds, before memory is allocated for them.

    The model is built in a scope in which Keras only records the variables that it would create.

    Args:
        path: A file that `check_model_file` accepts.
        custom_objects: The custom layers of the model by name.

    Raises:
        ConfigError: The file is too small for the parameters that its layers would create.
    """
    count = _count_parameters(path, custom_objects)
    stored = path.stat().st_size
    if count <= FREE_BYTES or count <= MAX_RATIO * stored:
        return
    raise ConfigError(
        "a model file that holds the weights of its layers",
        f"model={path} ({stored:,} bytes for {count:,} parameters)",
        "save it again with model.save, from a source that you trust",
    )


def _count_parameters(path: Path, custom_objects: dict[str, Any]) -> int:
    """Counts the parameters that a model would create, up to the first layer that cannot be built."""
    recorded = global_state.get_global_attribute(CREATED)
    global_state.set_global_attribute(CREATED, [])
    try:
        # Whatever is wrong with the file is reported when it is loaded.
        with suppress(Exception), keras.StatelessScope(initialize_variables=False):
            _select_builder(path)(custom_objects)
    finally:
        created = global_state.get_global_attribute(CREATED)
        global_state.set_global_attribute(CREATED, recorded)
    return sum(math.prod(variable.shape) for variable in created)


def _select_builder(path: Path) -> Callable[[dict[str, Any]], keras.Model]:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read(CONFIG))
        return lambda objects: keras.saving.deserialize_keras_object(config, objects, safe_mode=True)
    with h5py.File(path, "r") as file:
        text = file.attrs["model_config"]
    return lambda objects: keras.models.model_from_json(text, custom_objects=objects)
