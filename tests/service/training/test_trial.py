"""A trial of a search in this process: everything is written before Ray Tune hears of an epoch, so that it may stop the trial there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from training_samples import config_for, create_run, noise_shards

from service.training import strategy
from service.tuning import trial


@pytest.fixture(autouse=True)
def _threads_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has computed before."""
    monkeypatch.setattr(strategy, "use_cores", lambda count: None)


class StoppedThereError(Exception):
    """What Ray Tune's report does to a trial that it stops."""


def test_a_trial_stopped_in_its_report_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(tmp_path / "run", config_for(noise_shards(tmp_path / "shards"), checkpoint_minutes=None))
    told: list[list[float]] = []

    def tell(history: Sequence[dict[str, float]], until: int) -> None:
        told.append([line["val_accuracy"] for line in history])
        assert run.metrics() == list(history)
        assert (run.checkpoints / f"epoch-{len(history):04d}" / "state.npz").is_file()
        if len(history) == until:
            raise StoppedThereError

    monkeypatch.setattr(trial, "tell", lambda history: tell(history, 2))
    with pytest.raises(StoppedThereError):
        trial.train_trial({"run": str(run.path), "cpus": 1})
    assert [len(history) for history in told] == [1, 2]
    assert run.state() == "interrupted"  # nobody holds it any more
    first = run.metrics()

    told.clear()
    monkeypatch.setattr(trial, "tell", lambda history: tell_again(history))

    def tell_again(history: Sequence[dict[str, float]]) -> None:
        told.append([line["val_accuracy"] for line in history])

    run.update_status(state="finished")  # as the search has it, which stopped it
    trial.train_trial({"run": str(run.path), "cpus": 1})
    assert ([len(history) for history in told], run.metrics()) == ([1, 2], first)

    told.clear()
    run.update_status(state="training")  # as a killed search leaves it
    trial.train_trial({"run": str(run.path), "cpus": 1})
    assert [len(history) for history in told] == [1, 2, 3]  # what it had measured before, then what is new
    assert run.metrics()[:2] == first
    assert run.status()["state"] == "finished"

    told.clear()
    trial.train_trial({"run": str(run.path), "cpus": 1})  # a finished one tells, and does nothing more
    assert [len(history) for history in told] == [1, 2, 3]


def test_what_another_try_would_not_change_ends_a_trial(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", config_for(noise_shards(tmp_path / "shards"), model="no_such_model"))
    trial.train_trial({"run": str(run.path), "cpus": 1})
    assert run.status()["state"] == "failed"
    assert "a known model" in run.status()["reason"]
