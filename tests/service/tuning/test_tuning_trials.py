"""Results of a search: scores and outcomes of its trials, the leaderboard, and the best preset."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray import tune as ray_tune
from training_samples import noise_shards

from pipelines.errors import ConfigError, TrainingError
from pipelines.storage import lock_file
from service.runs import Run
from service.tuning import trial
from service.tuning.driver import BEST, LOCK, _write_results, tune
from service.tuning.plan import PLAN, Plan
from service.tuning.watch import TrialLog

KILLED = (
    "2 worker(s) were killed due to the node running low on memory.\nTop 10 memory users: PID\n"
    "Refer to the documentation on how to address the out of memory issue."
)
LOST = "ray.exceptions.ActorDiedError: The actor died.\n  File x\nIt was killed."


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A search of three trials on a small shard set."""
    settings = {
        "model": "linear",
        "data": {"image_size": [12, 12]},
        "optimizer": {"name": "sgd", "learning_rate": 0.5},
    }
    space = {"optimizer.learning_rate": {"choice": [0.25, 0.125]}, "epochs": {"int": [3, 3000]}}
    shards = str(noise_shards(tmp_path / "shards", rows=4, held_out=10))
    return Plan(preset="mine", settings=settings, shards=shards, space=space, trials=3, seed=4)


def create_trials(plan: Plan, out: Path, scores: list[list[float]], state: str = "finished") -> list[Run]:
    """Creates trials with these validation accuracies per epoch."""
    runs = [Run(out / "trials" / f"trial-{number:03d}") for number in range(len(scores))]
    for run, config, accuracies in zip(runs, plan.build_search().configs(len(runs)), scores, strict=True):
        run.create(config.model_dump(mode="json"))
        run.write_metrics([{"epoch": n, "val_accuracy": value} for n, value in enumerate(accuracies, 1)])
        run.update_status(state=state, reason="Expected better." if state == "failed" else None)
    return runs


def test_the_best_trial_becomes_a_preset(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = create_trials(plan, tmp_path, [[0.5, 0.6], [0.4], [0.7, 0.8, 0.7]])
    page = _write_results(plan, tmp_path, runs)
    text = (tmp_path / BEST).read_text()
    values = plan.build_search().draw(2)
    assert values["epochs"] > 3
    assert yaml.safe_load(text) == plan.settings | {
        "optimizer": {"name": "sgd", "learning_rate": values["optimizer.learning_rate"]},
        "epochs": values["epochs"],
    }
    found, expected = text.splitlines()[:2]
    assert found == "# Found by 'glassbox tune mine': trial-002 of 3."
    assert expected.startswith("# Expect 80.0% of the 10 validation images in epoch 2,")
    assert "The best trial, trial-002, reaches a validation accuracy of 80.0%" in page.read_text()
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "trial-002",
        "trial-000",
        "trial-001",
    ]


def test_a_search_without_a_result_has_a_page_and_no_preset(plan: Plan, tmp_path: Path) -> None:
    runs = create_trials(plan, tmp_path, [[], [0.5]], state="failed")
    with pytest.raises(
        TrainingError, match=r"a trial with a result\. Received: trial-001: Expected better\."
    ):
        _write_results(plan, tmp_path, runs)
    assert (tmp_path / "index.html").is_file()
    assert not (tmp_path / BEST).exists()


def test_one_search_at_a_time(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "search"
    out.mkdir()
    with (
        lock_file(out / LOCK, ConfigError("a", "b", "c")),
        pytest.raises(ConfigError, match="that nobody is running"),
    ):
        tune(plan, out)
    assert not (out / PLAN).exists()


def test_evaluated_epochs_report_the_best_score_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[dict[str, float]] = []
    monkeypatch.setattr(ray_tune, "report", reported.append)
    history = [
        {"accuracy": 1.0, **({"val_accuracy": value} if value else {})} for value in (0.5, 0.8, None, 0.6)
    ]
    for epochs in range(1, 5):
        trial.report_epoch(history[:epochs])
    assert reported == [{"epoch": 1, "score": 0.5}, {"epoch": 2, "score": 0.8}, {"epoch": 4, "score": 0.8}]


def test_a_trial_waits_for_an_earlier_process_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    earlier = ExitStack()
    earlier.enter_context(run.hold_lock())
    monkeypatch.setattr(trial, "LOCK_TIMEOUT_SECONDS", 0.0)
    with pytest.raises(ConfigError, match="nobody is training"), trial._wait_for_lock(run):
        pass

    monkeypatch.setattr(trial, "LOCK_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(trial.time, "sleep", lambda seconds: earlier.close())  # it ends while the trial waits
    with trial._wait_for_lock(run), pytest.raises(ConfigError), run.hold_lock():
        pass


def test_messages_about_trials(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, early, lost = create_trials(plan, tmp_path, [[0.5, 0.6], [0.4], [0.7]], state="training")
    good.update_status(state="finished")
    log = TrialLog(2)

    def ray_trial(run: Run, error: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(config={"run": str(run.path)}, get_error=lambda: error)

    for _ in range(2):  # again after a restart
        log.on_trial_result(1, [], ray_trial(good), {"epoch": 1, "score": 0.5})
    log.on_trial_result(2, [], ray_trial(good), {"done": True})
    log.on_trial_complete(2, [], ray_trial(good))
    log.on_trial_complete(2, [], ray_trial(early))
    log.on_trial_recover(3, [], ray_trial(lost))
    log.on_trial_error(3, [], ray_trial(lost, LOST))
    assert capsys.readouterr().out.splitlines() == [
        "trial-000  epoch 1/2  best validation accuracy 0.5000",
        "trial-000  finished",
        f"trial-001  stopped early by the search, after epoch 1 of {early.config()['epochs']}",
        "trial-002  was lost: continuing from its last checkpoint",
        "trial-002  failed: ray.exceptions.ActorDiedError: The actor died.",
    ]
    assert [run.status()["state"] for run in (good, early, lost)] == ["finished", "finished", "failed"]
    early.update_status(state="training")
    log.on_trial_error(3, [], ray_trial(early, " "))
    assert early.status()["reason"] == "its process died"
    early.update_status(state="training")
    log.on_trial_error(3, [], ray_trial(early, KILLED))
    assert early.status()["reason"].startswith(
        "Expected enough memory on this machine. Received: error=2 worker(s)"
    )


def test_a_trial_whose_end_cannot_be_recorded_does_not_end_the_search(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Run, **changes: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (run,) = create_trials(plan, tmp_path, [[0.5]], state="training")
    monkeypatch.setattr(Run, "update_status", fail)
    failed = SimpleNamespace(config={"run": str(run.path)}, get_error=lambda: "OSError: [Errno 28] No space")
    TrialLog(2).on_trial_error(1, [], failed)
    TrialLog(2).on_trial_complete(1, [], failed)
    assert capsys.readouterr().out.splitlines()[0] == "trial-000  failed: OSError: [Errno 28] No space"
