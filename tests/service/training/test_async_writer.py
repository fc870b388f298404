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


def test_a_write_waits_for_the_one_before() -> None:
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
def test_what_a_write_raised_is_raised_by_the_next_call(call: object) -> None:
    writer = AsyncWriter()
    writer.submit(fail)
    with pytest.raises(OSError, match="No space"):
        call(writer)
    writer.wait()  # the error is raised once


def test_the_file_is_written_from_copies(tmp_path: Path) -> None:
    (run := Run(tmp_path / "run")).create({})
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs)))
    file, copies = (
        ModelFile(run, model),
        [np.full(v.shape, i + 1.0) for i, v in enumerate(model.get_weights())],
    )
    before = model.get_weights()
    file.write(copies)
    for kept, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(now, kept)
    for _ in range(2):  # the second time by the twin of the first
        for expected, found in zip(
            copies, keras.models.load_model(run.model_path).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
        copies = [2 * copy for copy in copies]
        file.write(copies)
    assert [path.name for path in run.path.glob("*model*")] == ["model.keras"]
