"""`make reproduce` without the hours: what it would run, what it says it cannot, and its page over what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import reproduce

from service.runs import Run


def words(tmp_path: Path, *more: str) -> list[str]:
    return ["--out", str(tmp_path / "out"), *more]


def test_the_published_experiments_the_shortest_first() -> None:
    found = reproduce.experiments()
    assert found[:2] == ["mnist_mlp", "mnist_cnn"]
    assert (
        found.index("cats_dogs_lecture")
        < found.index("cats_dogs_small")
        < found.index("cats_dogs_small_dropout")
    )
    assert "demo" not in found


def test_why_one_is_not_run(tmp_path: Path) -> None:
    options = reproduce.options_of(words(tmp_path, "--only", "mnist_mlp", "cats_dogs_small"))
    options.digits, options.photos = "idx:somewhere", None
    assert reproduce.missing("mnist_mlp", options) == ""
    assert reproduce.missing("mnist_cnn", options) == "not asked for"
    assert "--photos" in reproduce.missing("cats_dogs_small", options)


def test_seeds(tmp_path: Path) -> None:
    options = reproduce.options_of(words(tmp_path))
    assert [run.path.name for run in reproduce.runs_of("mnist_cnn", options)] == [
        f"mnist_cnn-seed-{seed}" for seed in range(3)
    ]
    assert [run.path.name for run in reproduce.runs_of("mnist_mlp", options)] == ["mnist_mlp-seed-0"]


def test_the_page_over_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, end in ((tmp_path / "out" / "runs" / "mnist_mlp-seed-0", 0.9), (tmp_path / "elsewhere", 0.5)):
        run = Run(path)
        run.create({"shards": str(tmp_path), "seed": 0, "epochs": 3})
        run.write_metrics([{"epoch": n, "val_accuracy": end, "seconds": 1.0} for n in range(1, 4)])
    assert (
        reproduce.main(words(tmp_path, "--page-only", "--run", f"cats_dogs_small={tmp_path / 'elsewhere'}"))
        == 0
    )
    told = {
        line.split(" | ")[0].strip("| "): line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    }
    assert "| 96.11% | 90.00% | 1 | -6.11 |" in told["mnist_mlp"]
    assert "below" in told["mnist_mlp"]
    assert "not finished: epoch 3 of 30" in told["cats_dogs_small"]
    assert "not run: " in told["mnist_cnn"]
    assert (tmp_path / "out" / "index.html").is_file()


def test_an_unknown_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(words(tmp_path, "--only", "mnist_mpl")) == 2
    assert "mnist_mlp" in capsys.readouterr().err
