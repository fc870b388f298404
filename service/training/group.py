"""Trains a run with a group of Ray workers: plans the group, and restarts it after a worker is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

from pipelines.errors import ConfigError, GlassboxError, TrainingError
from pipelines.input.order import check_lane_workers
from pipelines.remote.errors import StoreError
from pipelines.spec import AugmentSpec
from service.checkpoint_record import list_checkpoints
from service.config import RunConfig
from service.failures import WorkerLostError, find_memory_failure, translate_failure
from service.mirror.output import RunOutput
from service.runs import Run, StoppedError
from service.training.replicas import (
    can_share,
    choose_replicas,
    describe_unused_devices,
    find_even_batches,
)

RESCALE = "rescale"  # reason of a stop that continues with more workers
POLL_SECONDS = 0.5  # interval between checks of the training
RESCALE_CHECK_SECONDS = 15.0  # interval between checks for free resources for more workers
PROBE_SECONDS = 5.0  # time after which a cluster counts as busy
RAY_LIMITS = {  # environment variables of Ray, unless they are set
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # until a lost worker, or the end, is noticed
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # until a silent worker counts as lost
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # until there must be room for the workers
}
NO_ROOM_FIX = "request fewer or smaller workers, or add nodes"


@dataclass(frozen=True)
class WorkerSpec:
    """Number of workers, and resources of each worker.

    Attributes:
        fewest: Minimum number of workers; None for one worker with the largest node: all of its CPUs, and as
            many of its GPUs as can share the batch evenly.
        most: Maximum number of workers; as many are started as fit into the cluster.
        cpus: CPUs of each worker; None for an even share of the cluster.
        gpus: GPUs of each worker; None for an even share of the cluster. They must share the batch evenly.
        restarts: Maximum number of restarts in a row, without progress in between, after a worker was lost.
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
        """Parses the options of the command line.

        Args:
            workers: `N`, or `FEWEST:MOST`.
            cpus: CPUs of each worker.
            gpus: GPUs of each worker.
            restarts: Restarts without progress in between.

        Raises:
            ConfigError: `workers` has another form, or a number is too small.
        """
        _check_minimum("cpus-per-worker", cpus, 1)
        _check_minimum("gpus-per-worker", gpus, 0)
        _check_minimum("restarts", restarts, 0)
        fewest, most = _parse_range(workers) if workers else (None, None)
        return cls(fewest, most, cpus, gpus, 3 if restarts is None else restarts)


def _parse_range(workers: str) -> tuple[int, int]:
    """Parses `N` or `FEWEST:MOST`."""
    first, _, second = workers.partition(":")
    try:
        fewest = int(first)
        most = int(second or first)
    except ValueError:
        raise ConfigError(
            "a number of workers, or the fewest and the most", f"workers={workers}", "write 4, or 1:4"
        ) from None
    if not 1 <= fewest <= most:
        raise ConfigError(
            "at least 1 worker, and the fewest before the most", f"workers={workers}", "write 4, or 1:4"
        )
    return fewest, most


def _check_minimum(option: str, value: int | None, minimum: int) -> None:
    if value is not None and value < minimum:
        raise ConfigError(f"a number of at least {minimum}", f"{option}={value}", "choose a larger one")


@dataclass(frozen=True)
class Group:
    """Workers that fit into the cluster.

    Attributes:
        workers: Number of workers.
        cpus: CPUs of each worker.
        gpus: GPUs of each worker.
    """

    workers: int
    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{self.workers} workers of {self.cpus} CPUs and {self.gpus} GPUs"

    @property
    def resources(self) -> dict[str, float]:
        """Resources of each worker, by the names of Ray."""
        resources = {"CPU": float(self.cpus)}
        if self.gpus:
            resources["GPU"] = float(self.gpus)
        return resources


Nodes = Sequence[dict[str, float]]  # resources by name, for each node


def plan_groups(
    spec: WorkerSpec,
    nodes: Nodes,
    global_batch: int,
    augment: AugmentSpec | None = None,
    lanes: int = 1,
) -> tuple[Group, list[Group]]:
    """Plans the groups that a spec allows on nodes that are otherwise idle.

    Args:
        spec: The requested workers.
        nodes: Resources of every node.
        global_batch: Images per step, which the replicas have to share evenly.
        augment: Augmentation, which may need an even batch on every replica; None for no augmentation.
        lanes: Lanes of the order, which the workers have to divide.

    Returns:
        The smallest allowed group, and all groups that fit, the largest first.

    Raises:
        ConfigError: No allowed number of workers can share the batch and the lanes evenly.
    """
    if spec.fewest is None or spec.most is None:
        return _plan_single(spec, nodes, global_batch, augment)
    gpus = _largest_share(spec.most, nodes, "GPU") if spec.gpus is None else spec.gpus
    most = max(min(spec.most, _count_slots(nodes, 1, gpus)), 1)  # as many as there are GPUs for
    cpus = spec.cpus or max(_largest_share(most, nodes, "CPU", gpus), 1)

    counts = list_worker_counts(spec, lanes)
    even_counts = [count for count in counts if can_share(count * max(gpus, 1), global_batch, augment)]
    if not even_counts:
        raise _build_batch_error(counts[-1] * max(gpus, 1), global_batch, augment)
    slots = _count_slots(nodes, cpus, gpus)
    groups = [Group(count, cpus, gpus) for count in reversed(even_counts) if count <= slots]
    return Group(even_counts[0], cpus, gpus), groups


def list_worker_counts(spec: WorkerSpec, lanes: int) -> list[int]:
    """Lists the requested numbers of workers that divide the lanes, in ascending order.

    Args:
        spec: The requested workers.
        lanes: Lanes of the order (`data.lanes`); a single lane is shared by any number of workers.

    Raises:
        ConfigError: No requested number divides the lanes; the message names the nearest numbers that do.
    """
    requested = range(spec.fewest or 1, (spec.most or 1) + 1)
    counts = [count for count in requested if lanes == 1 or lanes % count == 0]
    if not counts:
        check_lane_workers(lanes, requested[-1])
    return counts


def _plan_single(
    spec: WorkerSpec, nodes: Nodes, global_batch: int, augment: AugmentSpec | None
) -> tuple[Group, list[Group]]:
    """Plans one worker on the largest node, with as many GPUs as can share the batch evenly."""
    node = _find_largest(nodes)
    if spec.gpus is not None:
        gpus = spec.gpus
        if gpus > 1 and not can_share(gpus, global_batch, augment):
            raise _build_batch_error(gpus, global_batch, augment)
    else:
        available = int(node.get("GPU", 0))
        gpus = choose_replicas(available, global_batch, augment) if available else 0
    group = Group(1, spec.cpus or max(int(node.get("CPU", 1)), 1), gpus)
    has_room = _count_slots(nodes, group.cpus, gpus) > 0
    return group, [group] if has_room else []


def _find_largest(nodes: Nodes) -> dict[str, float]:
    """Finds the node with the most GPUs, and of those the one with the most CPUs."""
    return max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})


def describe_unused_gpus(
    spec: WorkerSpec, nodes: Nodes, group: Group, global_batch: int, augment: AugmentSpec | None
) -> str | None:
    """Returns the sentence about GPUs that a single worker leaves unused; None if there are none.

    Args:
        spec: The requested workers.
        nodes: Resources of every node.
        group: The planned worker.
        global_batch: Images per step.
        augment: Augmentation of the run; None for no augmentation.
    """
    is_requested = spec.fewest is not None or spec.gpus is not None
    available = int(_find_largest(nodes).get("GPU", 0))
    if is_requested or not available:
        return None
    return describe_unused_devices("GPUs", group.gpus, available, global_batch, augment)


def _build_batch_error(replicas: int, global_batch: int, augment: AugmentSpec | None) -> ConfigError:
    """Returns the error for a batch that cannot be shared evenly, with the nearest sizes that can."""
    sizes = find_even_batches(replicas, global_batch, augment)
    return ConfigError(
        f"a batch that {replicas} replicas can share evenly",
        f"global_batch={global_batch}",
        f"use {' or '.join(map(str, sizes))}",
    )


def _count_slots(nodes: Nodes, cpus: int, gpus: int) -> int:
    """Counts the workers of a size that nodes can hold."""
    slots = 0
    for node in nodes:
        by_cpus = node.get("CPU", 0) // cpus
        by_gpus = node.get("GPU", 0) // gpus if gpus else by_cpus
        slots += int(min(by_cpus, by_gpus))
    return slots


def _largest_share(workers: int, nodes: Nodes, resource: str, gpus: int = 0) -> int:
    """Finds the largest share of a resource per worker; 1 if it is scarce, 0 if there is none."""
    total = int(sum(node.get(resource, 0) for node in nodes))
    for share in range(total // workers, 1, -1):
        slots = _count_slots(nodes, share, gpus) if resource == "CPU" else _count_slots(nodes, 1, share)
        if slots >= workers:
            return share
    return min(total, 1)


def train_on_cluster(config: RunConfig, output: RunOutput, spec: WorkerSpec) -> None:
    """Trains a run to its end on workers of the connected cluster, and restarts them after one is lost.

    Args:
        config: Configuration of the run.
        output: Where the run is written: a directory that every node sees, or a store.
        spec: The requested workers.

    Raises:
        GlassboxError: A mistake that the user can correct, or too many lost workers.
        StoppedError: A stop was requested.
    """
    run = output.run
    for name, limit in RAY_LIMITS.items():
        os.environ.setdefault(name, limit)
    lost_in_a_row = 0
    attempt = 0
    try:
        while True:
            group = _wait_for_group(config, run, spec)
            _report_unused_gpus(config, run, spec, group)
            _report_open_ports(run, group)
            checkpoints_before = list_checkpoints(run.checkpoints)
            try:
                return _train_once(config, output, spec, group, attempt)
            except StoppedError:
                if run.stop_requested() != RESCALE:
                    raise
                run.notice("there is room for more workers: continuing from the checkpoint")
            except WorkerLostError as error:
                has_progress = list_checkpoints(run.checkpoints) != checkpoints_before
                lost_in_a_row = 1 if has_progress else lost_in_a_row + 1
                if lost_in_a_row > spec.restarts:
                    raise TrainingError(
                        "workers that live to the end", f"error={error}", "continue with --resume"
                    ) from None
                run.notice(f"a worker was lost ({error}): continuing from the last checkpoint")
            attempt += 1
    finally:
        run.remove_ray_storage()


def _report_unused_gpus(config: RunConfig, run: Run, spec: WorkerSpec, group: Group) -> None:
    """Adds a notice about GPUs that cannot share the batch, once per run."""
    note = describe_unused_gpus(spec, _list_nodes(), group, config.global_batch, config.augment)
    if note and note not in run.status().get("notices", []):
        run.notice(note)


def describe_open_ports(group: Group, is_local: bool) -> str | None:
    """Returns the sentence about ports that others can reach; None if there are none on a local Ray.

    TensorFlow 2.21 listens on all addresses, without any authentication, wherever several workers sum their
    gradients, and has no setting for it. On a cluster, the network decides who can connect.

    Args:
        group: The planned workers.
        is_local: Whether Ray was started by this process, on this machine.
    """
    if not is_local or group.workers == 1:
        return None
    return (
        "TensorFlow lets several workers listen on every address of this machine, without a token: "
        "where others can reach it, train with one worker"
    )


def _report_open_ports(run: Run, group: Group) -> None:
    """Adds a notice about ports that others can reach, once per run."""
    note = describe_open_ports(group, is_local=not os.environ.get("RAY_ADDRESS"))
    if note and note not in run.status().get("notices", []):
        run.notice(note)


def _plan_groups(config: RunConfig, spec: WorkerSpec) -> tuple[Group, list[Group]]:
    """Plans the groups of a run on the nodes that are alive."""
    return plan_groups(spec, _list_nodes(), config.global_batch, config.augment, config.data.lanes)


def _list_nodes() -> Nodes:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _wait_for_group(config: RunConfig, run: Run, spec: WorkerSpec) -> Group:
    """Waits until the cluster has room, and returns the largest group that fits.

    Raises:
        ConfigError: The cluster has no room in time; on a single machine, it is too small.
        StoppedError: A stop was requested.
    """
    deadline = time.monotonic() + _start_timeout()
    has_notice = False
    while True:
        if run.stop_requested() == RESCALE:
            run.withdraw_stop()
        if reason := run.stop_requested():
            raise StoppedError(reason)
        smallest, groups = _plan_groups(config, spec)
        # Probing for a group that does not fit makes an autoscaling cluster grow.
        for group in groups or [smallest]:
            if _is_free(group) and groups:
                return group
        nodes = ", ".join(
            f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs" for node in _list_nodes()
        )
        can_grow = bool(os.environ.get("RAY_ADDRESS"))
        if time.monotonic() > deadline or not (groups or can_grow):
            raise ConfigError(f"a cluster with room for {smallest}", f"nodes={nodes}", NO_ROOM_FIX)
        if not has_notice:
            in_use = " but are in use" if groups else ""
            run.notice(f"waiting for room for {smallest}; the nodes have {nodes}{in_use}")
            has_notice = True


def _start_timeout() -> float:
    return float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])


def _is_free(group: Group) -> bool:
    """Tells whether the resources of a group are idle, by a temporary placement group."""
    from ray.util.placement_group import placement_group, remove_placement_group

    probe = placement_group([group.resources] * group.workers)
    try:
        return bool(probe.wait(PROBE_SECONDS))
    finally:
        remove_placement_group(probe)


def _train_once(config: RunConfig, output: RunOutput, spec: WorkerSpec, group: Group, attempt: int) -> None:
    """Runs one group of workers until it ends."""
    store = output.hand_over(attempt)
    try:
        _run_group(config, output.run, spec, group, attempt, store)
    except BaseException:
        with suppress(StoreError):  # what ended the training matters more
            output.take_back()
        raise
    output.take_back()


def _run_group(
    config: RunConfig,
    run: Run,
    spec: WorkerSpec,
    group: Group,
    attempt: int,
    store: dict[str, Any] | None,
) -> None:
    import ray.train
    from ray.train.tensorflow import TensorflowTrainer

    from service.training.worker import train_worker

    settings = {
        "config": config.model_dump(mode="json"),
        "out": str(run.path),
        "store": store,
        "attempt": attempt,
        "launched": time.time(),
    }
    # Restarts are handled here, because Ray would restart without requesting the resources again.
    failures = ray.train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
    trainer = TensorflowTrainer(
        train_worker,
        train_loop_config=settings | asdict(group),
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers, use_gpu=group.gpus > 0, resources_per_worker=group.resources
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{time.time_ns()}", storage_path=str(run.ray_storage), failure_config=failures
        ),
    )
    executor = ThreadPoolExecutor(1, "fit")
    try:
        _supervise(executor.submit(trainer.fit), config, run, spec, group)
    except ray.exceptions.RayTaskError:
        raise  # a bug in Ray's own process
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        cause = find_cause(error, group.workers)
        is_expected = isinstance(cause, GlassboxError | WorkerLostError | StoppedError)
        raise cause from (None if is_expected else error)  # a bug keeps the worker's traceback
    finally:
        executor.shutdown(wait=False)


def _supervise(training: Future[Any], config: RunConfig, run: Run, spec: WorkerSpec, group: Group) -> None:
    """Waits for the end of a training, and stops it for a restart with more workers when there is room.

    Raises:
        TrainingError: The workers do not start.
        Exception: The exception that the training raised.
    """
    start = _WorkerStart(run)
    growth = _GrowthCheck(config, spec, group)
    while not training.done():
        wait_for([training], POLL_SECONDS)
        start.check()
        if growth.is_due() and growth.has_room_twice() and not run.stop_requested():
            run.request_stop(RESCALE)
    training.result()


class _WorkerStart:
    """Checks that the workers start in time: worker 0 then writes its start time into the status."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._began = time.monotonic()
        self._previous_start = self._read()
        self._has_started = False

    def _read(self) -> float | None:
        seconds: float | None = self._run.status().get("timings", {}).get("workers")
        return seconds

    def check(self) -> None:
        """Raises a TrainingError if the workers have not started in time."""
        self._has_started = self._has_started or self._read() != self._previous_start
        seconds = time.monotonic() - self._began
        if not self._has_started and seconds > _start_timeout():
            raise TrainingError(
                "workers that start",
                f"seconds={seconds:.0f} without a sign of them",
                "continue with --resume; GLASSBOX_RAY_LOGS=FOLDER keeps the logs of a local Ray",
            )


class _GrowthCheck:
    """Checks at intervals whether the cluster has room for more workers."""

    def __init__(self, config: RunConfig, spec: WorkerSpec, group: Group) -> None:
        self._config = config
        self._spec = spec
        self._group = group
        self._checked_at = time.monotonic()
        self._times_in_a_row = 0

    def is_due(self) -> bool:
        """Tells whether it is time for a check, and the number of workers may change at all."""
        seconds = time.monotonic() - self._checked_at
        return self._spec.fewest != self._spec.most and seconds > RESCALE_CHECK_SECONDS

    def has_room_twice(self) -> bool:
        """Checks for room; True exactly at the second successful check in a row."""
        self._checked_at = time.monotonic()
        _, groups = _plan_groups(self._config, self._spec)
        more = groups[0].workers - self._group.workers if groups else 0
        has_room = more > 0 and _is_free(Group(more, self._group.cpus, self._group.gpus))
        self._times_in_a_row = self._times_in_a_row + 1 if has_room else 0
        return self._times_in_a_row == 2


def find_cause(error: Exception, workers: int) -> Exception:
    """Finds the cause of the end of a training: an error in a worker, a stop, or the loss of a worker.

    Args:
        error: Error that Ray Train raised.
        workers: Number of workers in the group.

    Returns:
        The most specific error of all workers: a `GlassboxError` before others, a lost worker last.
    """
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    causes = []
    for _, failure in sorted(failures.items()):
        # Ray wraps exceptions of workers.
        causes.append(_translate(getattr(failure, "_base_exc", failure), workers))
    return min(
        causes, key=lambda cause: (isinstance(cause, WorkerLostError), not isinstance(cause, GlassboxError))
    )


def _translate(failure: Exception, workers: int) -> Exception:
    """Turns errors of Ray, TensorFlow and the operating system into errors of this package, if possible."""
    module = type(failure).__module__
    if module.startswith("ray."):
        reason = getattr(failure, "health_check_failure", failure)  # of a failed call to the worker
        if memory_failure := find_memory_failure(str(reason)):
            return memory_failure
        first_line = shorten(str(reason).split("\n")[0], 160).rstrip(".")
        return WorkerLostError(first_line or type(reason).__name__)
    if isinstance(failure, OSError):
        return disk_error(failure)
    return translate_failure(failure, workers)


def disk_error(error: OSError) -> TrainingError:
    """Turns an error of the operating system into one with a fix for the user."""
    reason = error.strerror or str(error)
    if error.filename:
        reason = f"{error.filename}: {error.strerror}"
    return TrainingError(
        "a run directory that can be written to",
        f"error={reason}",
        "free some space there, then continue with --resume",
    )
