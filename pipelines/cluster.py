"""Connects to the Ray cluster at `RAY_ADDRESS`, or starts one in this process, and runs tasks on it."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.interrupts import hold_interrupts
from pipelines.local_ray import LOGS, open_private_folder, require_token, start_ray
from pipelines.plugins import list_file_modules

ROOT = Path(__file__).parent.parent  # directory that holds the packages
CONNECT_SECONDS = 5.0
GRACE_SECONDS = 0.5  # time in which tasks may end by themselves before they are cancelled
CANCEL_SECONDS = 60.0  # longest wait until cancelled tasks have ended
# Processes that share a GPU: while some read and decode, others compute. Each holds a CUDA context, a model
# and the workspaces of its kernels, some gigabytes in all, so that four of them fit on a GPU of 16 GB.
MAX_TASKS_PER_GPU = 4


@dataclass(frozen=True)
class TaskResources:
    """What a task requests from Ray.

    Attributes:
        cpus: Number of CPUs, which also bounds the threads of the task.
        gpus: Number of GPUs; below 1 for a share of one.
    """

    cpus: int = 1
    gpus: float = 0.0


@contextmanager
def ray_session() -> Iterator[None]:
    """Connects to Ray for the length of a block. An existing connection is reused and left open.

    Nobody else can reach a Ray that this process starts, and nothing of it remains (`local_ray.py`). An
    interrupt takes effect once Ray has started, a second one at once.

    Raises:
        ConfigError: `RAY_ADDRESS` cannot be reached, or Ray does not start.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address == "local":  # Ray's word for none
        address = None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tasks that request no GPU see none: Ray empties their CUDA_VISIBLE_DEVICES. By default, they see all.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if not address:
        require_token()
    with hold_interrupts():
        import ray

    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    place: AbstractContextManager[Path | None] = nullcontext() if address else open_private_folder()
    with place as folder:
        try:
            with hold_interrupts():
                _connect(address, folder)
            yield
        finally:
            ray.shutdown()


def count_cpus() -> int:
    """Returns the number of CPUs of the cluster, at least 1."""
    import ray

    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def list_nodes() -> list[dict[str, float]]:
    """Returns the resources of every node of the cluster, by the names of Ray."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def choose_task_resources(
    nodes: Sequence[Mapping[str, float]], tasks: int, is_shared: bool = False
) -> TaskResources:
    """Chooses what each of some tasks requests that read images and compute on a GPU, if there is one.

    Up to `MAX_TASKS_PER_GPU` tasks share a GPU and the CPUs that belong to it. Without GPUs, a task has one
    CPU. Fewer tasks than that share everything, if nobody else uses the cluster.

    Args:
        nodes: Resources of every node, by the names of Ray.
        tasks: Number of tasks, at least 1.
        is_shared: Whether others may use the cluster, so that larger requests could wait for them.
    """
    gpu_nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpu_nodes:
        gpus = sum(int(node["GPU"]) for node in gpu_nodes)
        cpus_per_gpu = max(min(int(node.get("CPU", 0) // node["GPU"]) for node in gpu_nodes), 1)
        per_gpu = min(MAX_TASKS_PER_GPU, cpus_per_gpu)
        if not is_shared:
            per_gpu = min(per_gpu, math.ceil(tasks / gpus))
        share = math.floor(10_000 / per_gpu) / 10_000  # Ray counts in units of 1/10,000
        return TaskResources(cpus_per_gpu // per_gpu, share)

    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if is_shared or not cpus:
        return TaskResources()
    return TaskResources(max(min(sum(cpus) // tasks, min(cpus)), 1))


def put_object(value: Any) -> Any:
    """Puts a value into Ray's object store and returns the reference to it."""
    import ray

    _register_file_modules()
    return ray.put(value)


def run_tasks(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    describe: Callable[[int], str],
    limit: int | None = None,
    resources: TaskResources = TaskResources(),
) -> Generator[tuple[int, Any], None, None]:
    """Runs `function(*call)` for every call as a Ray task; closing the generator cancels running tasks.

    Args:
        function: Function to run in worker processes.
        calls: Positional arguments of every task.
        describe: Returns the name of a task, by its index in `calls`, for error messages.
        limit: Number of tasks submitted at a time. None for two per CPU: with one task waiting, a worker does
            not sit idle while its result travels to the driver.
        resources: What every task requests.

    Yields:
        Index in `calls` and return value, in the order in which tasks end.

    Raises:
        Exception: The exception that the function raised, with a note that names the task.
        ConfigError: A worker died, and Ray's retries failed as well.
    """
    import ray

    _register_file_modules()
    # By default, Ray starts a process for every task with a GPU, which would load TensorFlow and the model.
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_calls": 0}
    task = ray.remote(**options)(function)
    limit = limit or 2 * count_cpus()
    running: dict[Any, int] = {}
    submitted = 0
    try:
        while submitted < len(calls) or running:
            while submitted < len(calls) and len(running) < limit:
                running[task.remote(*calls[submitted])] = submitted
                submitted += 1
            (reference, *_), _ = ray.wait(list(running))
            index = running.pop(reference)
            yield index, _get_result(reference, describe(index))
    finally:
        _cancel(list(running))


def _register_file_modules() -> None:
    """Makes Ray send classes from a user's file with their code, because workers cannot import the file."""
    import ray

    for module in list_file_modules():
        ray.cloudpickle.register_pickle_by_value(module)


def _connect(address: str | None, folder: Path | None) -> None:
    """Connects to the cluster at an address, or starts one in a folder.

    Raises:
        ConfigError: The cluster refuses the connection, or does not start.
    """
    import ray

    try:
        # Workers look for modules in the current directory first, and must import what this process imported.
        with chdir(ROOT):
            if folder:
                start_ray(folder)
            else:
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except Exception as error:
        # Where a part of Ray does not start in time, it raises a plain RuntimeError or Exception.
        is_plain = type(error) in (RuntimeError, Exception)
        if not is_plain and not isinstance(error, (ConnectionError, ray.exceptions.RayError)):
            raise
        raise _build_connection_error(error, address) from None


def _cancel(tasks: list[Any]) -> None:
    """Cancels tasks and waits until they have ended.

    Ray aborts this process if a task ends at the very moment it is cancelled, and interrupts tend to arrive
    just after a task ended. Tasks that are about to end therefore get a short time to do so.
    """
    import ray

    if not tasks:
        return
    _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=GRACE_SECONDS)
    if not tasks:
        return
    for reference in reversed(tasks):  # those that still wait for a worker first
        ray.cancel(reference)
    ray.wait(tasks, num_returns=len(tasks), timeout=CANCEL_SECONDS)


def _get_result(reference: Any, name: str) -> Any:
    """Returns the result of a task, or raises its error with the name of the task."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        error.cause.add_note(f"in a worker, at {name}")
        raise error.cause from None
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        fix = f"give workers enough memory, and run it again; {LOGS}=FOLDER keeps the logs of a local Ray"
        raise ConfigError("workers that stay alive", f"{name}: {reason.rstrip('.')}", fix) from None


def _build_connection_error(error: Exception, address: str | None) -> ConfigError:
    """Returns the error for a cluster that cannot be reached or started."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0].rstrip(".")
    if address:
        fix = "use a cluster with the same version of Ray and a matching RAY_AUTH_TOKEN, or unset RAY_ADDRESS"
        return ConfigError(
            "a Ray cluster that accepts the connection", f"RAY_ADDRESS={address}: {reason}", fix
        )
    fix = (
        "run the same command again when the machine is less busy, with free memory and free space in /tmp; "
        f"{LOGS}=FOLDER keeps Ray's logs"
    )
    return ConfigError("Ray to start on this machine within 30 seconds", f"ray: {reason}", fix)


def _check_reachable(address: str | None) -> None:
    """Makes sure that a `host:port` accepts connections, because Ray itself would retry for minutes.

    Raises:
        ConfigError: Nothing listens there.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdigit():  # no address, "auto", or a URL, which Ray parses
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            "a Ray cluster that responds",
            f"RAY_ADDRESS={address} ({error})",
            "start it, or unset RAY_ADDRESS",
        ) from None
