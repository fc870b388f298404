"""A trial of a search in this process: each epoch is written before it is reported to Ray Tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from training_samples import config_for, create_run, noise_shards

from service.tuning import trial


class TrialStoppedError(Exception):
    """Raised by the report of a trial that Ray Tune stops."""


@pytest.mark.heavy
def test_a_trial_stopped_in_its_report_continues_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tmp_path / "run", config_for(noise_shards(tmp_path / "shards"), checkpoint_minutes=None))
    reports: list[list[float]] = []

    def report(history: Sequence[dict[str, float]], until: int) -> None:
        reports.append([line["val_accuracy"] for line in history])
        assert run.metrics() == list(history)
        assert (run.checkpoints / f"epoch-{len(history):04d}" / "state.npz").is_file()
        if len(history) == until:
            raise TrialStoppedError

    monkeypatch.setattr(trial, "report_epoch", lambda history: report(history, 2))
    with pytest.raises(TrialStoppedError):
        trial.train_trial({"run": str(run.path)})
    assert [len(history) for history in reports] == [1, 2]
    assert run.state() == "interrupted"  # no process trains this trial any more
    first = run.metrics()

    reports.clear()
    monkeypatch.setattr(trial, "report_epoch", lambda history: report_again(history))

    def report_again(history: Sequence[dict[str, float]]) -> None:
        reports.append([line["val_accuracy"] for line in history])

    run.update_status(state="finished")  # as the search that stopped it records
    trial.train_trial({"run": str(run.path)})
    assert ([len(history) for history in reports], run.metrics()) == ([1, 2], first)

    reports.clear()
    run.update_status(state="training")  # as after a search was killed
    trial.train_trial({"run": str(run.path)})
    assert [len(history) for history in reports] == [1, 2, 3]  # the old metrics, then the new ones
    assert run.metrics()[:2] == first
    assert run.status()["state"] == "finished"

    reports.clear()
    trial.train_trial({"run": str(run.path)})  # a finished trial only reports
    assert [len(history) for history in reports] == [1, 2, 3]


@pytest.mark.heavy
def test_an_error_of_the_configuration_ends_a_trial(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", config_for(noise_shards(tmp_path / "shards"), model="no_such_model"))
    trial.train_trial({"run": str(run.path)})
    assert run.status()["state"] == "failed"
    assert "a known model" in run.status()["reason"]
