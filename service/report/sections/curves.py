"""Curves: loss, accuracy and learning rate over the epochs, with the best epoch and the gap to training."""

from __future__ import annotations

from collections.abc import Sequence

from service.diagnosis.curves import accuracy_gap, best_epoch, column, loss_gap
from service.report.drawing.album import Album
from service.report.drawing.formatting import points, signed
from service.report.drawing.plots import Line, Plot
from service.report.subject import Section, Subject
from service.scores import majority_class_share

COMMONEST = "always naming the commonest class"


def accuracy_plot(epochs: Sequence[dict[str, float]], commonest: float) -> Plot:
    """Accuracy of training and validation, with the best epoch, the gap there, and the level of `majority_class_share`."""
    training, validation = column(epochs, "accuracy"), column(epochs, "val_accuracy")
    best = best_epoch(validation)
    marks: tuple[tuple[float, str], ...] = (
        ()
        if best is None
        else ((best + 1.0, _at(best, f"{points(accuracy_gap(training[best], validation[best]))} points")),)
    )
    return Plot(
        "Accuracy",
        "epoch",
        _numbers(epochs),
        _lines(training, validation),
        True,
        marks,
        ((commonest, COMMONEST),),
        bool(validation),
    )


def loss_plot(epochs: Sequence[dict[str, float]]) -> Plot:
    """Loss of training and validation, with the same epoch marked."""
    training, validation = column(epochs, "loss"), column(epochs, "val_loss")
    best = best_epoch(column(epochs, "val_accuracy"))
    marks: tuple[tuple[float, str], ...] = ()
    if best is not None and validation:
        marks = ((best + 1.0, _at(best, signed(loss_gap(training[best], validation[best]), digits=3))),)
    return Plot(
        "Loss", "epoch", _numbers(epochs), _lines(training, validation), False, marks, (), bool(validation)
    )


def rate_plot(epochs: Sequence[dict[str, float]]) -> Plot | None:
    """The learning rate; None where it is not known or never changes."""
    rates = column(epochs, "learning_rate")
    if len(set(rates)) < 2:
        return None
    return Plot("Learning rate", "epoch", _numbers(epochs), (Line("learning rate", rates, "a"),))


def build_section(subject: Subject, album: Album) -> Section | None:
    """Charts of accuracy, loss and learning rate, and the values behind them."""
    epochs = subject.epochs
    if not epochs:
        return None
    best = best_epoch(column(epochs, "val_accuracy"))
    commonest = majority_class_share(subject.evaluation.labels)
    rates = set(column(epochs, "learning_rate"))
    charts = [accuracy_plot(epochs, commonest), loss_plot(epochs), rate_plot(epochs)]
    values = {
        "charts": [chart for chart in charts if chart is not None],
        "epochs": epochs,
        "best": best,
        "constant_rate": rates.pop() if len(rates) == 1 else None,
    }
    figures = {
        "epochs": list(epochs),
        "best_epoch": None if best is None else best + 1,
        "commonest_class": commonest,
    }
    return Section("curves", "Learning curves", values, figures)


def _at(best: int, gap: str) -> str:
    return f"best epoch {best + 1}, gap {gap}"


def _numbers(epochs: Sequence[dict[str, float]]) -> list[float]:
    return [float(number) for number in range(1, len(epochs) + 1)]


def _lines(training: list[float], validation: list[float]) -> tuple[Line, ...]:
    lines = [Line("training", training, "training"), Line("validation", validation, "validation")]
    return tuple(line for line in lines if line.values)
