"""Writing in the background: in order, and with its errors raised."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from service.runs import Run
from service.training.async_writer import AsyncWriter, ModelFile


def fail() -> None:
    raise OSError(28, "No space left on device")


def poll(writer: AsyncWriter) -> None:
    """Calls `check` until the pending write has ended."""
    while True:
        writer.check()
        time.sleep(0.01)


def test_a_write_waits_for_the_previous_one() -> None:
    writer = AsyncWriter()
    gate = threading.Event()
    done = []

    def write_first() -> None:
        gate.wait()
        done.append(1)

    writer.submit(write_first)
    writer.check()  # returns although the write has not ended
    assert done == []
    threading.Timer(0.1, gate.set).start()
    writer.submit(lambda: done.append(2))
    assert done[0] == 1
    writer.wait()
    assert done == [1, 2]


@pytest.mark.parametrize(
    "call",
    [AsyncWriter.wait, poll, lambda writer: writer.submit(lambda: None)],
    ids=["wait", "check", "submit"],
)
def test_an_error_of_a_write_is_raised_by_the_next_call(call: object) -> None:
    writer = AsyncWriter()
    writer.submit(fail)
    with pytest.raises(OSError, match="No space"):
        call(writer)
    writer.wait()  # the error is raised once


def test_the_model_file_is_written_from_copies(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs)))
    before = model.get_weights()
    file = ModelFile(run, model)
    for factor in (1, 2):
        weights = [np.full(v.shape, factor * (i + 1.0)) for i, v in enumerate(before)]
        file.write(weights)
        saved = keras.models.load_model(run.model_path).get_weights()
        for expected, array in zip(weights, saved, strict=True):
            np.testing.assert_array_equal(array, expected)
    for expected, array in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert [path.name for path in run.path.glob("*model*")] == ["model.keras"]
