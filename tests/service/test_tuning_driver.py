"""What a search decides by itself: how trials end, what each gets of a cluster, and that another search is no continuation."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, Interrupted
from service.runs import Run
from service.tuning.driver import LOCK, _check_same, _share, _stopping
from service.tuning.plan import PLAN, Plan
from service.tuning.trial import settle


def plan(**changes: object) -> Plan:
    settings = {"preset": "p", "settings": {"model": "linear"}, "shards": "/s", "space": {"epochs": {"int": [1, 3]}}, "trials": 4}
    return Plan.model_validate(settings | changes)


@pytest.mark.parametrize(
    ("state", "done", "error", "ends"),
    [
        ("training", 2, "", ("finished", "stopped early by the search, after epoch 2 of 3")),
        ("training", 3, "", ("finished", None)),
        ("starting", 0, "lost", ("failed", "lost")),
        ("failed", 1, "", ("failed", "before")),
        ("finished", 3, "lost", ("finished", "before")),
    ],
)
def test_how_a_trial_ends(tmp_path: Path, state: str, done: int, error: str, ends: tuple[str, str | None]) -> None:
    run = Run(tmp_path / "run")
    run.create({"epochs": 3})
    run.write_metrics([{"epoch": n} for n in range(done)])
    run.update_status(state=state, reason="before")
    settle(run, error)
    assert (run.status()["state"], run.status()["reason"]) == ends


@pytest.mark.parametrize(
    ("cluster", "asked", "share"),
    [
        ({"CPU": 8.0}, {}, (1, 0)),
        ({"CPU": 64.0, "GPU": 8.0}, {}, (8, 1)),
        ({"CPU": 4.0, "GPU": 8.0}, {}, (1, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, {"gpus": 0}, (1, 0)),
        ({"CPU": 8.0, "GPU": 2.0}, {"gpus": 2, "cpus": 3}, (3, 2)),
    ],
)
def test_what_each_trial_gets(cluster: dict[str, float], asked: dict[str, int], share: tuple[int, int]) -> None:
    assert _share(plan(**asked), cluster) == share


def test_only_the_same_search_goes_on(tmp_path: Path) -> None:
    _check_same(plan(), tmp_path / "new")
    _check_same(plan(), tmp_path)
    (tmp_path / LOCK).touch()  # killed before it had written its plan
    _check_same(plan(), tmp_path)
    (tmp_path / PLAN).write_text(plan().model_dump_json())  # JSON is YAML
    for same in (plan(), plan(trials=9), plan(cpus=2, restarts=0)):
        _check_same(same, tmp_path)
    for name, other in {"trials": 3, "seed": 1, "settings": {"model": "small_cnn"}, "shards": "/t", "space": {}}.items():
        with pytest.raises(ConfigError, match=f"was begun at .*{name}="):
            _check_same(plan(**{name: other}), tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="or a search"):
        _check_same(plan(), tmp_path)


def search_that_is_stopped(out: Path, number: signal.Signals) -> None:
    """Ray puts an exception of its own in the place of what a handler has raised."""
    with _stopping(out):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_says_how_to_go_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    of_ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it deaf to Ctrl-C
    try:
        with pytest.raises(Interrupted, match=f"glassbox tune --resume --out {tmp_path}") as caught:
            search_that_is_stopped(tmp_path, number)
    finally:
        signal.signal(signal.SIGINT, of_ctrl_c)
    assert caught.value.exit_code == code
    assert signal.getsignal(signal.SIGTERM) == before
