"""Loads a model that computes in half precision in float32, for formats and runtimes without it."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import keras

from service.inference.classifier import load_model
from service.inference.jobs import SavedModel

CONFIG = "config.json"
HALF_POLICIES = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16")
FULL_PRECISION = "float32"


def computes_in_half(model: keras.Model) -> bool:
    """Tells whether a layer of a model, or of a model inside it, computes in half precision."""
    return any(
        layer.compute_dtype in ("bfloat16", "float16") for layer in model._flatten_layers(include_self=False)
    )


def load_in_float32(saved: SavedModel) -> keras.Model:
    """Loads a `.keras` file with every half-precision policy in its configuration replaced by float32.

    The weights are the same: mixed precision stores them in float32.

    Args:
        saved: The model file.

    Raises:
        ConfigError: The file is not a usable model.
    """
    with tempfile.TemporaryDirectory(prefix="glassbox-export-") as folder:
        original = Path(folder) / f"original-{saved.name}"
        converted = Path(folder) / saved.name
        original.write_bytes(saved.content)
        with zipfile.ZipFile(original) as source, zipfile.ZipFile(converted, "w") as target:
            for member in source.infolist():
                content = source.read(member)
                if member.filename == CONFIG:
                    content = json.dumps(_replace_policies(json.loads(content))).encode()
                target.writestr(member, content)
        return load_model(converted, saved.custom_objects)


def _replace_policies(value: Any) -> Any:
    """Replaces the names of half-precision policies and dtypes anywhere in a configuration."""
    if isinstance(value, dict):
        return {key: _replace_policies(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_policies(item) for item in value]
    return FULL_PRECISION if value in HALF_POLICIES else value
