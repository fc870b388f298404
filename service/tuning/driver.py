"""`glassbox tune`: the trials of a search on a Ray cluster, with Ray Tune and ASHA, and what came of them."""

from __future__ import annotations

import logging
import os
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
from pipelines.shards.manifest import load_manifest
from pipelines.storage import lock_file, write_atomically
from service.config import RunConfig
from service.runs import Run
from service.training.launch import check_can_start, check_paths_persist
from service.tuning.plan import PLAN, Plan, planned
from service.tuning.trial import METRIC, TIME, train_trial

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

BEST, TRIALS, RAY, LOCK = "best.yaml", "trials", ".ray", ".lock"


def tune(plan: Plan, out: str | Path) -> Path:
    """Searches, or goes on with a search that was begun with the same words, and writes the leaderboard and the best preset.

    Args:
        plan: What to search, and how.
        out: The directory to make.

    Returns:
        The path of the leaderboard.

    Raises:
        ConfigError: The space does not fit the preset, or `out` holds something else.
        TrainingError: No trial came to a result.
        Interrupted: It was stopped; the same command goes on.
    """
    out = Path(out).absolute()
    check_paths_persist(out=out, data=Path(plan.shards))
    if "validation" not in load_manifest(plan.shards).splits:
        raise ConfigError(
            "a shard set with a validation split, to judge the trials by",
            f"data={plan.shards}",
            "build one with --validation",
        )
    configs = plan.search().configs(plan.trials)
    _check_same(plan, out)
    _check_trials(configs)
    out.mkdir(parents=True, exist_ok=True)
    refusal = ConfigError("a search that nobody is running", f"out={out}", "wait until it ends, or stop it")
    with lock_file(out / LOCK, refusal):
        write_atomically(out / PLAN, yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False))
        runs = _runs(out, configs)
        with ray_session(), _stopping(out):  # Ray sets a handler of its own
            _search(plan, runs, out / RAY)
    return _conclude(plan, out, runs)


def _check_same(plan: Plan, out: Path) -> None:
    if not out.exists() or (out.is_dir() and all(path.name == LOCK for path in out.iterdir())):
        return
    if not (out / PLAN).is_file():
        raise ConfigError(
            "an output that does not exist yet, or a search",
            f"out={out}",
            "choose another --out or remove it",
        )
    before = planned(out)
    for name in Plan.model_fields:
        old, new = getattr(before, name), getattr(plan, name)
        if old != new and name in Plan.FIXED and not (name == "trials" and new > old):
            raise ConfigError(
                f"the search that was begun at {out}, {name}={old}",
                f"{name}={new}",
                "use the same words, or another --out",
            )


def _check_trials(configs: Sequence[RunConfig]) -> None:
    from service.models import builder_of  # it takes Keras, which the leaderboard does too

    checked = {
        (c.model, c.weights, str(c.data), c.augment and c.augment.size): c for c in configs
    }  # mostly the same for all
    for config in checked.values():
        builder_of(config.model)
        check_can_start(config)


def _runs(out: Path, configs: Sequence[RunConfig]) -> list[Run]:
    """A run directory for each trial."""
    runs = [Run(out / TRIALS / f"trial-{number:03d}") for number in range(len(configs))]
    for run, config in zip(runs, configs, strict=True):
        if not run.config_path.is_file():
            shutil.rmtree(run.path, ignore_errors=True)  # left by a killed process before it was whole
            run.create(config.model_dump(mode="json"))
    return runs


def _search(plan: Plan, runs: Sequence[Run], storage: Path) -> None:
    """Runs all trials to their ends.

    Ray Tune's own snapshots are not used to go on: they leave out what ASHA has seen. Every trial tells that anew.
    """
    import ray
    from ray import tune as ray_tune

    from service.tuning.watch import Watch

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `Watch` says what happens
    cpus, gpus = _share(plan, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    epochs = max(int(run.config()["epochs"]) for run in runs)
    paths = [str(run.path) for run in runs]
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(train_trial, {"cpu": cpus, "gpu": gpus}),
        param_space={"run": ray_tune.grid_search(paths), "cpus": cpus},
        tune_config=ray_tune.TuneConfig(scheduler=judge(plan, epochs)),
        run_config=ray_tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(storage),
            failure_config=ray_tune.FailureConfig(max_failures=plan.restarts),
            callbacks=[Watch(epochs)],
            verbose=0,
        ),
    )
    print(
        f"{len(runs)} trials of at most {epochs} epochs, with {cpus} CPUs and {gpus} GPUs each; TensorFlow takes a while to come up"
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def judge(plan: Plan, epochs: int) -> TrialScheduler:
    """Decides after every epoch of a trial whether it goes on: ASHA (Li et al., 2020).

    Args:
        plan: What to search, and how.
        epochs: Of a whole trial.
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


def _share(plan: Plan, nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """CPUs and GPUs of each trial: as asked for, else one GPU with an even share of its node's CPUs, or one CPU where there is no GPU.

    Args:
        plan: What to search, and how.
        nodes: What each node of the cluster has, by name.

    Raises:
        ConfigError: This machine never has room for that; a cluster may grow.
    """
    shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    gpus = min(len(shares), 1) if plan.gpus is None else plan.gpus
    cpus = plan.cpus or max(gpus * min(shares, default=0), 1)
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        there = ", ".join(
            f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs" for node in nodes
        )
        if not os.environ.get("RAY_ADDRESS"):
            fix = "lower --cpus-per-trial or --gpus-per-trial"
            raise ConfigError(f"room for a trial of {cpus} CPUs and {gpus} GPUs", f"nodes={there}", fix)
        print(
            f"waiting for a node with room for {cpus} CPUs and {gpus} GPUs; the nodes have {there}",
            flush=True,
        )
    return cpus, gpus


def _conclude(plan: Plan, out: Path, runs: Sequence[Run]) -> Path:
    """The leaderboard, and the best preset."""
    from service.report.pages.leaderboard import Trial, find_best, format_table, rank_trials, write_leaderboard

    search = plan.search()
    trials = rank_trials([Trial.from_run(run, search.draw(number)) for number, run in enumerate(runs)])
    images = load_manifest(plan.shards).get_split("validation").rows
    page = write_leaderboard(out, plan.preset, trials, search.space, images)
    print(format_table(trials, [dimension.key for dimension in search.space]))
    best = find_best(trials)
    if best is None:
        received = f"{trials[0].run.path.name}: {trials[0].note or 'none'}"
        raise TrainingError("a trial that comes to a result", received, "see the status.json of each trial")
    settings = search.settings_with(best.values)
    head = [
        f"Found by 'glassbox tune {plan.preset}': {best.run.path.name} of {plan.trials}.",
        f"Expect {best.score:.1%} of the {images:,} validation images in epoch {best.best_epoch}; they chose it: a little less of others.",
    ]
    text = "".join(f"# {line}\n" for line in head) + yaml.safe_dump(settings, sort_keys=False)
    write_atomically(out / BEST, text)
    return page


@contextmanager
def _stopping(out: Path) -> Iterator[None]:
    """Within the block SIGTERM ends the search as Ctrl-C does: each trial keeps its finished epochs."""
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ray Tune's own waits for every trial
    os.environ.setdefault(
        "TUNE_DISABLE_STRICT_METRIC_CHECKING", "1"
    )  # a trial that fails before its first evaluation has no score
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the run directories hold everything
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # it prints tables whatever the verbosity
    received = [int(signal.SIGINT)]  # Ray raises a KeyboardInterrupt of its own for whatever a handler raises

    def stop(number: int, frame: Any) -> None:
        received[0] = number
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"continue with: glassbox tune --resume --out {out}", 128 + received[0]) from None
    finally:
        signal.signal(signal.SIGTERM, before)
