"""Models in the `.h5` files of older Keras: the same outputs, and no code."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.inference.classifier import load_model
from service.inference.graph import activation_name, last_operation

L = keras.layers


def save(path: Path, *layers: keras.Layer) -> keras.Model:
    model = keras.Sequential([L.Input((4, 4, 1)), *layers, L.Flatten(), L.Dense(3, activation="softmax")])
    model.save(path)
    return model


def test_a_legacy_file_gives_the_outputs_of_its_model(tmp_path):
    model = save(tmp_path / "model.h5", L.Conv2D(2, 3, activation="relu"))
    loaded = load_model(tmp_path / "model.h5")
    images = np.random.default_rng(0).random((3, 4, 4, 1), np.float32)
    np.testing.assert_array_equal(loaded(images), model(images))
    assert activation_name(last_operation(loaded)) == "softmax"


def test_code_in_a_legacy_file_is_not_executed(tmp_path):
    save(tmp_path / "lambda.h5", L.Lambda(lambda x: x * 2))
    with pytest.raises(ConfigError, match="Lambda"):
        load_model(tmp_path / "lambda.h5")


def test_files_without_a_legacy_model(tmp_path):
    save(tmp_path / "model.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "model.h5").read_bytes()[:3000])
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = [1, 2]
    for name in ("cut.h5", "text.h5", "other.h5"):
        with pytest.raises(ConfigError, match=name):
            load_model(tmp_path / name)
