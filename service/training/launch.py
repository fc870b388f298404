"""The driver: starts or resumes a run, on a Ray cluster or in this process, and records how it ended."""

from __future__ import annotations

import errno
import platform
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.cluster import ray_session
from pipelines.cpus import count_process_cpus
from pipelines.errors import ConfigError, DataError, Interrupted
from pipelines.input.footprint import describe_window, measure_training
from pipelines.input.mixed_manifest import describe_mix, load_training_manifest
from pipelines.remote.claims import check_cache
from pipelines.remote.errors import StoreError
from pipelines.remote.uri import Location, parse_location
from pipelines.text import print_lines, print_text
from service.config import RunConfig, load_run_config
from service.devices import read_logical_devices
from service.failures import translate_failures
from service.mirror.fetch import read_config
from service.mirror.output import RunOutput, open_output
from service.models import check_name
from service.models.check import check_model
from service.pretrained import IMAGENET, cache_path, check_images, check_weights
from service.runs import Run, StoppedError
from service.training.checks import describe_end
from service.training.group import WorkerSpec, disk_error, list_worker_counts, train_on_cluster
from service.training.progress import format_store, show_progress, summarize_timings
from service.user_code import check_code
from service.version import read_version

TENSORFLOW = ("tensorflow", "tensorflow-cpu")  # distributions with the package `tensorflow`
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def train(
    config: RunConfig, out: str | Location, workers: WorkerSpec | None = None, *, local: bool = False
) -> Run:
    """Trains a new run.

    Args:
        config: Configuration of the run.
        out: Run directory to create, local or on a store.
        workers: Workers on the Ray cluster; None for one.
        local: Whether to train in this process, without Ray.

    Returns:
        The finished run; of one on a store, the local copy.

    Raises:
        GlassboxError: A mistake that the user can correct; if it is in the configuration or the data, no
            directory is left behind.
    """
    _check_workers(workers, local)
    location = parse_location(out)
    check_paths_persist(out=location, data=parse_location(config.shards))
    # Before anything is written, or Ray is started.
    check_can_start(config, in_process=local)
    _check_room(config, workers or WorkerSpec(), local)
    for line in describe_mix(load_training_manifest(config.shards, config.data)):
        print_lines(line)
    notes = check_model(config, in_process=local)
    print_lines(*notes)
    began = time.perf_counter()
    with open_output(location, True, partial(_format_resume, local)) as output:
        run = output.run
        run.check_free()
        with _connect(local):
            run.create(config.model_dump(mode="json"), notes)
            config = load_run_config(run)  # user code is named by its copy in the run
            try:
                _launch(config, output, workers or WorkerSpec(), local, began)
            except (ConfigError, DataError) as error:
                if not run.has_checkpoints() and not isinstance(error, StoreError):
                    output.discard()
                raise
    return run


def resume(out: str | Location, workers: WorkerSpec | None = None, *, local: bool = False) -> Run:
    """Resumes a run from its newest checkpoint, with its configuration as it is now.

    A finished run is left unchanged, unless its configuration has been changed and has epochs left to train.
    A run can be resumed locally or on a cluster, regardless of how it was started.

    Args:
        out: The run directory, local or on a store.
        workers: Workers on the Ray cluster; None for as many as before.
        local: Whether to train in this process, without Ray.

    Returns:
        The finished run; of one on a store, the local copy.

    Raises:
        GlassboxError: A mistake that the user can correct; the checkpoints stay unchanged.
    """
    _check_workers(workers, local)
    began = time.perf_counter()
    with open_output(parse_location(out), False, partial(_format_resume, local)) as output:
        run = output.run
        config = load_run_config(run)
        load_training_manifest(config.shards, config.data)
        status = run.status()
        end = describe_end(config, run.metrics())
        if status.get("state") == "finished" and end:
            output.start()
            print_lines(f"nothing is left to train: {end}")
            return run
        spec = workers or WorkerSpec(**status.get("scale", {}))
        _check_room(config, spec, local)
        with _connect(local):
            _launch(config, output, spec, local, began)
    return run


def train_or_resume(
    config: RunConfig, out: str | Location, workers: WorkerSpec | None = None, *, local: bool = False
) -> Run:
    """Trains a new run, or resumes the one at its place, so that a job can be retried with the same command.

    Args:
        config: Configuration of a new run; that of an existing one stays as it is.
        out: Run directory to create or to resume, local or on a store.
        workers: Workers on the Ray cluster; None for one, or as many as before.
        local: Whether to train in this process, without Ray.

    Returns:
        The finished run; of one on a store, the local copy.

    Raises:
        GlassboxError: See `train` and `resume`; or the run has another preset or shard set.
    """
    recorded = read_config(parse_location(out))
    if recorded is None:
        return train(config, out, workers, local=local)
    requested = {"preset": config.preset, "shards": config.shards}
    found = {name: recorded.get(name) for name in requested}
    if found != requested:
        raise ConfigError(
            f"the training that was started at {out}: {_format_values(found)}",
            _format_values(requested),
            "choose another --out",
        )
    return resume(out, workers, local=local)


def _format_values(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _format_resume(local: bool, name: str) -> str:
    """Returns the command that resumes a run."""
    return shlex.join(["glassbox", "train", "--resume", *(["--local"] if local else []), "--out", name])


def _check_workers(workers: WorkerSpec | None, local: bool) -> None:
    """Checks that no workers are requested for a local training.

    Raises:
        ConfigError: Workers are requested for a local training.
    """
    if local and workers is not None:
        raise ConfigError(
            "either --local, or options of workers on a Ray cluster",
            "--local with --workers, --cpus-per-worker, --gpus-per-worker or --restarts",
            "leave out one of them",
        )


def _check_room(config: RunConfig, spec: WorkerSpec, local: bool) -> None:
    """Checks what can be known before Ray starts: the number of workers, and the budget of the shard cache.

    Raises:
        ConfigError: No requested number of workers divides the lanes, or the budget is too small.
        DataError: A shard set does not exist or is damaged.
    """
    most = 1 if local else list_worker_counts(spec, config.data.lanes)[-1]
    # Another machine has another disk and environment.
    if local or config.data.cache_gb is not None:
        needs = measure_training(config.shards, config.data, config.global_batch, config.seed, most)
        check_cache(needs, config.data.cache_gb, describe_window(config.data))


def _connect(local: bool) -> AbstractContextManager[None]:
    """Connects to Ray for the length of a block, unless the training is local."""
    return nullcontext() if local else ray_session()


def check_can_start(config: RunConfig, in_process: bool = False) -> None:
    """Checks, as far as possible without building the model, that a run can start.

    Weights that Keras publishes are downloaded here if they are not in the cache yet.

    Args:
        config: Configuration of the run.
        in_process: Whether this process is going to train the run; any other needs no GPU.

    Raises:
        GlassboxError: The model, the shard set or the weights do not exist, or the images are too small.
    """
    read_logical_devices()
    check_name(config.model)
    load_training_manifest(config.shards, config.data)
    check_weights(config.model, config.weights)
    check_code(config.model_dump(mode="json"))
    check_images(config.model, (*config.data.image_size, config.data.channels))
    if config.augment and config.augment.size:
        check_images(config.model, (*config.augment.size, config.data.channels), "augment.size")
    if config.weights == IMAGENET and not cache_path(config.model).is_file():
        from service.devices import configure_devices
        from service.models.weights import fetch

        configure_devices(use_gpu=in_process)
        fetch(config.model)


def check_paths_persist(**paths: Location) -> None:
    """Refuses paths inside the copy of the project that a Ray job works in, which is deleted after the job.

    Args:
        paths: Paths by the name of their option; those on a store persist.

    Raises:
        ConfigError: A path is inside that copy; names the first one.
    """
    here = Path.cwd()
    if "runtime_resources" not in here.parts:  # where Ray unpacks --working-dir
        return
    for name, path in paths.items():
        if isinstance(path, Path) and path.absolute().is_relative_to(here):
            raise ConfigError(
                "an absolute path that outlives the job",
                f"{name}={path}",
                f"name a folder that every node sees for --{name}",
            )


def _launch(config: RunConfig, output: RunOutput, spec: WorkerSpec, local: bool, began: float) -> None:
    """Trains a run under its lock, and keeps its status up to date."""
    run = output.run
    with run.hold_lock(), translate_full_disk():
        timings = {} if local else {"ray": time.perf_counter() - began}
        run.withdraw_stop()
        run.update_status(
            state="starting",
            started=current_time(),
            environment=describe_environment(),
            scale=asdict(spec),
            timings=timings,
            reason=None,
            progress=None,
            caches=None,
            finished=None,
            notices=[],
        )
        output.start()
        _train_to_end(config, output, spec, local)
        run.add_timings(total=time.perf_counter() - began)
        run.update_status(state="finished", finished=current_time())
        status = run.status()
        print_text(summarize_timings(status["timings"], config.data, _cache_tier(status)))
        if status.get("store"):
            print_lines(format_store(status["store"]))


def _train_to_end(config: RunConfig, output: RunOutput, spec: WorkerSpec, local: bool) -> None:
    """Trains a run, and records the reason in its status if it ends early."""
    run = output.run
    fix = f"continue with: {_format_resume(local, output.name)}"
    starting = "TensorFlow" if local else "Ray and TensorFlow"
    try:
        with show_progress(run, config.epochs, starting), _stop_on_sigterm(run):
            if local:
                _train_locally(config, run)
            else:
                train_on_cluster(config, output, spec)
    except StoppedError as stop:
        if output.loss:
            _record_end(run, "failed", str(output.loss))
            raise output.loss from None
        _record_end(run, "interrupted", f"stopped by {stop}; --resume continues from the last checkpoint")
        raise Interrupted(f"saved; {fix}", 128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        _record_end(run, "interrupted", "stopped by hand; --resume continues from the last checkpoint")
        raise Interrupted(fix) from None
    except Exception as error:
        _record_end(run, "failed", str(error) or type(error).__name__)
        raise


def _train_locally(config: RunConfig, run: Run) -> None:
    from service.training.worker import train_in_process

    try:
        with translate_failures():
            train_in_process(config, run)
    except OSError as error:
        raise disk_error(error) from None


@contextmanager
def translate_full_disk() -> Iterator[None]:
    """Turns the error of a full or read-only disk into one with a fix for the user."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise disk_error(error) from None


def _record_end(run: Run, state: str, reason: str) -> None:
    with suppress(OSError):  # on a full disk the error itself matters more
        run.update_status(state=state, reason=reason, finished=current_time())


@contextmanager
def _stop_on_sigterm(run: Run) -> Iterator[None]:
    """Makes SIGTERM, which a node sends before it shuts down, request a save and stop, for a block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: run.request_stop("SIGTERM"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cache_tier(status: dict[str, Any]) -> str:
    """Reads the cache tier of the training images from a status: `none`, `host` or `device`."""
    words = str((status.get("caches") or {}).get("train", "cache: none")).split()
    return words[1]


def describe_environment() -> dict[str, Any]:
    """Returns the machine and the versions that a run is trained with, for its status."""
    packages = {"glassbox": read_version()}
    packages |= {name: version(name) for name in ("keras", "numpy", "pyarrow", "ray")}
    for name in TENSORFLOW:
        with suppress(PackageNotFoundError):
            packages["tensorflow"] = version(name)  # from its metadata: an import takes seconds
    return {
        "host": platform.node(),
        "cpus": count_process_cpus(),
        "python": platform.python_version(),
        **packages,
    }


def current_time() -> str:
    """Returns the current time in UTC, ISO 8601 with seconds, for the status of a run."""
    return datetime.now(UTC).isoformat(timespec="seconds")
