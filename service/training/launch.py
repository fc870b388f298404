"""The driver: starts a run on a Ray cluster, shows it, and says how it ended."""

from __future__ import annotations

import os
import platform
import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any

from pipelines.cluster import connected
from pipelines.errors import ConfigError, DataError, GlassboxError, TrainingError
from pipelines.shards.manifest import load_manifest
from pipelines.spec import check
from service.config import RunConfig
from service.runs import Run
from service.training.progress import shown


def train(config: RunConfig, out: str | Path) -> Run:
    """Trains a new run.

    Raises:
        GlassboxError: What the user can mend; where it is the configuration or the data, no directory stays.
    """
    check_lasting(out=Path(out), data=Path(config.shards))
    load_manifest(config.shards)  # before anything is written, or Ray started
    run = Run(out)
    run.check_free()
    began = time.perf_counter()
    with connected():
        run.create(config.model_dump(mode="json"))
        _train_new(config, run, began)
    return run


def _train_new(config: RunConfig, run: Run, began: float) -> None:
    try:
        _launch(config, run, began)
    except (ConfigError, DataError):
        if not run.metrics():
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
                "an absolute path that outlives the job", f"{name}={path}", f"name a folder that every node sees for --{name}"
            )


def resume(out: str | Path) -> Run:
    """Continues a run from its newest checkpoint, with the configuration it was started with; a finished one is left alone.

    Raises:
        GlassboxError: What the user can mend; the checkpoints stay as they were.
    """
    run = Run(out)
    config = check(RunConfig, run.config(), str(run.config_path))
    load_manifest(config.shards)
    if run.status().get("state") == "finished" and len(run.metrics()) >= config.epochs:
        return run
    began = time.perf_counter()
    with connected():
        _launch(config, run, began)
    return run


def _launch(config: RunConfig, run: Run, began: float) -> None:
    with run.locked():
        timings = {"ray_seconds": time.perf_counter() - began}
        fresh = {"reason": None, "progress": None, "caches": None, "finished": None}
        run.update_status(state="starting", started=_now(), environment=_environment(), timings=timings, **fresh)
        _run_to_its_end(config, run)
        timings = run.status().get("timings", {}) | {"total_seconds": time.perf_counter() - began}
        run.update_status(state="finished", finished=_now(), timings=timings)


def _run_to_its_end(config: RunConfig, run: Run) -> None:
    """Trains, and says in the status what stopped it if something did."""
    try:
        with shown(run, config.epochs):
            _fit(config, run)
    except (KeyboardInterrupt, SystemExit):  # Ray turns the one into the other
        run.update_status(state="interrupted", reason="stopped by hand; --resume continues", finished=_now())
        raise KeyboardInterrupt(f"continue with: glassbox train --resume --out {run.path}") from None
    except Exception as error:
        run.update_status(state="failed", reason=str(error) or type(error).__name__, finished=_now())
        raise


def _fit(config: RunConfig, run: Run) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a report costs up to this long
    import ray.train
    from ray.train.tensorflow import TensorflowTrainer

    from service.training.worker import train_worker

    trainer = TensorflowTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "out": str(run.path)},
        scaling_config=_scaling(),
        run_config=ray.train.RunConfig(name="train", storage_path=str(run.path / ".ray")),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        cause = _cause(error)
        raise cause from (None if isinstance(cause, GlassboxError) else error)  # a bug keeps the worker's traceback


def _scaling() -> Any:
    """One worker with the whole of the largest node."""
    import ray
    import ray.train

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    node = max(nodes, key=lambda resources: (resources.get("GPU", 0), resources.get("CPU", 0)))
    cpus, gpus = int(node.get("CPU", 1)), int(node.get("GPU", 0))
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return ray.train.ScalingConfig(num_workers=1, use_gpu=gpus > 0, resources_per_worker=resources)


def _cause(error: Exception) -> Exception:
    """What really went wrong: a worker's own error, or that a worker was lost."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    first: Exception = failures[min(failures)]
    first = getattr(first, "_base_exc", first)  # Ray wraps what a worker raises
    if isinstance(first, GlassboxError):
        return first
    if isinstance(first, OSError):
        reason = f"{first.filename}: {first.strerror}" if first.filename else str(first)
        return TrainingError("a disk that takes what is written", f"error={reason}", "make room, then continue with --resume")
    if type(first).__module__.startswith("ray."):
        return TrainingError("a worker that lives to the end", f"error={shorten(str(first), 200)}", "continue with --resume")
    return first


def _environment() -> dict[str, Any]:
    packages = {name: version(name) for name in ("glassbox", "keras", "numpy", "pyarrow", "ray")}
    return {"host": platform.node(), "cpus": os.cpu_count(), "python": platform.python_version(), **packages}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
