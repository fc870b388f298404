"""Checks a model before a run is created: looks up its name, or builds a user's model in a subprocess.

The subprocess keeps TensorFlow, which would take memory on all GPUs, and user code out of the driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import errors
from pipelines.augment.colour import LUMA
from pipelines.errors import ConfigError, GlassboxError
from pipelines.input.mixed_manifest import load_training_manifest
from pipelines.plugins import FILE_MODULE_PREFIX
from pipelines.shards.manifest import Manifest
from pipelines.spec import DataSpec, check
from service.config import RunConfig
from service.models import Task, check_name, is_user_model
from service.user_code import OWN_PACKAGES, find_names, find_packages, is_installed, list_modules

if TYPE_CHECKING:
    import keras

ROOT = Path(__file__).resolve().parents[2]


def check_model(config: RunConfig, in_process: bool = False) -> tuple[str, ...]:
    """Checks that the model of a run can be trained, and returns what was inferred about it.

    Models of this package are only looked up by name, without building them or importing TensorFlow.

    Args:
        config: Configuration of the run.
        in_process: Whether to build a user's model in this process, which is going to train it anyway.

    Returns:
        Sentences about head and pixels of a user's model; none for a model of this package.

    Raises:
        ConfigError: The model does not exist, or is not a classifier for the shard set.
    """
    check_name(config.model)
    if not is_user_model(config.model):
        return ()
    return build_and_check(config) if in_process else _check_in_subprocess(config)


def define_task(data: DataSpec, manifest: Manifest, shards: str) -> Task:
    """Returns the task of a model: shape, classes and pixel statistics of the shard set.

    Args:
        data: Size and channels of the images.
        manifest: Manifest of the shard set.
        shards: Directory of the shard set, for the message.

    Raises:
        ConfigError: The shard set has no mean and deviation of its training images.
    """
    split = manifest.get_split("train")
    mean = split.mean
    std = split.std
    if mean is None or std is None:
        raise ConfigError(
            "the mean and deviation of the training images",
            f"data={shards} (not computed)",
            "build the shard set without --check header, which leaves them out",
        )
    if data.channels == 1:
        mean = (_convert_to_luma(mean),)
        std = (_convert_to_luma(std),)
    return Task((*data.image_size, data.channels), len(manifest.classes), tuple(mean), tuple(std))


def build_and_check(config: RunConfig) -> tuple[str, ...]:
    """Builds a user's model in this process and checks it, see `check_model`."""
    from service.devices import configure_devices
    from service.models.adapt import build_user_model

    configure_devices(deterministic=config.deterministic)
    before = set(sys.modules)
    task = define_task(config.data, load_training_manifest(config.shards, config.data), config.shards)
    model, notes = build_user_model(config.model, task, config.custom_objects)
    _check_imports(config, before)
    _check_can_be_saved(model, config)
    return notes


def _convert_to_luma(rgb: Sequence[float]) -> float:
    return float(sum(weight * value for weight, value in zip(LUMA, rgb, strict=True)))


def _check_imports(config: RunConfig, before: set[str]) -> None:
    """Refuses a user's file that imports other files of the user, which would not be copied to the run.

    Args:
        config: Configuration of the run.
        before: Names of the modules that had been imported before the user's code was.
    """
    copied = {*find_packages(find_names(config.model_dump(mode="json"))), *OWN_PACKAGES}
    for name in sorted(set(sys.modules) - before):
        package = name.partition(".")[0]
        file = getattr(sys.modules[name], "__file__", None)
        if package in copied or package.startswith(FILE_MODULE_PREFIX) or not file:
            continue
        if not is_installed(Path(file)) and not Path(file).is_relative_to(ROOT):
            fix = "put both into a package and write package.module:NAME, or install the other one"
            received = f"model={config.model} (imports {name} from {file})"
            raise ConfigError("user code that imports only installed packages and its own", received, fix)


def _check_can_be_saved(model: keras.Model, config: RunConfig) -> None:
    """Checks that Keras can restore the model from its configuration, as evaluation and reports do."""
    import keras

    from service.inference.custom_objects import collect_custom_objects
    from service.models.adapt import build_save_error

    modules = list_modules(config.model_dump(mode="json"))
    try:
        keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(model),
            custom_objects=collect_custom_objects(modules),
            safe_mode=True,
        )
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise build_save_error(config.model, error) from error


def _check_in_subprocess(config: RunConfig) -> tuple[str, ...]:
    """Runs `build_and_check` in a subprocess without GPUs."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    with tempfile.TemporaryDirectory() as folder:
        result_path = Path(folder) / "result.json"
        command = [sys.executable, "-m", __name__, str(result_path)]
        process = subprocess.run(
            command, input=json.dumps(config.model_dump(mode="json")), text=True, env=environment, check=False
        )
        if not result_path.is_file():
            received = f"model={config.model} (building it ended with exit code {process.returncode})"
            raise ConfigError("a model that can be built", received, "see the messages above")
        result = json.loads(result_path.read_text())
    if "error" in result:
        kind, *parts = result["error"]
        raise getattr(errors, kind)(*parts)
    return tuple(result["notes"])


def main(result_path: str) -> None:
    """Checks the configuration on standard input and writes the result to a file.

    Args:
        result_path: JSON file to write: `notes`, or the kind and the three parts of an `error`.
    """
    result: dict[str, Any]
    try:
        config = check(RunConfig, json.load(sys.stdin), "the configuration")
        result = {"notes": build_and_check(config)}
    except GlassboxError as error:
        result = {"error": [type(error).__name__, error.expected, error.received, error.fix]}
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
