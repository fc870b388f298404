"""The page of the published experiments: which figures are compared, with which error, and what it says of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from shard_samples import record, write_shards

from service.config import load_config, preset_comment, preset_names
from service.report.pages.reproduction import (
    Experiment,
    Published,
    departures,
    end_of,
    outcome,
    plots,
    published_in,
    table,
    write_reproduction,
)
from service.runs import Run


def run_with(
    path: Path, accuracies: list[float], shards: Path, seed: int = 0, epochs: int | None = None
) -> Run:
    run = Run(path)
    run.create({"preset": "p", "shards": str(shards), "seed": seed, "epochs": epochs or len(accuracies)})
    same = {"loss": 0.5, "accuracy": 0.6, "val_loss": 0.4, "seconds": 2.0}
    lines = [{"epoch": n, "val_accuracy": accuracy, **same} for n, accuracy in enumerate(accuracies, 1)]
    run.write_metrics(lines)
    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred validation images."""
    images = [record(np.zeros((2, 2, 1), np.uint8), n % 2, f"{n}.png") for n in range(100)]
    return write_shards(
        tmp_path_factory.mktemp("shards") / "shards", ("a", "b"), {"train": images[:2], "validation": images}
    )


def test_what_the_presets_say_was_published() -> None:
    assert published_in("Published: 98.33 % of the 10,000 test digits after 5 epochs.") == Published(
        0.9833, 5, 10_000
    )
    assert published_in("Published: 73 % of the validation\nphotos after 15 epochs.") == Published(
        0.73, 15, None
    )
    assert published_in("Expect 96 % or more of the 400 validation pictures after 12 epochs.") is None
    found = {name: published_in(preset_comment(name)) for name in preset_names()}
    for name in (
        "mnist_mlp",
        "mnist_cnn",
        "cats_dogs_lecture",
        "cats_dogs_lecture_dropout",
        "cats_dogs_small",
        "cats_dogs_small_dropout",
    ):
        assert found[name] is not None
        assert f"{found[name].accuracy * 100:g} %" in preset_comment(name)
    assert found["demo"] is None


def test_the_end_of_a_run() -> None:
    history = [{"val_accuracy": value / 100} for value in (50, 60, 70, 71, 72, 73, 74, 10, 75, 76)]
    assert end_of(history) == 0.74  # of the last five the median
    assert end_of(history[:8]) == 0.10  # short ones: the last


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (0.70, "within two standard errors"),
        (0.85, "within two standard errors"),
        (0.53, "below"),
        (0.93, "better"),
    ],
)
def test_the_verdict(tmp_path: Path, shards: Path, ours: float, verdict: str) -> None:
    """Of 100 photos there and 100 here: the error is that of a difference."""
    found = outcome(
        Experiment("p", Published(0.75, 3, 100), (run_with(tmp_path / "run", [0.5, 0.6, ours], shards),))
    )
    assert found is not None
    assert found.difference == pytest.approx(ours - 0.75)
    assert found.error == pytest.approx(math.sqrt((0.75 * 0.25 + ours * (1 - ours)) / 100))
    assert (found.verdict, found.images, found.seconds) == (verdict, 100, 6.0)
    assert found.best == max(0.6, ours)


def test_seeds_count_by_their_mean_and_what_follows_does_not(tmp_path: Path, shards: Path) -> None:
    runs = tuple(
        run_with(tmp_path / str(n), [0.1, end, 0.99], shards, n) for n, end in enumerate((0.7, 0.8, 0.9))
    )
    found = outcome(Experiment("p", Published(0.75, 2, None), runs))
    assert found is not None
    assert (found.ours, found.spread) == (pytest.approx(0.8), pytest.approx(0.1))
    assert found.error == pytest.approx(math.sqrt((0.75 * 0.25 + 0.8 * 0.2) / 100))
    assert found.best == 0.9


def test_without_the_shards_there_is_no_verdict(tmp_path: Path) -> None:
    found = outcome(
        Experiment("p", Published(0.75, 1, None), (run_with(tmp_path / "run", [0.2], tmp_path / "gone"),))
    )
    assert found is not None
    assert found.verdict == "not known"


def test_curves_of_different_lengths(tmp_path: Path, shards: Path) -> None:
    run = run_with(tmp_path / "run", [0.5, 0.6], shards, seed=7)
    history = [{"val_accuracy": 0.4, "val_loss": 0.3}] * 3
    accuracy, training, loss = plots(Experiment("p", Published(0.75, 3, None), (run,), history=history))
    assert [line.name for line in accuracy.lines] == ["published", "ours, seed 7"]
    assert accuracy.data()["lines"][1]["values"] == [0.5, 0.6, None]
    assert accuracy.levels == ((0.75, "published result"),)
    assert training.data()["lines"][1]["values"] == [0.6, 0.6, None]
    assert (loss.title, loss.percent) == ("Validation loss", False)


def test_the_page_says_what_was_run_and_what_not(tmp_path: Path, shards: Path) -> None:
    experiments = [
        Experiment("good", Published(0.75, 2, 100), (run_with(tmp_path / "good", [0.5, 0.74], shards),)),
        Experiment("bad", Published(0.75, 2, 100), (run_with(tmp_path / "bad", [0.5, 0.4], shards),)),
        Experiment(
            "half", Published(0.75, 30, 100), (run_with(tmp_path / "half", [0.5, 0.4], shards, epochs=30),)
        ),
        Experiment("none", Published(0.9, 100, 1000), (), "no weights"),
    ]
    page = write_reproduction(tmp_path / "page", experiments, "2 CPUs").read_text()
    assert "Below what was published by more than two standard errors: bad." in page
    assert "2 of 4 run to their end" in page
    assert "not run: no weights" in page
    assert "not finished: epoch 2 of 30" in page
    told = table(experiments).splitlines()
    assert told[2] == "| good | 75.00% | 74.00% | 1 | -1.00 | 6.16 | within two standard errors | 4 s |"
    assert "below" in told[3]
    assert "not finished: epoch 2 of 30" in told[4]
    assert (
        write_reproduction(tmp_path / "page", experiments[:1], "").read_text().count("No run falls more than")
        == 1
    )
    assert "Nothing has been run" in write_reproduction(tmp_path / "page", experiments[3:], "").read_text()


def test_a_run_that_departs_from_its_preset_says_in_what(tmp_path: Path) -> None:
    config = load_config("mnist_cnn", tmp_path, [])
    other = load_config(
        "mnist_cnn",
        tmp_path / "elsewhere",
        ["precision=mixed_bfloat16", "optimizer.learning_rate=0.5", "seed=7"],
    )
    runs = [Run(tmp_path / name) for name in ("same", "other")]
    for run, its in zip(runs, (config, other), strict=True):
        run.create(its.model_dump(mode="json"))
        run.write_metrics([{"epoch": 1, "val_accuracy": 0.5}])
    assert departures(runs[0], config) == ()
    found = departures(runs[1], config)
    assert sorted(found) == ["optimizer.learning_rate=0.5", "precision=mixed_bfloat16"]
    page = write_reproduction(
        tmp_path / "page", [Experiment("mnist_cnn", Published(0.9, 5, 100), (runs[1],), departures=found)], ""
    )
    assert "precision=mixed_bfloat16." in page.read_text()
