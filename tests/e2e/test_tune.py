"""`glassbox tune` whose trials are killed and which is stopped itself: resumed, it ends as if undisturbed."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from fault_lab import (
    GLASSBOX,
    ROWS,
    Lab,
    Training,
    compute_difference,
    count_steps,
    find_descendants,
    open_lab,
    read_title,
)

from service.runs import Run

pytestmark = pytest.mark.e2e
EPOCHS = 40  # some seconds: long enough to be killed in
BATCH = 4
STEPS = -(-ROWS // BATCH)  # of an epoch
PRESET = f"""model: linear
data: {{image_size: [12, 12]}}
optimizer: {{name: adam, learning_rate: 1.0e-4}}
global_batch: {BATCH}
epochs: {EPOCHS}
"""
# Nothing is learned at these rates, so the preset is the best trial.
SPACE = "optimizer.learning_rate: {loguniform: [1.0e-13, 1.0e-12]}\n"


class Search:
    """A search, which may be started several times.

    Args:
        lab: Cluster that it runs on.
        name: Name of the directory that it writes.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.out = lab.folder / name
        self._preset = lab.folder / "linear.yaml"
        self._space = lab.folder / "space.yaml"
        self._preset.write_text(PRESET)
        self._space.write_text(SPACE)

    def begin(self, *options: str, trials: int = 4, space: str = SPACE) -> Training:
        """Starts it with a preset and a search space."""
        self._space.write_text(space)
        words = (self._preset, "--space", self._space, "--data", self.lab.shards, "--trials", trials)
        return self.start(*map(str, words), *options)

    def resume(self, *options: str) -> Training:
        """Starts it again with its own settings."""
        return self.start("--resume", *options)

    def start(self, *words: str) -> Training:
        command = [sys.executable, "-c", GLASSBOX, "tune", "--out", self.out, *words]
        return Training(self.out, command, self.lab.env)

    def list_trials(self) -> list[Run]:
        return [Run(path) for path in sorted((self.out / "trials").glob("trial-*"))]

    def get_trial(self, number: int) -> Run:
        return Run(self.out / "trials" / f"trial-{number:03d}")

    def find_trial_in_progress(self, root: int) -> Run | None:
        """Finds a trial in the middle of an epoch whose process is below `root`."""
        for run in self.list_trials():
            if count_steps(run) % STEPS and find_trainers(run, root):
                return run
        return None

    def read_finished(self) -> dict[str, list[bytes]]:
        """Reads what the finished trials have written, by name."""
        contents = {}
        for run in self.list_trials():
            if run.status().get("state") == "finished":
                files = ("rows-0.log", "metrics.jsonl", "status.json")
                contents[run.path.name] = [(run.path / file).read_bytes() for file in files]
        return contents


def find_trainers(run: Run, root: int) -> list[psutil.Process]:
    """Finds the processes below `root` that train a run: they hold its lock."""

    def holds_lock(process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return any(file.path == str(run.path / ".lock") for file in process.open_files())
        return False

    workers = [process for process in find_descendants(root) if read_title(process).startswith("ray::")]
    return [process for process in workers if holds_lock(process)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A cluster with room for two trials, in a folder with a short path, because Ray puts sockets into it."""
    with (
        tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as folder,
        open_lab(Path(folder), 2) as lab,
    ):
        yield lab


@pytest.fixture
def lab_without_cluster() -> Iterator[Lab]:
    """No cluster: each search starts its own Ray."""
    with (
        tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as folder,
        open_lab(Path(folder), 0) as lab,
    ):
        yield lab


def kill_trial(training: Training, run: Run, root: int) -> None:
    """Kills the process of a trial after its first epoch, and waits for the message about it."""
    training.wait_for(lambda: count_steps(run) > STEPS)
    (process,) = find_trainers(run, root)
    process.kill()
    message = f"{run.path.name}  was lost: continuing from its last checkpoint"
    training.wait_for(lambda: message in training.output)


def check_results(search: Search, trials: int) -> None:
    """Checks that every trial finished, and that page and preset are of the best."""
    runs = search.list_trials()
    assert [run.path.name for run in runs] == [f"trial-{number:03d}" for number in range(trials)]
    for run in runs:
        epochs = len(run.metrics())
        status = run.status()
        reason = f"stopped early by the search, after epoch {epochs} of {EPOCHS}" if epochs < EPOCHS else None
        assert (status["state"], status.get("reason")) == ("finished", reason)
    scores = {run.path.name: max(line["val_accuracy"] for line in run.metrics()) for run in runs}
    assert scores.pop("trial-000") > max(scores.values())
    page = (search.out / "index.html").read_text()
    assert "The best trial, trial-000, reaches a validation accuracy" in page
    assert all(name in page for name in scores)
    preset = (search.out / "best.yaml").read_text()
    assert preset.startswith(f"# Found by 'glassbox tune linear': trial-000 of {trials}.")
    assert yaml.safe_load(preset) == yaml.safe_load(PRESET)
    assert not (search.out / ".ray").exists()


@pytest.mark.slow
def test_a_search_with_a_killed_trial_is_stopped_and_resumed(lab: Lab) -> None:
    search = Search(lab, "search")
    (node,) = lab.nodes
    training = search.begin()
    kill_trial(training, search.get_trial(0), node.pid)
    training.wait_for(lambda: search.read_finished() and search.find_trial_in_progress(node.pid))
    training.process.terminate()
    last_line = training.wait_for_exit(128 + signal.SIGTERM).splitlines()[-1]
    command = f"glassbox tune --resume --out {search.out}"
    assert last_line == f"glassbox: interrupted: continue with: {command}"
    finished = search.read_finished()
    assert 1 <= len(finished) < 4
    assert search.find_trial_in_progress(node.pid) is None, "a trial outlives its search"

    search.resume("--trials", "5").wait_for_exit()
    check_results(search, 5)
    assert {name: search.read_finished()[name] for name in finished} == finished
    first = search.get_trial(0)
    assert len(first.metrics()) == EPOCHS

    best = lab.train("best", "--preset", search.out / "best.yaml")
    best.wait_for_exit()
    assert best.run.config() == first.config() | {"preset": "best"}
    assert compute_difference(first, best.run) < 1e-6  # as if the trial had not been killed


def test_a_trial_that_fails_leaves_the_others_alone(lab: Lab) -> None:
    """It ends without one evaluation, like a trial that diverges in its first epoch."""
    search = Search(lab, "failing")
    training = search.begin(trials=2, space="schedule.warmup_epochs: {choice: [98, 99]}\n")
    output = training.wait_for_exit()
    assert [trial.status()["state"] for trial in search.list_trials()] == ["finished", "failed"]
    assert "trial-001  Expected a warmup shorter than the training" in output
    assert "Expected a warmup shorter than the training" in (search.out / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_search_with_its_own_ray(lab_without_cluster: Lab, number: signal.Signals, code: int) -> None:
    """Interrupted or killed, and resumed by the same command."""
    search = Search(lab_without_cluster, "search")
    training = search.begin()
    root = training.process.pid
    training.wait_for(lambda: search.read_finished() and search.find_trial_in_progress(root))
    training.process.send_signal(number)
    training.wait_for_exit(code)
    finished = search.read_finished()
    search.begin().wait_for_exit()
    check_results(search, 4)
    assert {name: search.read_finished()[name] for name in finished} == finished
    for run in search.list_trials():  # every epoch once, except the interrupted one
        steps = len(run.metrics()) * STEPS
        if run.path.name in finished:
            assert count_steps(run) == steps
        else:
            assert steps <= count_steps(run) < steps + STEPS


@pytest.mark.slow
def test_a_trial_that_dies_too_often_is_given_up(lab: Lab) -> None:
    search = Search(lab, "restarts")
    (node,) = lab.nodes
    training = search.begin("--restarts", "0", trials=3)
    run = search.get_trial(1)
    training.wait_for(lambda: find_trainers(run, node.pid))
    (process,) = find_trainers(run, node.pid)
    process.kill()
    output = training.wait_for_exit()
    assert "trial-001  was given up" in output
    assert run.status()["state"] == "failed"
    assert [trial.status()["state"] for trial in search.list_trials()] == ["finished", "failed", "finished"]
