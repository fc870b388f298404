"""Writing in the background, so that training does not wait for the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.storage import replacing
from service.runs import Run


class AsyncWriter:
    """One write at a time, in order; a write that fails is raised by the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "saver")
        self._writing: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Starts a write when the one before has ended."""
        self.wait()
        self._writing = self._thread.submit(write)

    def wait(self) -> None:
        """Waits for the write that is under way.

        Raises:
            Exception: What it raised.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def check(self) -> None:
        """Raises what a write that has ended raised; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()


class ModelFile:
    """Writes `model.keras` from copies of the weights, while training goes on changing the weights themselves.

    Args:
        run: Where to.
        model: The network.
    """

    def __init__(self, run: Run, model: keras.Model) -> None:
        self._run, self._model = run, model
        self._twin: Any = None

    def write(self, weights: Sequence[np.ndarray]) -> None:
        """Writes the file, whole or not at all.

        Args:
            weights: In the order of `model.weights`.
        """
        if self._twin is None:
            with tf.device("CPU:0"):
                self._twin = keras.models.clone_model(self._model)
        self._twin.set_weights(weights)
        with replacing(self._run.model_path) as temporary:
            self._twin.save(temporary)
