"""TensorBoard events: one curve for training, one for validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from tensorboardX import SummaryWriter

from service.runs import Run

CURVES = {
    "train": ("loss", "accuracy", "learning_rate", "images_per_second", "input_wait"),
    "validation": ("val_loss", "val_accuracy"),
}


class WriteEvents(Protocol):
    """Adds an epoch's metrics to the events."""

    def __call__(self, metrics: dict[str, float]) -> None:
        """Adds them, on disk when it returns."""


@contextmanager
def event_log(run: Run, validation: bool) -> Iterator[WriteEvents]:
    """Yields what writes a run's events, one file per split.

    Args:
        run: Where to.
        validation: Whether the run has a validation split.
    """
    with ExitStack() as stack:
        splits = list(CURVES) if validation else ["train"]
        writers = {split: stack.enter_context(SummaryWriter(str(run.events / split))) for split in splits}

        def write(metrics: dict[str, float]) -> None:
            for split, writer in writers.items():
                for name in CURVES[split]:
                    writer.add_scalar(name.removeprefix("val_"), metrics[name], int(metrics["epoch"]))
                writer.flush()

        yield write
