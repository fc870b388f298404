"""Decisions of the driver of a search: how trials end, their resources, and which search can be resumed."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_samples import config_for, noise_shards

from pipelines.errors import ConfigError, Interrupted, TrainingError
from service.runs import Run
from service.tuning import driver
from service.tuning.driver import (
    LOCK,
    _check_same,
    _choose_resources,
    _create_runs,
    _interrupt_on_sigterm,
    build_scheduler,
    tune,
)
from service.tuning.plan import PLAN, Plan
from service.tuning.trial import METRIC, TIME, record_end


def plan(**changes: object) -> Plan:
    settings = {
        "preset": "p",
        "settings": {"model": "linear"},
        "shards": "/s",
        "space": {"epochs": {"int": [1, 3]}},
        "trials": 4,
    }
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
def test_how_a_trial_ends(
    tmp_path: Path, state: str, done: int, error: str, ends: tuple[str, str | None]
) -> None:
    run = Run(tmp_path / "run")
    run.create({"epochs": 3})
    run.write_metrics([{"epoch": n + 1} for n in range(done)])
    run.update_status(state=state, reason="before")
    record_end(run, error)
    assert (run.status()["state"], run.status()["reason"]) == ends


@pytest.mark.parametrize(
    ("nodes", "options", "resources"),
    [
        ([{"CPU": 8.0}], {}, (1, 0)),
        ([{"CPU": 64.0, "GPU": 8.0}], {}, (8, 1)),
        ([{"CPU": 4.0, "GPU": 8.0}], {}, (1, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], {"gpus": 0}, (1, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}], {"gpus": 2, "cpus": 3}, (3, 2)),
        ([{"CPU": 16.0, "GPU": 4.0}], {"gpus": 2}, (8, 2)),
        # The CPUs of the node with the GPUs
        (
            [{"CPU": 64.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 12.0, "GPU": 2.0}],
            {},
            (4, 1),
        ),
    ],
)
def test_resources_of_each_trial(
    nodes: list[dict[str, float]], options: dict[str, int], resources: tuple[int, int]
) -> None:
    assert _choose_resources(plan(**options), nodes) == resources


@pytest.mark.parametrize("options", [{"cpus": 9}, {"gpus": 2}, {"cpus": 5, "gpus": 1}])
def test_more_resources_than_any_node_has(
    options: dict[str, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ConfigError, match=r"room for a trial .*8 CPUs and 0 GPUs, 4 CPUs and 1 GPUs.*--cpus-per-trial"
    ):
        _choose_resources(plan(**options), nodes)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # a cluster may grow
    _choose_resources(plan(**options), nodes)
    assert capsys.readouterr().out.startswith("waiting for a node with room for")


def test_weak_trials_are_stopped_but_none_before_its_grace_period() -> None:
    """One of three at a rung continues; rungs are at 2 and 6 epochs."""
    from ray.tune.schedulers import TrialScheduler

    scheduler = build_scheduler(plan(grace=2, reduction=3), epochs=9)
    trials = {name: SimpleNamespace(trial_id=name) for name in ("fair", "good", "weak")}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)

    def continues(name: str, epoch: int, score: float) -> bool:
        decision = scheduler.on_trial_result(None, trials[name], {TIME: epoch, METRIC: score})
        return bool(decision == TrialScheduler.CONTINUE)

    assert all(continues(name, 1, score) for name, score in (("fair", 0.7), ("weak", 0.1), ("good", 0.9)))
    assert [continues(name, 2, score) for name, score in (("fair", 0.7), ("good", 0.9), ("weak", 0.1))] == [
        True,
        True,
        False,
    ]
    assert continues("fair", 5, 0.1)
    assert [continues(name, 6, score) for name, score in (("good", 0.9), ("fair", 0.8))] == [True, False]
    assert continues("good", 9, 0.1)  # a complete trial is not stopped


def test_only_the_same_search_can_be_resumed(tmp_path: Path) -> None:
    _check_same(plan(), tmp_path / "new")
    _check_same(plan(), tmp_path)
    (tmp_path / LOCK).touch()  # killed before the plan was written
    _check_same(plan(), tmp_path)
    (tmp_path / f".tmp-12345678-{PLAN}").touch()  # or while it was
    _check_same(plan(), tmp_path)
    (tmp_path / PLAN).write_text(plan().model_dump_json())  # JSON is YAML
    for same in (plan(), plan(trials=9), plan(cpus=2, restarts=0)):
        _check_same(same, tmp_path)
    for name, other in {
        "trials": 3,
        "seed": 1,
        "settings": {"model": "small_cnn"},
        "shards": "/t",
        "space": {},
    }.items():
        with pytest.raises(ConfigError, match=f"was begun at .*{name}="):
            _check_same(plan(**{name: other}), tmp_path)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**paths: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(driver, "check_paths_persist", fail)
    with pytest.raises(TrainingError, match="No space left on device"):
        driver.tune(plan(), tmp_path)


def test_an_empty_file_with_the_error_of_a_trial_means_a_full_disk() -> None:
    def fail() -> None:
        raise EOFError("Ran out of input")

    with pytest.raises(OSError, match="No space left on device"):
        driver._fit(SimpleNamespace(fit=fail))


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="or a search"):
        _check_same(plan(), tmp_path)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model": {"choice": ["linaer", "liner"]}}, "a known model"),
        ({"weights": {"choice": ["gone.keras"]}}, "gone.keras .no such file"),
        ({"model": {"choice": ["vgg16"]}}, "32x32 or larger for vgg16"),
        (
            {
                "model": {"choice": ["vgg16"]},
                "data.image_size": {"choice": [[64, 64]]},
                "augment.size": {"choice": [[16, 16], [32, 32]]},
            },
            "augment.size=16x16",
        ),
        ({"optimizer.name": {"choice": ["adamm"]}}, "adamm"),
    ],
)
def test_a_trial_that_cannot_start_is_refused_before_ray_is_started(
    tmp_path: Path, space: dict[str, object], message: str
) -> None:
    shards = noise_shards(tmp_path / "shards", rows=2, held_out=2)
    settings = {"model": "linear", "data": {"image_size": [12, 12]}}
    with pytest.raises(ConfigError, match=message):
        tune(plan(shards=str(shards), settings=settings, space=space), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trial_whose_status_cannot_be_written_is_refused_before_ray_is_started(tmp_path: Path) -> None:
    run = Run(tmp_path / "trial-000")
    run.create({"epochs": 3})
    run.status_path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"status\.json"):
        _create_runs([run], [config_for(tmp_path / "shards")])


def test_a_search_needs_validation_images(tmp_path: Path) -> None:
    shards = noise_shards(tmp_path / "shards", rows=2, held_out=0)
    with pytest.raises(ConfigError, match="with a validation split"):
        tune(plan(shards=str(shards)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def interrupt_search(out: Path, number: signal.Signals) -> None:
    """Imitates Ray, which replaces what a signal handler raises by an exception of its own."""
    with _interrupt_on_sigterm(out):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_search_names_the_command_that_resumes_it(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"glassbox tune --resume --out {tmp_path}") as caught:
        interrupt_search(tmp_path, number)
    assert caught.value.exit_code == code
    assert signal.getsignal(signal.SIGTERM) == before
