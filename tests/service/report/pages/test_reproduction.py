"""The reproduction page: which figures are compared, their standard error, and the verdicts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from shard_samples import make_record, write_shards

from service.config import load_config, preset_comment, preset_names
from service.report.pages.reproduction import (
    Experiment,
    PublishedResult,
    compare_with_published,
    compute_final_accuracy,
    format_table,
    list_overrides,
    parse_published,
    plot_curves,
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
    images = [make_record(np.zeros((2, 2, 1), np.uint8), n % 2, f"{n}.png") for n in range(100)]
    return write_shards(
        tmp_path_factory.mktemp("shards") / "shards", ("a", "b"), {"train": images[:2], "validation": images}
    )


def test_published_results_are_parsed_from_the_presets() -> None:
    digits = parse_published("Published accuracy: 98.33 % on the 10,000 test digits after 5 epochs.")
    assert digits == PublishedResult(0.9833, 5, 10_000)
    photos = parse_published("Published accuracy: 73 % on the validation\nphotos after 15 epochs.")
    assert photos == PublishedResult(0.73, 15, None)
    assert parse_published("Expect 96 % or more of the 400 validation pictures after 12 epochs.") is None
    found = {name: parse_published(preset_comment(name)) for name in preset_names()}
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


def test_the_final_accuracy_of_long_runs_is_a_median() -> None:
    history = [{"val_accuracy": value / 100} for value in (50, 60, 70, 71, 72, 73, 74, 10, 75, 76)]
    assert compute_final_accuracy(history) == 0.74  # the median of the last five
    assert compute_final_accuracy(history[:8]) == 0.10  # for a short run, the last one


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
    """With 100 images on both sides, the error is that of a difference."""
    found = compare_with_published(
        Experiment(
            "p", PublishedResult(0.75, 3, 100), (run_with(tmp_path / "run", [0.5, 0.6, ours], shards),)
        )
    )
    assert found is not None
    assert found.difference == pytest.approx(ours - 0.75)
    assert found.error == pytest.approx(math.sqrt((0.75 * 0.25 + ours * (1 - ours)) / 100))
    assert (found.verdict, found.images, found.seconds) == (verdict, 100, 6.0)
    assert found.best == max(0.6, ours)


def test_seeds_are_averaged_and_later_epochs_ignored(tmp_path: Path, shards: Path) -> None:
    runs = tuple(
        run_with(tmp_path / str(n), [0.1, end, 0.99], shards, n) for n, end in enumerate((0.7, 0.8, 0.9))
    )
    found = compare_with_published(Experiment("p", PublishedResult(0.75, 2, None), runs))
    assert found is not None
    assert (found.ours, found.spread) == (pytest.approx(0.8), pytest.approx(0.1))
    assert found.error == pytest.approx(math.sqrt((0.75 * 0.25 + 0.8 * 0.2) / 100))
    assert found.best == 0.9


def test_without_the_shards_there_is_no_verdict(tmp_path: Path) -> None:
    found = compare_with_published(
        Experiment(
            "p", PublishedResult(0.75, 1, None), (run_with(tmp_path / "run", [0.2], tmp_path / "gone"),)
        )
    )
    assert found is not None
    assert found.verdict == "unknown"


def test_curves_of_different_lengths(tmp_path: Path, shards: Path) -> None:
    run = run_with(tmp_path / "run", [0.5, 0.6], shards, seed=7)
    history = [{"val_accuracy": 0.4, "val_loss": 0.3}] * 3
    accuracy, training, loss = plot_curves(
        Experiment("p", PublishedResult(0.75, 3, None), (run,), history=history)
    )
    assert [line.name for line in accuracy.lines] == ["published", "ours, seed 7"]
    assert accuracy.data()["lines"][1]["values"] == [0.5, 0.6, None]
    assert accuracy.levels == ((0.75, "published result"),)
    assert training.data()["lines"][1]["values"] == [0.6, 0.6, None]
    assert (loss.title, loss.percent) == ("Validation loss", False)


def test_the_page_states_what_is_finished(tmp_path: Path, shards: Path) -> None:
    experiments = [
        Experiment(
            "good", PublishedResult(0.75, 2, 100), (run_with(tmp_path / "good", [0.5, 0.74], shards),)
        ),
        Experiment("bad", PublishedResult(0.75, 2, 100), (run_with(tmp_path / "bad", [0.5, 0.4], shards),)),
        Experiment(
            "half",
            PublishedResult(0.75, 30, 100),
            (run_with(tmp_path / "half", [0.5, 0.4], shards, epochs=30),),
        ),
        Experiment("none", PublishedResult(0.9, 100, 1000), (), "no weights"),
    ]
    page = write_reproduction(tmp_path / "page", experiments, "2 CPUs").read_text()
    assert "More than two standard errors below the published result: bad." in page
    assert "2 of 4 finished" in page
    assert "not run: no weights" in page
    assert "not finished: epoch 2 of 30" in page
    lines = format_table(experiments).splitlines()
    assert lines[2] == "| good | 75.00% | 74.00% | 1 | -1.00 | 6.16 | within two standard errors | 4 s |"
    assert "below" in lines[3]
    assert "not finished: epoch 2 of 30" in lines[4]
    assert (
        write_reproduction(tmp_path / "page", experiments[:1], "")
        .read_text()
        .count("No result is more than two standard errors below")
        == 1
    )
    assert (
        "No experiment is finished yet"
        in write_reproduction(tmp_path / "page", experiments[3:], "").read_text()
    )


def test_settings_that_differ_from_the_preset_are_listed(tmp_path: Path) -> None:
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
    assert list_overrides(runs[0], config) == ()
    found = list_overrides(runs[1], config)
    assert sorted(found) == ["optimizer.learning_rate=0.5", "precision=mixed_bfloat16"]
    page = write_reproduction(
        tmp_path / "page",
        [Experiment("mnist_cnn", PublishedResult(0.9, 5, 100), (runs[1],), overrides=found)],
        "",
    )
    assert "precision=mixed_bfloat16." in page.read_text()
