"""`make reproduce` without training: which experiments it selects, and its page over existing runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import reproduce

from service.runs import Run


def list_words(tmp_path: Path, *words: str) -> list[str]:
    return ["--out", str(tmp_path / "out"), *words]


def test_experiments_are_sorted_by_cost() -> None:
    names = reproduce.list_experiments()
    assert names[:2] == ["mnist_mlp", "mnist_cnn"]
    lecture = names.index("cats_dogs_lecture")
    small = names.index("cats_dogs_small")
    dropout = names.index("cats_dogs_small_dropout")
    assert lecture < small < dropout
    assert "demo" not in names


def test_reason_for_not_running_an_experiment(tmp_path: Path) -> None:
    options = reproduce.parse_options(list_words(tmp_path, "--only", "mnist_mlp", "cats_dogs_small"))
    options.digits = "idx:somewhere"
    options.photos = None
    assert reproduce.find_missing_reason("mnist_mlp", options) == ""
    assert reproduce.find_missing_reason("mnist_cnn", options) == "not selected"
    assert "--photos" in reproduce.find_missing_reason("cats_dogs_small", options)


def test_seeded_presets_have_several_runs(tmp_path: Path) -> None:
    options = reproduce.parse_options(list_words(tmp_path))
    names = [run.path.name for run in reproduce.list_runs("mnist_cnn", options)]
    assert names == ["mnist_cnn-seed-0", "mnist_cnn-seed-1", "mnist_cnn-seed-2"]
    assert [run.path.name for run in reproduce.list_runs("mnist_mlp", options)] == ["mnist_mlp-seed-0"]


def test_page_over_existing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    external = tmp_path / "elsewhere"
    for path, accuracy in ((tmp_path / "out" / "runs" / "mnist_mlp-seed-0", 0.9), (external, 0.5)):
        run = Run(path)
        run.create({"shards": str(tmp_path), "seed": 0, "epochs": 3})
        run.write_metrics(
            [{"epoch": epoch, "val_accuracy": accuracy, "seconds": 1.0} for epoch in range(1, 4)]
        )
    words = list_words(tmp_path, "--page-only", "--run", f"cats_dogs_small={external}")
    assert reproduce.main(words) == 0
    output = capsys.readouterr().out.splitlines()
    lines = {line.split(" | ")[0].strip("| "): line for line in output if line.startswith("| ")}
    assert "| 96.11% | 90.00% | 1 | -6.11 |" in lines["mnist_mlp"]
    assert "below" in lines["mnist_mlp"]
    assert "not finished: epoch 3 of 30" in lines["cats_dogs_small"]
    assert "not run: " in lines["mnist_cnn"]
    assert (tmp_path / "out" / "index.html").is_file()


def test_unknown_experiment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(list_words(tmp_path, "--only", "mnist_mpl")) == 2
    assert "mnist_mlp" in capsys.readouterr().err
