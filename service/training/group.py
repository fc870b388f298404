"""The group of workers that trains a run: how many there are, what each gets, and what happens when one is lost."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

from pipelines.errors import ConfigError, GlassboxError, TrainingError
from service.config import RunConfig
from service.runs import Run, StoppedError

RESCALE = "rescale"  # the reason of a stop that goes on with more workers
POLL_SECONDS = 0.5  # between looks at the workers
LOOK_SECONDS = 15.0  # between looks for room for more workers
PROBE_SECONDS = 5.0  # after which a cluster counts as busy
LIMITS = {  # that Ray takes from the environment, where they can be set
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a lost worker, or the end, is seen after so long
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # after which a worker that does not answer counts as lost
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # that room for the workers may take, and then their start
}
LOST = (
    "AbortedError",
    "CancelledError",
    "DeadlineExceededError",
    "UnavailableError",
    "UnknownError",
    "InternalError",
)  # of TensorFlow
FEWER = "ask for fewer or smaller workers, or add nodes"


class WorkerLostError(Exception):
    """A worker died or fell silent, by no fault of the run's."""


@dataclass(frozen=True)
class WorkerSpec:
    """How many workers train, and what each gets.

    Attributes:
        fewest: Workers at least; None for one worker with the whole of the largest node.
        most: Workers at most: as many as there is room for between the two.
        cpus: For each; None for an even share of the cluster.
        gpus: For each; None likewise.
        restarts: How often the workers are started again without getting on in between, after one was lost.
    """

    fewest: int | None = None
    most: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    restarts: int = 3

    @classmethod
    def read(
        cls, workers: str | None, cpus: int | None, gpus: int | None, restarts: int | None
    ) -> WorkerSpec:
        """Reads the options of the command line.

        Raises:
            ConfigError: `workers` is neither N nor N:M, or a number is too small.
        """
        fewest, _, most = (workers or "").partition(":")
        counts: tuple[int, int] | None = None
        try:
            counts = (int(fewest), int(most or fewest)) if workers else None
        except ValueError:
            raise ConfigError(
                "a number of workers, or the fewest and the most", f"workers={workers}", "write 4, or 1:4"
            ) from None
        if counts and not 1 <= counts[0] <= counts[1]:
            raise ConfigError(
                "at least 1 worker, and the fewest before the most", f"workers={workers}", "write 4, or 1:4"
            )
        for name, value, least in (
            ("cpus-per-worker", cpus, 1),
            ("gpus-per-worker", gpus, 0),
            ("restarts", restarts, 0),
        ):
            if value is not None and value < least:
                raise ConfigError(f"a number from {least} up", f"{name}={value}", "choose a larger one")
        lower, upper = counts or (None, None)
        return cls(lower, upper, cpus, gpus, 3 if restarts is None else restarts)


@dataclass(frozen=True)
class Group:
    """Workers that fit into the cluster: how many, and the resources of each."""

    workers: int
    cpus: int
    gpus: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.workers} workers of {self.cpus} CPUs and {self.gpus} GPUs"

    @property
    def resources(self) -> dict[str, float]:
        """Of each worker, as Ray names them."""
        return {"CPU": float(self.cpus)} | ({"GPU": float(self.gpus)} if self.gpus else {})


Nodes = Sequence[dict[str, float]]  # resources by name, node by node


def fitting(scale: WorkerSpec, nodes: Nodes, global_batch: int) -> tuple[Group, list[Group]]:
    """The groups that a scale allows, for the resources that nodes have in all.

    Args:
        scale: What was asked for.
        nodes: Resources of every node.
        global_batch: Images per step, which the replicas have to share evenly.

    Returns:
        The smallest group, and those that there is room for, the largest first.

    Raises:
        ConfigError: No number of workers asked for can share the batch.
    """
    if scale.fewest is None or scale.most is None:
        node = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        gpus = int(node.get("GPU", 0)) if scale.gpus is None else scale.gpus
        one = Group(1, scale.cpus or max(int(node.get("CPU", 1)), 1), gpus)
        return one, [one] * (_room(nodes, one.cpus, gpus) > 0)
    gpus = _share(scale.most, nodes, "GPU") if scale.gpus is None else scale.gpus
    most = max(min(scale.most, _room(nodes, 1, gpus)), 1)  # those there are GPUs for
    cpus = scale.cpus or max(_share(most, nodes, "CPU", gpus), 1)
    even = [n for n in range(scale.fewest, scale.most + 1) if global_batch % (n * max(gpus, 1)) == 0]
    if not even:
        replicas = scale.most * max(gpus, 1)
        near = " or ".join(
            str(size)
            for size in (global_batch // replicas * replicas, (global_batch // replicas + 1) * replicas)
            if size
        )
        raise ConfigError(
            f"a batch that {replicas} replicas can share evenly",
            f"global_batch={global_batch}",
            f"use {near}",
        )
    room = _room(nodes, cpus, gpus)
    return Group(even[0], cpus, gpus), [Group(n, cpus, gpus) for n in reversed(even) if n <= room]


def _room(nodes: Nodes, cpus: int, gpus: int) -> int:
    """How many workers of a size nodes can hold."""
    return sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else float("inf")))
        for node in nodes
    )


def _share(workers: int, nodes: Nodes, name: str, gpus: int = 0) -> int:
    """The most of a resource that so many workers can have each; 1 where there is too little, 0 where there is none."""
    total = int(sum(node.get(name, 0) for node in nodes))
    for each in range(total // workers, 1, -1):
        if _room(nodes, *((each, gpus) if name == "CPU" else (1, each))) >= workers:
            return each
    return min(total, 1)


def train_on_cluster(config: RunConfig, run: Run, scale: WorkerSpec) -> None:
    """Trains a run to its end on the workers of the connected cluster, starting them again where one is lost.

    Raises:
        GlassboxError: What the user can mend.
        StoppedError: The run was asked to stop.
    """
    for name, limit in LIMITS.items():
        os.environ.setdefault(name, limit)
    lost = attempt = 0
    try:
        while True:
            group, before = _roomy(config, run, scale), _progress(run)
            try:
                return _train_once(config, run, scale, group, attempt)
            except StoppedError:
                if run.stop_requested() != RESCALE:
                    raise
                run.notice("there is room for more workers: starting again from the checkpoint")
            except WorkerLostError as error:
                lost = lost + 1 if _progress(run) == before else 1
                if lost > scale.restarts:
                    raise TrainingError(
                        "workers that live to the end", f"error={error}", "continue with --resume"
                    ) from None
                run.notice(f"a worker was lost ({error}): starting again from the last checkpoint")
            attempt += 1
    finally:
        shutil.rmtree(run.path / ".ray", ignore_errors=True)


def _progress(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.glob("epoch-*"))


def _nodes() -> Nodes:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _roomy(config: RunConfig, run: Run, scale: WorkerSpec) -> Group:
    """The largest group that the cluster has room for, as soon as it has.

    Raises:
        ConfigError: It does not get it in time, or, where it is this machine alone, never will.
        StoppedError: The run was asked to stop.
    """
    deadline, told = time.monotonic() + _start_seconds(), False
    while True:
        if run.stop_requested() == RESCALE:
            run.withdraw_stop()
        if reason := run.stop_requested():
            raise StoppedError(reason)
        smallest, groups = fitting(scale, _nodes(), config.global_batch)
        for group in groups or [smallest]:  # asking for what no node has makes a cluster grow that can
            if _is_free(group) and groups:
                return group
        nodes = ", ".join(
            f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs" for node in _nodes()
        )
        if time.monotonic() > deadline or not (groups or os.environ.get("RAY_ADDRESS")):
            raise ConfigError(f"a cluster with room for {smallest}", f"nodes={nodes}", FEWER)
        if not told:
            run.notice(
                f"waiting for room for {smallest}; the nodes have {nodes}{' but are in use' if groups else ''}"
            )
            told = True


def _start_seconds() -> float:
    return float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])


def _is_free(group: Group) -> bool:
    """Whether the cluster has this much that nobody uses; it hears the wish for as long as it takes to find out."""
    from ray.util.placement_group import placement_group, remove_placement_group

    wish = placement_group([group.resources] * group.workers)
    try:
        return bool(wish.wait(PROBE_SECONDS))
    finally:
        remove_placement_group(wish)


def _train_once(config: RunConfig, run: Run, scale: WorkerSpec, group: Group, attempt: int) -> None:
    """One group of workers, until it ends."""
    import ray.train
    from ray.train.tensorflow import TensorflowTrainer

    from service.training.worker import train_worker

    settings = {
        "config": config.model_dump(mode="json"),
        "out": str(run.path),
        "attempt": attempt,
        "launched": time.time(),
    }
    here = {"name": f"train-{time.time_ns()}", "storage_path": str(run.path / ".ray")}
    failures = ray.train.FailureConfig(
        max_failures=0, controller_failure_limit=0, max_preemption_failures=0
    )  # to start again is our part
    trainer = TensorflowTrainer(
        train_worker,
        train_loop_config=settings | asdict(group),
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers, use_gpu=group.gpus > 0, resources_per_worker=group.resources
        ),
        run_config=ray.train.RunConfig(**here, failure_config=failures),
    )
    aside = ThreadPoolExecutor(1, "fit")
    try:
        _look_after(aside.submit(trainer.fit), config, run, scale, group)
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        cause = cause_of(error)
        ours = isinstance(cause, GlassboxError | WorkerLostError | StoppedError)
        raise cause from (None if ours else error)  # a bug keeps the worker's traceback
    finally:
        aside.shutdown(wait=False)


def _look_after(training: Future[Any], config: RunConfig, run: Run, scale: WorkerSpec, group: Group) -> None:
    """Waits for the end of a training, and stops it for a rescale when there is room for more workers at two looks in a row.

    Raises:
        TrainingError: The workers do not start.
        Exception: What the training raised.
    """
    before = run.status().get("timings", {}).get("workers")
    began = looked = time.monotonic()
    started, seen = False, 0
    while not training.done():
        wait_for([training], POLL_SECONDS)
        now = time.monotonic()
        started = (
            started or run.status().get("timings", {}).get("workers") != before
        )  # worker 0 says how long it took
        if not started and now - began > _start_seconds():
            silence = f"seconds={now - began:.0f} without a sign of them"
            raise TrainingError(
                "workers that start", silence, "look into Ray's logs, then continue with --resume"
            )
        if scale.fewest != scale.most and now - looked > LOOK_SECONDS:
            looked, (_, groups) = now, fitting(scale, _nodes(), config.global_batch)
            more = groups[0].workers - group.workers if groups else 0
            seen = seen + 1 if more > 0 and _is_free(Group(more, group.cpus, group.gpus)) else 0
            if seen == 2 and not run.stop_requested():
                run.request_stop(RESCALE)
    training.result()


def cause_of(error: Exception) -> Exception:
    """What really went wrong: a worker's own error, a stop, or that a worker was lost."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    found = [
        _told(getattr(failure, "_base_exc", failure)) for _, failure in sorted(failures.items())
    ]  # Ray wraps what a worker raises
    return min(
        found, key=lambda cause: (isinstance(cause, WorkerLostError), not isinstance(cause, GlassboxError))
    )


def _told(failure: Exception) -> Exception:
    module = type(failure).__module__
    if module.startswith("ray."):
        reason = getattr(failure, "health_check_failure", failure)  # of a failed call to the worker
        return WorkerLostError(shorten(str(reason).split("\n")[0], 160).rstrip(".") or type(reason).__name__)
    if module.startswith("tensorflow.") and type(failure).__name__ in LOST:
        return WorkerLostError(f"another worker no longer answers it: {type(failure).__name__}")
    return disk_error(failure) if isinstance(failure, OSError) else failure


def disk_error(error: OSError) -> TrainingError:
    """An error of the operating system, as the user is told."""
    reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    return TrainingError(
        "a run directory that takes what is written",
        f"error={reason}",
        "make room there, then continue with --resume",
    )
