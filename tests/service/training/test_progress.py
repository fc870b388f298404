"""The progress of a run as users see it: a line per epoch, notices, and a breakdown of the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.spec import DataSpec
from service.config import RunConfig
from service.recipe import EarlyStoppingSpec
from service.runs import Run
from service.training.checks import describe_early_stop
from service.training.progress import (
    ProgressLines,
    find_input_hint,
    format_epoch,
    format_store,
    show_progress,
    summarize_timings,
)

METRICS = {
    "epoch": 2,
    "loss": 0.5,
    "accuracy": 0.75,
    "val_loss": 0.6,
    "val_accuracy": 0.7,
    "images_per_second": 99.6,
    "input_wait": 0.25,
    "seconds": 12.34,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create({})
    return run


def write_epochs(run: Run, count: int) -> None:
    run.write_metrics([METRICS | {"epoch": epoch} for epoch in range(1, count + 1)])


def test_an_epoch_is_one_line() -> None:
    line = format_epoch(METRICS | {"val_top5": 0.9}, 10)
    scores = "loss 0.5000  accuracy 0.7500  val_loss 0.6000  val_accuracy 0.7000  val_top5 0.9000"
    assert line == f"epoch 2/10  {scores}  100 images/s  input wait 25%  12.3 s"


def test_what_was_read_from_a_store_is_one_line() -> None:
    values = {"store_fetched_bytes": 1.5e9, "store_hit_rate": 0.4449, "store_wait_seconds": 2.06}
    line = "1.5 GB fetched from the store, 44% of use from its cache, 2.1 s waiting for it"
    assert format_store(values) == line


def test_timings_are_listed_longest_first() -> None:
    timings = {"ray": 2.0, "training": 6.0, "waiting for input": 0.25, "total": 10.0, "unknown": 5.0}
    assert summarize_timings(timings, DataSpec(image_size=(8, 8)), "host").splitlines() == [
        "    10.0 s in all",
        "     6.0 s   60%  training",
        "     2.0 s   20%  starting Ray",
        "     0.2 s    2%  waiting for input",
        "     1.8 s   18%  everything else",
    ]


@pytest.mark.parametrize(
    ("timings", "share"),
    [
        ({"training": 6.0, "waiting for input": 1.0, "total": 10.0}, "10%"),
        ({"training": 6.0, "waiting for input": 0.99, "total": 10.0}, None),
        # of the whole time: next to a long first call, a short wait is no share even if training took no time
        ({"first call": 54.0, "training": 0.0, "waiting for input": 0.03, "total": 54.1}, None),
        ({"first call": 1.0, "training": 2.0, "waiting for input": 7.0, "total": 10.0}, "70%"),
        ({"training": 6.0, "total": 10.0}, None),
    ],
)
def test_a_hint_is_given_where_waiting_took_a_share_of_the_whole_time(
    timings: dict[str, float], share: str | None
) -> None:
    hint = find_input_hint(timings, DataSpec(image_size=(8, 8), cache="none"), "none")
    if share is None:
        assert hint is None
    else:
        assert hint is not None
        assert hint.startswith(f"waiting for input took {share} of the whole time: try ")


@pytest.mark.parametrize(
    ("settings", "tier", "options"),
    [
        ({"cache": "none"}, "none", "data.cache=auto or data.decode=fast or more CPUs"),
        ({"cache": "none", "decode": "fast"}, "none", "data.cache=auto or more CPUs"),
        ({"cache": "auto"}, "none", "data.decode=fast or more CPUs"),  # no cache fits
        ({"cache": "auto"}, "host", "more CPUs"),
        ({"cache": "host"}, "host", "more CPUs"),
        ({"cache": "device"}, "device", "more CPUs"),
    ],
)
def test_the_hint_names_only_what_is_not_in_use(settings: dict[str, str], tier: str, options: str) -> None:
    data = DataSpec.model_validate({"image_size": (8, 8)} | settings)
    hint = find_input_hint({"waiting for input": 5.0, "total": 10.0}, data, tier)
    assert hint == f"waiting for input took 50% of the whole time: try {options}"


def test_caches_notices_and_epochs_are_shown_once(run: Run) -> None:
    lines = ProgressLines(run, epochs=3)
    assert lines.read_new() == []
    run.update_status(caches={"train": "cache: host"})
    write_epochs(run, 1)
    assert lines.read_new() == ["train: cache: host", format_epoch(METRICS | {"epoch": 1}, 3)]
    run.notice("a worker was lost")
    write_epochs(run, 2)
    assert lines.read_new() == ["a worker was lost", format_epoch(METRICS, 3)]
    assert lines.read_new() == []


def test_a_notice_before_the_caches_is_shown_once_and_hides_none_of_them(run: Run) -> None:
    lines = ProgressLines(run, epochs=3)
    run.notice("3 of 4 devices are used")
    assert lines.read_new() == ["3 of 4 devices are used"]
    run.update_status(caches={"train": "cache: host", "validation": "cache: none"})
    assert lines.read_new() == ["train: cache: host", "validation: cache: none"]
    assert lines.read_new() == []


def test_the_notice_of_an_early_stop_follows_its_epoch(run: Run) -> None:
    stopping = EarlyStoppingSpec(metric="loss", patience=1)
    config = RunConfig(preset="test", shards="x", model="linear", epochs=3, early_stopping=stopping)
    history = [{"epoch": 1.0, "loss": 1.0}, {"epoch": 2.0, "loss": 1.0}]
    stop = describe_early_stop(config, history)
    assert stop is not None
    lines = ProgressLines(run, epochs=3)
    run.notice("a worker was lost")
    write_epochs(run, 2)
    run.notice(stop)
    assert lines.read_new() == [
        "a worker was lost",
        format_epoch(METRICS | {"epoch": 1}, 3),
        format_epoch(METRICS, 3),
        stop,
    ]


def test_epochs_that_a_restart_repeats_are_shown_again(run: Run) -> None:
    write_epochs(run, 2)
    lines = ProgressLines(run, epochs=3)
    write_epochs(run, 1)
    assert lines.read_new() == []
    write_epochs(run, 2)
    assert lines.read_new() == [format_epoch(METRICS, 3)]


def test_the_last_epoch_is_shown_even_at_the_end(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(run, 1, "TensorFlow"):
        write_epochs(run, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "starting run: 1 epoch; TensorFlow can take a while to start"
    assert lines[-1] == format_epoch(METRICS | {"epoch": 1}, 1)
