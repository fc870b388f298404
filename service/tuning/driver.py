"""The driver of `glassbox tune`: runs the trials of a search with Ray Tune and ASHA, and writes results."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.cluster import ray_session
from pipelines.errors import ConfigError, Interrupted, TrainingError
from pipelines.remote.uri import is_uri, parse_location
from pipelines.shards.manifest import load_manifest
from pipelines.storage import lock_file, write_atomically
from pipelines.text import print_lines, print_text
from service.config import RunConfig
from service.models.check import check_model
from service.recipe import format_epochs
from service.runs import Run
from service.training.launch import check_can_start, check_paths_persist, translate_full_disk
from service.tuning.plan import PLAN, Plan, read_plan
from service.tuning.trial import END_STATES, METRIC, TIME, train_trial

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

BEST = "best.yaml"
TRIALS = "trials"
RAY = ".ray"
LOCK = ".lock"
UNFINISHED_PLANS = f".tmp-*-{PLAN}"  # left by searches that were killed while they wrote their plan


@translate_full_disk()
def tune(plan: Plan, out: str | Path) -> Path:
    """Runs a search, or resumes one with the same plan, and writes the leaderboard and the best preset.

    Args:
        plan: Search space and options.
        out: Directory of the search, created if it is missing.

    Returns:
        Path of the leaderboard.

    Raises:
        ConfigError: The space does not fit the preset, or `out` is not the directory of this search.
        TrainingError: No trial has a result, or the disk is full.
        Interrupted: The search was interrupted; the same command resumes it.
    """
    if is_uri(out):
        raise ConfigError(
            "a local folder, or one that all nodes share, for a search",
            f"out={out}",
            "search there, then copy best.yaml and the trials to the store",
        )
    out = Path(out).absolute()
    check_paths_persist(out=out, data=parse_location(plan.shards))
    if "validation" not in load_manifest(plan.shards).splits:
        raise ConfigError(
            "a shard set with a validation split, to judge the trials by",
            f"data={plan.shards}",
            "build one with --validation",
        )
    configs = plan.build_search().configs(plan.trials)
    _check_same(plan, out)
    runs = [Run(out / TRIALS / f"trial-{number:03d}") for number in range(len(configs))]
    _check_trials([config for run, config in zip(runs, configs, strict=True) if not run.exists()])
    out.mkdir(parents=True, exist_ok=True)
    refusal = ConfigError("a search that nobody is running", f"out={out}", "wait until it ends, or stop it")
    with lock_file(out / LOCK, refusal):
        for path in out.glob(UNFINISHED_PLANS):
            path.unlink()
        write_atomically(out / PLAN, yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False))
        _create_runs(runs, configs)
        with ray_session(), _interrupt_on_sigterm(out):  # inside, because Ray installs its own handler
            _run_trials(plan, runs, out / RAY)
    return _write_results(plan, out, runs)


def _check_same(plan: Plan, out: Path) -> None:
    """Checks that a directory is new, or that of a search with the same plan.

    Raises:
        ConfigError: The directory holds something else, or a different search.
    """
    if not out.exists() or (out.is_dir() and all(map(_is_unstarted, out.iterdir()))):
        return
    if not (out / PLAN).is_file():
        raise ConfigError(
            "an output that does not exist yet, or a search",
            f"out={out}",
            "choose another --out or remove it",
        )
    stored_plan = read_plan(out)
    for name in Plan.FIXED:
        stored_value = getattr(stored_plan, name)
        value = getattr(plan, name)
        is_extended = name == "trials" and value > stored_value
        if stored_value != value and not is_extended:
            raise ConfigError(
                f"the search that was begun at {out}, {name}={stored_value}",
                f"{name}={value}",
                "use the same options, or another --out",
            )


def _is_unstarted(path: Path) -> bool:
    """Tells whether a file is one that a search leaves when it is killed before its plan is written."""
    return path.name == LOCK or path.match(UNFINISHED_PLANS)


def _check_trials(configs: Sequence[RunConfig]) -> None:
    """Checks that the trials can start, once per combination of model and images."""
    distinct = {}
    for config in configs:
        size = config.augment and config.augment.size
        distinct[(config.model, config.weights, config.custom_objects, str(config.data), size)] = config
    for config in distinct.values():
        check_can_start(config)
        check_model(config)


def _create_runs(runs: Sequence[Run], configs: Sequence[RunConfig]) -> None:
    """Creates the run directories that do not exist yet.

    Raises:
        OSError: The status of a trial that has not ended cannot be written. Its process could not tell.
    """
    for run, config in zip(runs, configs, strict=True):
        if not run.exists():
            # A process may have been killed before the directory was complete.
            shutil.rmtree(run.path, ignore_errors=True)
            run.create(config.model_dump(mode="json"))
        elif run.status().get("state") not in END_STATES:
            run.update_status()


def _run_trials(plan: Plan, runs: Sequence[Run], storage: Path) -> None:
    """Runs all trials to their ends.

    Snapshots of Ray Tune are not used to resume, because they do not contain the state of ASHA. Instead,
    every trial reports its finished epochs again.
    """
    import ray
    from ray import tune as ray_tune

    from service.tuning.watch import TrialLog

    # `TrialLog` prints what happens. The snapshots, which nothing reads, may fail on a full disk.
    for name in ("ray.tune", "ray.train._internal.syncer"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    cpus, gpus = _choose_resources(plan, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    epochs = max(int(run.config()["epochs"]) for run in runs)
    paths = [str(run.path) for run in runs]
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(train_trial, {"cpu": cpus, "gpu": gpus}),
        param_space={"run": ray_tune.grid_search(paths)},
        tune_config=ray_tune.TuneConfig(scheduler=build_scheduler(plan, epochs)),
        run_config=ray_tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(storage),
            failure_config=ray_tune.FailureConfig(max_failures=plan.restarts),
            callbacks=[TrialLog(epochs)],
            verbose=0,
        ),
    )
    resources = f"{cpus} CPUs and {gpus} GPUs each"
    print_lines(
        f"{len(runs)} trials of at most {format_epochs(epochs)}, with {resources}; "
        "TensorFlow takes a while to start"
    )
    try:
        _fit(tuner)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _fit(tuner: Any) -> None:
    """Runs a tuner.

    Raises:
        OSError: The disk is full.
    """
    try:
        tuner.fit()
    except EOFError:  # Ray's file with the error of a trial is empty: there was no space for it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def build_scheduler(plan: Plan, epochs: int) -> TrialScheduler:
    """Builds the scheduler that stops weak trials after an epoch: ASHA (Li et al., 2020).

    Args:
        plan: Grace period and reduction factor.
        epochs: Epochs of a complete trial.
    """
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr=TIME,
        metric=METRIC,
        mode="max",
        max_t=epochs,
        grace_period=min(plan.grace, epochs),
        reduction_factor=plan.reduction,
        stop_last_trials=False,
    )


def _choose_resources(plan: Plan, nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """Chooses CPUs and GPUs of each trial.

    The default is one GPU with an even share of its node's CPUs, or one CPU if there is no GPU.

    Args:
        plan: Options of the search.
        nodes: Resources of each node of the cluster, by name.

    Raises:
        ConfigError: This machine is too small for a trial. On a cluster, which may grow, a message is printed
            instead.
    """
    cpus_per_gpu = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    gpus = min(len(cpus_per_gpu), 1) if plan.gpus is None else plan.gpus
    cpus = plan.cpus or max(gpus * min(cpus_per_gpu, default=0), 1)
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return cpus, gpus

    available = ", ".join(
        f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs" for node in nodes
    )
    if not os.environ.get("RAY_ADDRESS"):
        fix = "lower --cpus-per-trial or --gpus-per-trial"
        raise ConfigError(f"room for a trial of {cpus} CPUs and {gpus} GPUs", f"nodes={available}", fix)
    print_lines(
        f"waiting for a node with room for {cpus} CPUs and {gpus} GPUs; the nodes have {available}",
    )
    return cpus, gpus


def _write_results(plan: Plan, out: Path, runs: Sequence[Run]) -> Path:
    """Writes the leaderboard and the best preset, and returns the path of the leaderboard."""
    from service.report.pages.leaderboard import (
        Trial,
        find_best,
        format_table,
        rank_trials,
        write_leaderboard,
    )

    search = plan.build_search()
    trials = rank_trials([Trial.from_run(run, search.draw(number)) for number, run in enumerate(runs)])
    images = load_manifest(plan.shards).get_split("validation").rows
    page = write_leaderboard(out, plan.preset, trials, search.space, images)
    print_text(format_table(trials, [dimension.key for dimension in search.space]))
    best = find_best(trials)
    if best is None:
        received = f"{trials[0].run.path.name}: {trials[0].note.rstrip('.') or 'none'}"
        raise TrainingError("a trial with a result", received, "see the status.json of each trial")
    comment = [
        f"Found by 'glassbox tune {plan.preset}': {best.run.path.name} of {plan.trials}.",
        f"Expect {best.score:.1%} of the {images:,} validation images in epoch {best.best_epoch}, and a "
        "little less of other images, because these chose it.",
    ]
    header = "".join(f"# {line}\n" for line in comment)
    settings = yaml.safe_dump(search.settings_with(best.values), sort_keys=False)
    write_atomically(out / BEST, header + settings)
    return page


@contextmanager
def _interrupt_on_sigterm(out: Path) -> Iterator[None]:
    """Makes SIGTERM end the search like Ctrl-C; each trial keeps its finished epochs.

    Raises:
        Interrupted: The search was interrupted by SIGTERM or Ctrl-C.
    """
    environment = {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # that of Ray Tune waits for every trial
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails before an evaluation has no score
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run directories hold everything
        "RAY_AIR_NEW_OUTPUT": "0",  # prints tables whatever the verbosity
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    received = [int(signal.SIGINT)]  # Ray replaces exceptions of a handler by its own KeyboardInterrupt

    def interrupt(number: int, frame: Any) -> None:
        received[0] = number
        raise KeyboardInterrupt

    previous_handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["glassbox", "tune", "--resume", "--out", str(out)])
        raise Interrupted(f"continue with: {command}", 128 + received[0]) from None
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
