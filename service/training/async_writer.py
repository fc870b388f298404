"""Writes files in the background, so that training does not wait for the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from service.runs import Run


class AsyncWriter:
    """Runs one write at a time, in order; the error of a write is raised by the next call."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "writer")
        self._pending: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Starts a write as soon as the one before it has ended."""
        self.wait()
        self._pending = self._executor.submit(write)

    def wait(self) -> None:
        """Waits for the pending write.

        Raises:
            Exception: The exception that the write raised.
        """
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def check(self) -> None:
        """Raises the error of a write that has ended, without waiting for one that has not."""
        if self._pending is not None and self._pending.done():
            self.wait()


class ModelFile:
    """Writes `model.keras` from copies of the weights, while training keeps changing the weights themselves.

    Args:
        run: Run directory that receives the file.
        model: The model whose architecture is saved.
    """

    def __init__(self, run: Run, model: keras.Model) -> None:
        self._run = run
        self._model = model
        self._copy: keras.Model | None = None

    def write(self, weights: Sequence[np.ndarray]) -> None:
        """Writes the file atomically.

        Args:
            weights: Arrays in the order of `model.weights`.
        """
        if self._copy is None:
            with tf.device("CPU:0"):
                self._copy = keras.models.clone_model(self._model)
        self._copy.set_weights(weights)
        self._run.write_model(self._copy.save)
