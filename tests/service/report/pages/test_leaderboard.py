"""The leaderboard of a search: the order of its trials, and the points of its scatter plots."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.report.pages.leaderboard import (
    SCATTER_MARGIN,
    SCATTER_SIZE,
    Trial,
    compute_scatter,
    find_best,
    format_table,
    format_value,
    rank_trials,
    write_leaderboard,
)
from service.runs import Run
from service.tuning.space import parse_dimension

SPACE = (
    parse_dimension("rate", {"loguniform": [0.001, 0.1]}),
    parse_dimension("batch", {"choice": [8, 16, 32]}),
    parse_dimension("turn", {"uniform": [0, 40]}),
)


def trial(
    folder: Path,
    number: int,
    accuracies: list[float],
    values: dict[str, object],
    state: str = "finished",
    reason: str = "",
) -> Trial:
    run = Run(folder / "trials" / f"trial-{number:03d}")
    run.create({"epochs": 3})
    run.write_metrics(
        [{"epoch": n, "val_accuracy": value, "seconds": 1.5} for n, value in enumerate(accuracies, 1)]
    )
    run.update_status(state=state, reason=reason)
    return Trial.from_run(run, values)


@pytest.fixture
def trials(tmp_path: Path) -> list[Trial]:
    """The preset, the best trial, one that was stopped early, and two that failed, one after a good epoch."""
    return [
        trial(tmp_path, 0, [0.5, 0.6, 0.7], {}),
        trial(tmp_path, 1, [0.5, 0.8, 0.75], {"rate": 0.01, "batch": 8, "turn": 40.0}),
        trial(
            tmp_path,
            2,
            [0.4],
            {"rate": 0.1, "batch": 32, "turn": 0.0},
            reason="stopped early by the search, after epoch 1 of 3",
        ),
        trial(
            tmp_path,
            3,
            [0.9],
            {"rate": 0.001, "batch": 16, "turn": 20.0},
            "failed",
            "Expected a finite loss.",
        ),
        trial(tmp_path, 4, [], {"rate": 0.02, "batch": 8, "turn": 1.0}, "failed", "lost"),
    ]


def test_trials_are_ranked_and_the_best_is_found(trials: list[Trial]) -> None:
    assert [t.run.path.name[-1] for t in rank_trials(trials)] == ["1", "0", "2", "3", "4"]
    best = find_best(trials)
    assert best is not None
    assert (best.run.path.name, best.score, best.best_epoch, best.epochs, best.seconds) == (
        "trial-001",
        0.8,
        2,
        3,
        4.5,
    )
    assert find_best(trials[3:]) is None
    lines = format_table(rank_trials(trials), ["rate"]).splitlines()
    assert lines[1].split() == ["1", "trial-001", "80.00%", "3", "0.01"]
    assert lines[2].split() == ["2", "trial-000", "70.00%", "3", "preset"]
    assert "stopped early" in lines[3]


def test_of_equal_scores_the_longer_trial_comes_first(tmp_path: Path) -> None:
    found = rank_trials(
        [
            trial(tmp_path, 0, [0.5], {}),
            trial(tmp_path, 1, [0.5, 0.5], {}),
            trial(tmp_path, 2, [0.5, 0.5], {}),
        ]
    )
    assert [t.run.path.name[-1] for t in found] == ["1", "2", "0"]


def test_points_lie_where_values_and_scores_say(trials: list[Trial]) -> None:
    width, height = SCATTER_SIZE
    rate, batch, turn = (compute_scatter(of, trials) for of in SPACE)
    places = {name[-1]: (x, y) for name, x, y, _ in rate["points"]}
    assert places == {
        "1": (width / 2, pytest.approx(height - SCATTER_MARGIN - 0.8 * (height - 2 * SCATTER_MARGIN))),
        "2": (width - SCATTER_MARGIN, height - SCATTER_MARGIN),
        "3": (SCATTER_MARGIN, SCATTER_MARGIN),
    }
    assert {name[-1]: x for name, x, *_ in batch["points"]} == {
        "1": SCATTER_MARGIN,
        "2": width - SCATTER_MARGIN,
        "3": width / 2,
    }
    assert {name[-1]: x for name, x, *_ in turn["points"]} == {
        "1": width - SCATTER_MARGIN,
        "2": SCATTER_MARGIN,
        "3": width / 2,
    }
    assert (rate["x"], rate["y"]) == (["0.001", "0.1"], ["40.0%", "90.0%"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (1, "1"),
        (False, "false"),
        (None, "none"),
        ([1, 2], "[1, 2]"),
        ({"flip": True, "zoom": 0}, "flip true, zoom 0"),
    ],
)
def test_settings_are_formatted_as_in_a_configuration(value: object, text: str) -> None:
    assert format_value(value) == text


def test_the_page_states_the_best_trial_and_its_ties(tmp_path: Path, trials: list[Trial]) -> None:
    report = trials[1].run.report
    report.mkdir()
    (report / "index.html").write_text("x")
    page = write_leaderboard(tmp_path, "demo", rank_trials(trials), SPACE, 100).read_text()
    assert "The best trial, trial-001, reaches a validation accuracy of 80.0% in epoch 2." in page
    assert "within two standard errors" not in page  # 0.8 - 0.7 is more than 0.08
    assert 'href="trials/trial-001/report/index.html"' in page
    assert page.count("<circle") == 9
    page = write_leaderboard(tmp_path, "demo", rank_trials(trials), SPACE, 10).read_text()
    assert "One other trial is within two standard errors of it (25 points)" in page
    assert "No trial has a result." in write_leaderboard(tmp_path, "demo", trials[4:], SPACE, 10).read_text()
