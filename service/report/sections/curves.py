"""Learning curves: loss, accuracy and learning rate over the epochs, with the best epoch and gap marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.diagnosis.curves import accuracy_gap, best_epoch, column, loss_gap
from service.report.drawing.formatting import difference, points
from service.report.drawing.plots import Line, Plot
from service.report.sections.section import Section
from service.scores import majority_class_share

BASELINE = "majority-class baseline"

Epochs = Sequence[dict[str, float]]


def build_section(epochs: Epochs, labels: NDArray[np.int32]) -> Section | None:
    """Builds charts of accuracy, loss and learning rate, and the table behind them.

    Args:
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.
        labels: int32 `[N]`, labels of the evaluated split, for the majority-class baseline.

    Returns:
        The section; None if there are no metrics.
    """
    if not epochs:
        return None
    best = best_epoch(column(epochs, "val_accuracy"))
    baseline = majority_class_share(labels)
    rates = set(column(epochs, "learning_rate"))
    charts = [plot_accuracy(epochs, baseline), plot_loss(epochs), plot_learning_rate(epochs)]
    values = {
        "charts": [chart for chart in charts if chart is not None],
        "epochs": epochs,
        "best": best,
        "constant_rate": rates.pop() if len(rates) == 1 else None,
    }
    figures = {
        "epochs": list(epochs),
        "best_epoch": None if best is None else best + 1,
        "majority_class_share": baseline,
    }
    return Section("curves", "Learning curves", values, figures)


def plot_accuracy(epochs: Epochs, baseline: float) -> Plot:
    """Plots training and validation accuracy, with the best epoch, the gap there, and the baseline.

    Args:
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.
        baseline: Accuracy of the majority-class baseline, in [0, 1].
    """
    training = column(epochs, "accuracy")
    validation = column(epochs, "val_accuracy")
    best = best_epoch(validation)
    marks: tuple[tuple[float, str], ...] = ()
    if best is not None:
        gap = points(accuracy_gap(training[best], validation[best]))
        marks = ((best + 1.0, _describe_mark(best, f"{gap} points")),)
    return Plot(
        "Accuracy",
        "epoch",
        _number_epochs(epochs),
        _lines(training, validation),
        percent=True,
        marks=marks,
        levels=((baseline, BASELINE),),
        shade=bool(validation),
        caption="Share of images whose most probable class is the true one. Training accuracy is averaged "
        "over the epoch, while the model is still changing; validation accuracy is measured at its end.",
    )


def plot_loss(epochs: Epochs) -> Plot:
    """Plots training and validation loss, with the epoch of the best validation accuracy marked.

    Args:
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.
    """
    training = column(epochs, "loss")
    validation = column(epochs, "val_loss")
    best = best_epoch(column(epochs, "val_accuracy"))
    marks: tuple[tuple[float, str], ...] = ()
    if best is not None and validation:
        gap = difference(loss_gap(training[best], validation[best]), digits=3)
        marks = ((best + 1.0, _describe_mark(best, gap)),)
    return Plot(
        "Loss",
        "epoch",
        _number_epochs(epochs),
        _lines(training, validation),
        marks=marks,
        shade=bool(validation),
        caption="Cross-entropy: how little probability the model gives to the true class. Lower is better; "
        "0 is certain and right. A validation loss that rises while the training loss falls is overfitting.",
    )


def plot_learning_rate(epochs: Epochs) -> Plot | None:
    """Plots the learning rate.

    Args:
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.

    Returns:
        The plot; None if the learning rate is unknown or constant.
    """
    rates = column(epochs, "learning_rate")
    if len(set(rates)) < 2:
        return None
    return Plot(
        "Learning rate",
        "epoch",
        _number_epochs(epochs),
        (Line("learning rate", rates, "a"),),
        caption="Size of the optimizer's steps, by epoch.",
    )


def _describe_mark(best: int, gap: str) -> str:
    return f"best epoch {best + 1}, gap {gap}"


def _number_epochs(epochs: Epochs) -> list[float]:
    return [float(number) for number in range(1, len(epochs) + 1)]


def _lines(training: list[float], validation: list[float]) -> tuple[Line, ...]:
    lines = [Line("training", training, "training"), Line("validation", validation, "validation")]
    return tuple(line for line in lines if line.values)
