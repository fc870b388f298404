"""Checks a model file before Keras allocates anything for it: its format, sizes and checksums."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

import h5py
import keras
from keras.src.backend.common import global_state
from keras.src.legacy.saving import saving_options, saving_utils
from keras.src.saving.serialization_lib import SafeModeScope

from pipelines.errors import ConfigError
from service.models.metadata import MODEL_FILE_ERRORS

LEGACY_SUFFIXES = {".h5", ".hdf5"}
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
CONFIG = "config.json"
# Of unpacked to packed bytes: Keras does not compress, and trained weights hardly can be compressed.
MAX_RATIO = 20
MAX_CONFIG_BYTES = 1 << 24  # parsed, it may take 25 times as much memory
FREE_BYTES = 1 << 26  # below which no file is refused for its size
FIX_SIZE = "save it again with model.save, from a source that you trust"
CREATED = "uninitialized_variables"  # where Keras lists the variables created in a stateless scope


def check_model_file(path: Path) -> None:
    """Checks format, declared sizes and checksums of a model file without building anything.

    Args:
        path: A `.keras` file, which is a zip archive, or a `.h5` file.

    Raises:
        ConfigError: The file is in another format, damaged, or unpacks to many times its size.
        OSError: The file cannot be read.
    """
    fix = "save it with model.save('NAME.keras')"
    if path.suffix in LEGACY_SUFFIXES and _read_start(path) == HDF5_SIGNATURE:
        with _name_damage(path), h5py.File(path, "r") as file:
            _check_arrays(path, file)
        return
    if path.suffix != ".keras" or not path.is_file() or not _is_zip(path):
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
        raise _build_damage_error(path, damaged)
    with _name_damage(path), zipfile.ZipFile(path) as archive:
        for member in members:
            if PurePath(member.filename).suffix in LEGACY_SUFFIXES:
                # Read whole, as Keras does: seeking back in a member reads it again from its start.
                with h5py.File(io.BytesIO(archive.read(member)), "r") as file:
                    _check_arrays(path, file)


@contextmanager
def _name_damage(path: Path) -> Iterator[None]:
    """Turns the errors of a damaged file into one that names it."""
    try:
        yield
    except MODEL_FILE_ERRORS as error:
        raise _build_damage_error(path, str(error) or type(error).__name__) from None


def _build_damage_error(path: Path, reason: str) -> ConfigError:
    return ConfigError("an undamaged model file", f"model={path} ({reason})", "restore the file")


def _check_arrays(path: Path, file: h5py.File) -> None:
    """Checks the sizes that the arrays of an HDF5 file declare, which need not be stored, and their place."""
    declared = 0
    elsewhere = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        nonlocal declared
        if isinstance(item, h5py.Dataset):
            declared += item.nbytes
            if item.external or item.is_virtual:
                elsewhere.append(name)

    def visit_link(name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            elsewhere.append(name)

    file.visititems(visit)
    file.visititems_links(visit_link)
    if elsewhere:
        raise ConfigError(
            "a model file that holds its weights itself",
            f"model={path} ({elsewhere[0]} is in another file)",
            FIX_SIZE,
        )
    size = path.stat().st_size
    if declared > max(FREE_BYTES, MAX_RATIO * size):
        raise ConfigError(
            f"arrays of at most {MAX_RATIO} times the size of the model file",
            f"model={path} ({declared:,} bytes in a file of {size:,})",
            FIX_SIZE,
        )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:  # given a path, `is_zipfile` takes one without permission for no archive
        return zipfile.is_zipfile(file)


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
        FIX_SIZE,
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
        FIX_SIZE,
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
        legacy_config = json.loads(file.attrs["model_config"])
    return lambda objects: _build_legacy_model(legacy_config, objects)


def _build_legacy_model(config: dict[str, Any], custom_objects: dict[str, Any]) -> keras.Model:
    """Builds the model of a `.h5` file like Keras, whose public functions read newer configurations only."""
    with saving_options.keras_option_scope(use_legacy_config=True), SafeModeScope(True):
        return saving_utils.model_from_config(config, custom_objects=custom_objects)
