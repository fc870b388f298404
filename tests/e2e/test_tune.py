"""`glassbox tune` as a user runs it, while trials are killed and the search is stopped: it goes on, and ends as if nothing had happened."""

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
from fault_lab import HEARING, ROWS, Lab, Training, descendants, difference, laboratory, name_of, steps

from service.runs import Run

pytestmark = pytest.mark.e2e
EPOCHS, BATCH = 3, 4
STEPS = -(-ROWS // BATCH)  # an epoch, of about a second: time enough to be killed in
PRESET = f"""model: linear
data: {{image_size: [12, 12]}}
optimizer: {{name: adam, learning_rate: 1.0e-4}}
global_batch: {BATCH}
epochs: {EPOCHS}
"""
SPACE = "optimizer.learning_rate: {loguniform: [1.0e-13, 1.0e-12]}\n"  # which teaches nothing: the preset is the best


class Search:
    """A search in a folder, as often as it is started.

    Args:
        lab: What it runs on.
        name: Of the directory it makes.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.out = lab, lab.folder / name
        for file, text in (("linear.yaml", PRESET), ("space.yaml", SPACE)):
            (lab.folder / file).write_text(text)

    def start(self, *words: str) -> Training:
        """Starts it, or goes on with it."""
        return Training(
            self.out, [sys.executable, "-c", HEARING, "tune", "--out", self.out, *words], self.lab.env
        )

    def begin(self, trials: int = 4) -> Training:
        """Starts it anew."""
        folder = self.lab.folder
        words = ("--space", folder / "space.yaml", "--data", self.lab.shards, "--trials", trials)
        return self.start(str(folder / "linear.yaml"), *map(str, words))

    @property
    def trials(self) -> list[Run]:
        """What there is of its trials."""
        return [Run(path) for path in sorted((self.out / "trials").glob("trial-*"))]

    def trial(self, number: int) -> Run:
        """One of them."""
        return Run(self.out / "trials" / f"trial-{number:03d}")

    def in_progress(self, root: int) -> Run | None:
        """A trial that has begun an epoch and not ended it, of a process below `root`."""
        return next((run for run in self.trials if steps(run) % STEPS > 5 and holders(run, root)), None)

    def finished(self) -> dict[str, list[bytes]]:
        """What the finished trials have written, by name."""
        done = [run for run in self.trials if run.status().get("state") == "finished"]
        return {
            run.path.name: [
                (run.path / file).read_bytes() for file in ("rows-0.log", "metrics.jsonl", "status.json")
            ]
            for run in done
        }


def holders(run: Run, root: int) -> list[psutil.Process]:
    """The processes below `root` that train a run: they hold its lock."""

    def holds(process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return any(file.path == str(run.path / ".lock") for file in process.open_files())
        return False

    return [
        process for process in descendants(root) if name_of(process).startswith("ray::") and holds(process)
    ]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, because Ray puts sockets into it."""
    with tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def lab(folder: Path) -> Iterator[Lab]:
    """A cluster with room for two trials at a time."""
    with laboratory(folder, 2) as lab:
        yield lab


@pytest.fixture
def alone(folder: Path) -> Iterator[Lab]:
    """No cluster: each search starts a Ray of its own."""
    with laboratory(folder, 0) as lab:
        yield lab


def kill_a_trial(search: Search, training: Training, run: Run, root: int) -> None:
    """Kills the process of a trial after its first epoch, and waits until it is told of."""
    training.wait_for(lambda: steps(run) > STEPS + 20)
    (process,) = holders(run, root)
    process.kill()
    training.wait_for(
        lambda: f"{run.path.name}  was lost: starting again from its last checkpoint" in training.said
    )


def check_ended(search: Search, trials: int) -> None:
    """Fails unless every trial ended well, and the page and the preset are of the best."""
    assert [run.path.name for run in search.trials] == [f"trial-{number:03d}" for number in range(trials)]
    for run in search.trials:
        done, status = len(run.metrics()), run.status()
        early = f"stopped early by the search, after epoch {done} of {EPOCHS}" if done < EPOCHS else None
        assert (status["state"], status.get("reason")) == ("finished", early)
    scores = {run.path.name: max(line["val_accuracy"] for line in run.metrics()) for run in search.trials}
    assert scores.pop("trial-000") > max(scores.values())
    page = (search.out / "index.html").read_text()
    assert "The best trial, trial-000, is right on" in page
    assert all(name in page for name in scores)
    text = (search.out / "best.yaml").read_text()
    assert text.startswith(f"# Found by 'glassbox tune linear': trial-000 of {trials}.")
    assert yaml.safe_load(text) == yaml.safe_load(PRESET)
    assert not (search.out / ".ray").exists()


def test_a_search_with_a_killed_trial_that_is_stopped_and_goes_on(lab: Lab) -> None:
    search = Search(lab, "search")
    (node,) = lab.nodes
    training = search.begin()
    kill_a_trial(search, training, search.trial(0), node.pid)
    training.wait_for(lambda: search.finished() and search.in_progress(node.pid))
    training.process.terminate()
    last = training.ends(128 + signal.SIGTERM).splitlines()[-1]
    assert last == f"glassbox: interrupted: continue with: glassbox tune --resume --out {search.out}"
    finished, interrupted = search.finished(), search.in_progress(node.pid)
    assert 1 <= len(finished) < 4
    assert interrupted is None, "a trial outlives its search"

    search.start("--resume", "--trials", "5").ends()
    check_ended(search, 5)
    assert {name: search.finished()[name] for name in finished} == finished
    assert len(search.trial(0).metrics()) == EPOCHS

    best = lab.train("best", "--preset", search.out / "best.yaml")
    best.ends()
    assert best.run.config() == search.trial(0).config() | {"preset": "best"}
    assert difference(search.trial(0), best.run) < 1e-6  # the killed one is as if nothing had happened to it


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_search_on_a_ray_of_its_own(alone: Lab, number: signal.Signals, code: int) -> None:
    """Stopped by hand, or killed; gone on with by the same words."""
    search = Search(alone, "search")
    training = search.begin()
    training.wait_for(lambda: search.finished() and search.in_progress(training.process.pid))
    training.process.send_signal(number)
    training.ends(code)
    finished = search.finished()
    search.begin().ends()
    check_ended(search, 4)
    assert {name: search.finished()[name] for name in finished} == finished
    for run in search.trials:  # every epoch once, but for the one that was cut short
        done = len(run.metrics()) * STEPS
        assert steps(run) == done if run.path.name in finished else done <= steps(run) < done + STEPS


def test_a_trial_that_cannot_go_on_leaves_the_others_alone(alone: Lab) -> None:
    """It ends without one evaluation, as one that diverges in its first epoch does."""
    search = Search(alone, "search")
    (alone.folder / "space.yaml").write_text("schedule.warmup_epochs: {choice: [98, 99]}\n")
    said = search.begin(trials=2).ends()
    assert [trial.status()["state"] for trial in search.trials] == ["finished", "failed"]
    assert "trial-001  Expected a warmup shorter than the training" in said
    assert "Expected a warmup shorter than the training" in (search.out / "index.html").read_text()


@pytest.mark.slow
def test_a_trial_that_dies_too_often_is_given_up_and_the_search_goes_on(lab: Lab) -> None:
    search = Search(lab, "search")
    (node,) = lab.nodes
    folder = lab.folder
    training = search.start(
        str(folder / "linear.yaml"),
        "--space",
        f"{folder}/space.yaml",
        "--data",
        str(lab.shards),
        "--trials",
        "3",
        "--restarts",
        "0",
    )
    run = search.trial(1)
    training.wait_for(lambda: holders(run, node.pid))
    (process,) = holders(run, node.pid)
    process.kill()
    said = training.ends()
    assert "trial-001  was given up" in said
    assert run.status()["state"] == "failed"
    assert [trial.status()["state"] for trial in search.trials] == ["finished", "failed", "finished"]
