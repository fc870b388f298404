"""The driver: starts a run on a Ray cluster, shows it, and says how it ended."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.cluster import connected
from pipelines.errors import ConfigError, DataError, Interrupted
from pipelines.shards.manifest import load_manifest
from pipelines.spec import check
from service.config import RunConfig
from service.pretrained import IMAGENET, cached, check_images, check_origin
from service.runs import Run, StoppedError
from service.training.group import WorkerSpec, disk_error, train_on_cluster
from service.training.progress import shown, where_the_time_went

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # a disk that takes no more


def train(config: RunConfig, out: str | Path, scale: WorkerSpec | None = None) -> Run:
    """Trains a new run.

    Args:
        config: What to train.
        out: The run directory to make.
        scale: On how many workers; None for one.

    Raises:
        GlassboxError: What the user can mend; where it is the configuration or the data, no directory stays.
    """
    check_lasting(out=Path(out), data=Path(config.shards))
    check_beginning(config)  # before anything is written, or Ray started
    run = Run(out)
    run.check_free()
    began = time.perf_counter()
    with connected():
        run.create(config.model_dump(mode="json"))
        _train_new(config, run, scale or WorkerSpec(), began)
    return run


def check_beginning(config: RunConfig) -> None:
    """Makes sure, as far as that can be known without building the model, that a run can begin.

    Weights that Keras publishes are downloaded here, once, if they are not there yet.

    Raises:
        GlassboxError: The shard set or the weights are not there, or the images are too small for the model.
    """
    load_manifest(config.shards)
    check_origin(config.model, config.weights)
    check_images(config.model, (*config.data.image_size, config.data.channels))
    if config.augment and config.augment.size:
        check_images(config.model, (*config.augment.size, config.data.channels), "augment.size")
    if config.weights == IMAGENET and not cached(config.model).is_file():
        from service.models.weights import fetch

        fetch(config.model)


def _train_new(config: RunConfig, run: Run, scale: WorkerSpec, began: float) -> None:
    try:
        _launch(config, run, scale, began)
    except (ConfigError, DataError):
        if not any(run.checkpoints.iterdir()):
            shutil.rmtree(run.path)
        raise


def check_lasting(**paths: Path) -> None:
    """Refuses paths inside the copy of the project that a Ray job works in: it goes when the job ends.

    Raises:
        ConfigError: Names the first such path.
    """
    here = Path.cwd()
    if "runtime_resources" not in here.parts:  # where Ray unpacks --working-dir
        return
    for name, path in paths.items():
        if path.absolute().is_relative_to(here):
            raise ConfigError(
                "an absolute path that outlives the job",
                f"{name}={path}",
                f"name a folder that every node sees for --{name}",
            )


def resume(out: str | Path, scale: WorkerSpec | None = None) -> Run:
    """Continues a run from its newest checkpoint, with the configuration it was started with; a finished one is left alone.

    Args:
        out: The run directory.
        scale: On how many workers; None for as many as before.

    Raises:
        GlassboxError: What the user can mend; the checkpoints stay as they were.
    """
    run = Run(out)
    config = check(RunConfig, run.config(), str(run.config_path))
    load_manifest(config.shards)
    status = run.status()
    if status.get("state") == "finished" and (config.early_stopping or len(run.metrics()) >= config.epochs):
        return run
    scale = scale or WorkerSpec(**status.get("scale", {}))
    began = time.perf_counter()
    with connected():
        _launch(config, run, scale, began)
    return run


def _launch(config: RunConfig, run: Run, scale: WorkerSpec, began: float) -> None:
    with run.locked(), _told_of_full_disk():
        timings = {"ray": time.perf_counter() - began}
        fresh: dict[str, Any] = {
            "reason": None,
            "progress": None,
            "caches": None,
            "finished": None,
            "notices": [],
        }
        run.withdraw_stop()
        run.update_status(
            state="starting",
            started=now(),
            environment=environment(),
            scale=asdict(scale),
            timings=timings,
            **fresh,
        )
        _train_to_the_end(config, run, scale)
        timings = run.status().get("timings", {}) | {"total": time.perf_counter() - began}
        run.update_status(state="finished", finished=now(), timings=timings)
        print(where_the_time_went(timings))


@contextmanager
def _told_of_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_error(error) from None


def _train_to_the_end(config: RunConfig, run: Run, scale: WorkerSpec) -> None:
    """Trains, and says in the status what stopped it if something did."""
    fix = f"continue with: glassbox train --resume --out {run.path}"
    try:
        with shown(run, config.epochs), _stopped_by_sigterm(run):
            train_on_cluster(config, run, scale)
    except StoppedError as stop:
        _ended(run, "interrupted", f"stopped by {stop}; --resume continues from the last checkpoint")
        raise Interrupted(f"saved; {fix}", 128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        _ended(run, "interrupted", "stopped by hand; --resume continues from the last checkpoint")
        raise Interrupted(fix) from None
    except Exception as error:
        _ended(run, "failed", str(error) or type(error).__name__)
        raise


def _ended(run: Run, state: str, reason: str) -> None:
    with suppress(OSError):  # on a full disk the error itself matters more
        run.update_status(state=state, reason=reason, finished=now())


@contextmanager
def _stopped_by_sigterm(run: Run) -> Iterator[None]:
    """Within the block, SIGTERM asks the workers to save and to end, as a node that is about to go away does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: run.request_stop("SIGTERM"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def environment() -> dict[str, Any]:
    """What a run is trained on, for its status."""
    packages = {name: version(name) for name in ("glassbox", "keras", "numpy", "pyarrow", "ray")}
    return {"host": platform.node(), "cpus": os.cpu_count(), "python": platform.python_version(), **packages}


def now() -> str:
    """The time, for the status of a run."""
    return datetime.now(UTC).isoformat(timespec="seconds")
