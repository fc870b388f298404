"""What a user is told of a run: lines, sentences, where the time went."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service.runs import Run
from service.training.progress import format_epoch, shown, summarize_timings

METRICS = {
    "epoch": 2,
    "loss": 0.5,
    "accuracy": 0.75,
    "val_loss": 0.6,
    "val_accuracy": 0.7,
    "images_per_second": 99.6,
    "input_wait": 0.25,
}


def test_an_epoch_is_a_line() -> None:
    line = format_epoch(METRICS | {"seconds": 12.34, "val_top5": 0.9}, 10)
    scores = "loss 0.5000  accuracy 0.7500  val_loss 0.6000  val_accuracy 0.7000  val_top5 0.9000"
    assert line == f"epoch 2/10  {scores}  100 images/s  input wait 25%  12.3 s"


def test_where_the_time_went() -> None:
    timings = {"ray": 2.0, "training": 6.0, "waiting for input": 0.25, "total": 10.0, "unknown": 5.0}
    assert summarize_timings(timings).splitlines() == [
        "    10.0 s in all",
        "     6.0 s   60%  training",
        "     2.0 s   20%  starting Ray",
        "     0.2 s    2%  waiting for input",
        "     1.8 s   18%  everything else",
    ]


@pytest.mark.parametrize(("waited", "hint"), [(1.0, True), (0.5, False)])
def test_a_hint_where_input_held_the_training_back(waited: float, hint: bool) -> None:
    text = summarize_timings({"training": 6.0, "waiting for input": waited, "total": 10.0})
    assert ("input held the training back for 14% of its time" in text) is hint


def test_a_watcher_is_told_everything_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    with shown(run, 3):
        run.update_status(caches={"train": "cache: host"})
        run.write_metrics([METRICS | {"epoch": 1, "seconds": 1.0}])
        time.sleep(1.2)
        run.notice("a worker was lost")
        run.write_metrics([METRICS | {"epoch": epoch, "seconds": 1.0} for epoch in (1, 2)])
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "train: cache: host"
    assert [line.split("  ")[0] for line in said if line.startswith("epoch")] == ["epoch 1/3", "epoch 2/3"]
    assert said.count("a worker was lost") == 1


def test_epochs_that_a_restart_took_back_are_told_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    run.write_metrics([METRICS | {"epoch": epoch, "seconds": 1.0} for epoch in (1, 2)])
    with shown(run, 3):
        run.write_metrics([METRICS | {"epoch": 1, "seconds": 1.0}])
        time.sleep(1.2)
        run.write_metrics([METRICS | {"epoch": epoch, "seconds": 1.0} for epoch in (1, 2)])
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in said if line.startswith("epoch")] == ["epoch 2/3"]
