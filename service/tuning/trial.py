"""One trial of a search, in a process of its own: a run directory like any other, told to Ray Tune epoch by epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pipelines.errors import ConfigError, GlassboxError
from pipelines.spec import check
from service.config import RunConfig
from service.runs import Run, score

TIME, METRIC = "epoch", "score"
ENDED = ("finished", "failed")
PATIENCE_SECONDS = 60.0  # that a process of an earlier search may take to end


def train_trial(settings: dict[str, Any]) -> None:
    """Trains a run from where it stands to its end; what Ray Tune calls, again after the process was killed.

    What the run has already measured is told again first, so that Ray Tune, which forgets it when the search is started again, judges
    the others by it.

    Args:
        settings: `run`, the run directory; `cpus` of the trial.
    """
    run = Run(settings["run"])
    history = run.metrics()
    for epochs in range(1, len(history) + 1):
        tell(history[:epochs])
    if run.status().get("state") in ENDED:
        return
    try:
        _train(run, settings["cpus"])
    except GlassboxError as error:  # nothing that another try would change
        run.update_status(state="failed", reason=str(error))


def _train(run: Run, cpus: int) -> None:
    began = time.perf_counter()
    from service.training.launch import current_time, describe_environment
    from service.training.loop import fit
    from service.training.strategy import use_cores

    use_cores(cpus)  # the others are for other trials
    config = load_run_config(run)
    with _locked(run):
        run.update_status(
            state="starting",
            started=current_time(),
            environment=describe_environment(),
            timings={"imports": time.perf_counter() - began},
        )
        fit(config, run, after_epoch=tell)
        timings = run.status().get("timings", {}) | {"total": time.perf_counter() - began}
        run.update_status(state="finished", finished=current_time(), timings=timings)


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    """The lock of a run, as soon as a process that is about to end has let it go.

    Raises:
        ConfigError: It does not end.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(run.hold_lock())
                break
            except ConfigError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield


def settle(run: Run, error: str = "") -> None:
    """Writes how a trial ended, where it could not do so itself: its process is gone, or Ray Tune stopped it.

    Args:
        run: The trial.
        error: Why it was given up; empty where it was not.
    """
    from service.training.launch import current_time

    if run.status().get("state") in ENDED:
        return
    done, epochs = len(run.metrics()), int(run.config()["epochs"])
    early = f"stopped early by the search, after epoch {done} of {epochs}" if done < epochs else None
    run.update_status(state="failed" if error else "finished", reason=error or early, finished=current_time())


def tell(history: Sequence[dict[str, float]]) -> None:
    """Tells Ray Tune the best validation accuracy so far, in an epoch that has one; does not return where it stops the trial."""
    from ray import tune

    if "val_accuracy" in history[-1]:
        tune.report({TIME: len(history), METRIC: max(score(metrics, history) for metrics in history)})
