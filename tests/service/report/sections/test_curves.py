"""Learning curves: what is plotted, where the best epoch and the gap are marked, and the sign of the gap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from report_samples import metrics

from service.diagnosis.curves import best_epoch, column
from service.report.drawing.plots import Line, Plot
from service.report.sections.curves import plot_accuracy, plot_learning_rate, plot_loss
from service.scores import majority_class_share

FIVE = [
    {"loss": 1.0 - 0.1 * n, "accuracy": 0.5 + 0.1 * n, "val_loss": 1.0, "val_accuracy": accuracy}
    for n, accuracy in enumerate([0.5, 0.9, 0.7])
]


def test_values_and_marks_of_the_accuracy():
    plot = plot_accuracy(FIVE, 0.5)
    assert plot.data() == {
        "x": [1.0, 2.0, 3.0],
        "lines": [
            {"name": "training", "role": "training", "values": [0.5, 0.6, 0.7]},
            {"name": "validation", "role": "validation", "values": [0.5, 0.9, 0.7]},
        ],
        "percent": True,
        "x_label": "epoch",
        "marks": [[2.0, "best epoch 2, gap \N{MINUS SIGN}30.0 points"]],
        "levels": [[0.5, "majority-class baseline"]],
        "shade": True,
        "log": False,
        "ticks": [],
    }


@pytest.mark.parametrize(
    ("training", "validation", "accuracy_gap", "loss_gap"),
    [
        ((0.9, 0.2), (0.7, 0.5), "gap +20.0 points", "gap +0.300"),  # worse on validation: above zero in both
        ((0.7, 0.5), (0.9, 0.2), "gap \N{MINUS SIGN}20.0 points", "gap \N{MINUS SIGN}0.300"),
    ],
)
def test_a_gap_above_zero_is_worse_on_validation(training, validation, accuracy_gap, loss_gap):
    epoch = {
        "accuracy": training[0],
        "loss": training[1],
        "val_accuracy": validation[0],
        "val_loss": validation[1],
    }
    assert plot_accuracy([epoch], 0.5).marks[0][1].endswith(accuracy_gap)
    assert plot_loss([epoch]).marks[0][1].endswith(loss_gap)


def test_without_validation_nothing_is_marked():
    plot = plot_accuracy(metrics(3, validation=False), 0.5)
    assert [line.name for line in plot.lines] == ["training"]
    assert (plot.marks, plot.shade) == ((), False)


def test_the_learning_rate_is_plotted_where_it_changes():
    assert plot_learning_rate(metrics(3)) is None
    assert plot_learning_rate([{}]) is None
    changing = plot_learning_rate([{"learning_rate": 0.1}, {"learning_rate": 0.01}])
    assert changing is not None
    assert list(changing.lines[0].values) == [0.1, 0.01]


def test_values_that_are_no_numbers_are_gaps():
    plot = Plot(
        "Loss",
        "epoch",
        [1, 2, 3],
        (Line("training", [3.0, math.nan, math.inf]),),
        levels=((math.nan, "level"),),
    )
    assert plot.data()["lines"][0]["values"] == [3.0, None, None]
    assert plot.data()["levels"] == []
    assert not plot.is_empty
    assert Plot("Loss", "epoch", [1], (Line("training", [math.nan]),)).is_empty


def test_the_text_of_a_plot_says_where_lines_begin_and_end():
    text = plot_accuracy(FIVE, 0.5).describe()
    assert text.startswith(
        "Accuracy over 3 epochs; training from 50.00% to 70.00%; "
        "validation from 50.00% to 70.00%; best epoch 2"
    )
    assert text.endswith("majority-class baseline: 50.00%")


def test_best_epoch_is_the_earliest_of_equals():
    assert best_epoch([0.1, 0.9, 0.9, 0.2]) == 1
    assert best_epoch([math.nan, 0.3]) == 1
    assert best_epoch([math.nan]) is None
    assert best_epoch([]) is None


def test_values_of_a_metric_over_the_epochs():
    assert column([{"a": 1.0}, {"a": 2.0}], "a") == [1.0, 2.0]
    assert column([{"a": 1.0}], "b") == []
    assert math.isnan(column([{}, {"a": 2.0}], "a")[0])


def test_the_majority_class_share():
    assert majority_class_share(np.array([0, 1, 1, 1])) == 0.75
    assert math.isnan(majority_class_share(np.array([], int)))
