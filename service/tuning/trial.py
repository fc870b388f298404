"""One trial of a search, in a separate process: a run that reports every epoch to Ray Tune."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pipelines.errors import ConfigError, GlassboxError
from service.config import load_run_config
from service.runs import Run, score

TIME = "epoch"
METRIC = "score"
END_STATES = ("finished", "failed")
LOCK_TIMEOUT_SECONDS = 60.0  # within which a process of an earlier search has to end


def train_trial(settings: dict[str, Any]) -> None:
    """Trains a run from its newest checkpoint to its end.

    Ray Tune calls this function, also after the process was killed. Finished epochs are reported first,
    because Ray Tune compares trials by them and forgets them when the search is restarted.

    Args:
        settings: `run`, the run directory.
    """
    run = Run(settings["run"])
    history = run.metrics()
    for epochs in range(1, len(history) + 1):
        report_epoch(history[:epochs])
    if run.status().get("state") in END_STATES:
        return
    try:
        _train(run)
    except GlassboxError as error:  # another attempt would end in the same way
        run.update_status(state="failed", reason=str(error))


def _train(run: Run) -> None:
    began = time.perf_counter()
    from service.devices import configure_devices
    from service.training.launch import current_time, describe_environment
    from service.training.loop import fit

    config = load_run_config(run)
    configure_devices(deterministic=config.deterministic, notify=run.notice)
    with _wait_for_lock(run):
        run.update_status(
            state="starting",
            started=current_time(),
            environment=describe_environment(),
            timings={"imports": time.perf_counter() - began},
        )
        fit(config, run, after_epoch=report_epoch)
        run.add_timings(total=time.perf_counter() - began)
        run.update_status(state="finished", finished=current_time())


@contextmanager
def _wait_for_lock(run: Run) -> Iterator[None]:
    """Holds the lock of a run, after a process that is about to end has released it.

    Raises:
        ConfigError: The other process does not end.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
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


def record_end(run: Run, error: str = "") -> None:
    """Records the end of a trial that could not record it itself: its process died, or Ray Tune stopped it.

    Args:
        run: Run of the trial.
        error: Reason why the trial failed; empty if it did not fail.
    """
    from service.training.launch import current_time

    if run.status().get("state") in END_STATES:
        return
    finished_epochs = len(run.metrics())
    epochs = int(run.config()["epochs"])
    reason = None
    if error:
        reason = error
    elif finished_epochs < epochs:
        reason = f"stopped early by the search, after epoch {finished_epochs} of {epochs}"
    run.update_status(state="failed" if error else "finished", reason=reason, finished=current_time())


def report_epoch(history: Sequence[dict[str, float]]) -> None:
    """Reports the best validation accuracy so far to Ray Tune, after an epoch that was evaluated.

    Does not return if Ray Tune stops the trial.

    Args:
        history: Metrics of all finished epochs.
    """
    from ray import tune

    if "val_accuracy" in history[-1]:
        best = max(score(metrics, history) for metrics in history)
        tune.report({TIME: len(history), METRIC: best})
