"""The Ray cluster that work runs on, the one `RAY_ADDRESS` names, else one of this process's own; and tasks on it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.interrupts import hold_interrupts

ANSWER_SECONDS = 5.0
ROOT = Path(__file__).parent.parent  # of the packages
ENDING_SECONDS = 0.5  # that tasks have to end by themselves before they are cancelled
STOPPING_SECONDS = 60.0  # to wait until tasks that were cancelled have ended
OBJECT_STORE_BYTES = 256 * 2**20  # a local cluster passes work descriptions around, not images


@contextmanager
def ray_session() -> Iterator[None]:
    """Connects to Ray for the length of a block, and disconnects only if it connected.

    A cluster of this process's own takes a token of its own, so that nobody else on the network can
    give it work. An interrupt is answered when Ray is there, a second one at once.

    Raises:
        ConfigError: Nothing answers at `RAY_ADDRESS`, or Ray does not start.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leaves CUDA_VISIBLE_DEVICES as it is
    if (
        not address and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules
    ):  # Ray reads it when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with hold_interrupts():
        import ray

    if ray.is_initialized():
        yield
        return
    _check_answers(address)
    try:
        with hold_interrupts():
            _enter(address)
        yield
    finally:
        ray.shutdown()


def _enter(address: str | None) -> None:
    """Connects to the cluster at an address, or starts one.

    Raises:
        ConfigError: It does not let this process in, or does not come up.
    """
    import ray

    options = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        with chdir(
            ROOT
        ):  # Ray lets workers import from here before anywhere else: they shall import what this process did
            ray.init(
                address=address or "local", logging_level=logging.WARNING, log_to_driver=False, **options
            )
    except Exception as error:
        # Where a part of it does not come up in time, Ray raises a plain RuntimeError or Exception.
        if not isinstance(error, (ConnectionError, ray.exceptions.RayError)) and type(error) not in (
            RuntimeError,
            Exception,
        ):
            raise
        raise _refusal(error, address) from None


def count_cpus() -> int:
    """CPUs of the cluster, at least one."""
    import ray

    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def run_tasks(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    name: Callable[[int], str],
    limit: int | None = None,
    gpus: int = 0,
) -> Generator[tuple[int, Any], None, None]:
    """Runs `function(*call)` for every call as a task of its own; closing the generator cancels what still runs.

    Args:
        function: Runs in a worker process.
        calls: Its arguments.
        name: What to call the task of a place in `calls` in an error message.
        limit: Tasks that are submitted at a time; None for two a CPU: one that waits spares a worker the way to
            the driver and back.
        gpus: For each task.

    Yields:
        Place in `calls` and what the function returned, as tasks end.

    Raises:
        Exception: What the function raised, with a note of the task.
        ConfigError: Its worker died, however often Ray tried again.
    """
    import ray

    task, limit = ray.remote(num_gpus=gpus)(function), limit or 2 * count_cpus()
    running: dict[Any, int] = {}
    following = 0
    try:
        while following < len(calls) or running:
            while following < len(calls) and len(running) < limit:
                running[task.remote(*calls[following])] = following
                following += 1
            (reference, *_), _ = ray.wait(list(running))
            place = running.pop(reference)
            yield place, _result(reference, name(place))
    finally:
        _stop(list(running))


def _stop(tasks: list[Any]) -> None:
    """Ends tasks, and waits until they have ended.

    Ray aborts this process where a task ends in the very moment in which it is cancelled, and an interrupt reaches us
    when one just ended. So those that are about to end may do so first.
    """
    import ray

    if tasks:
        _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=ENDING_SECONDS)
    for reference in reversed(tasks):  # those that wait for a worker first
        ray.cancel(reference)
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=STOPPING_SECONDS)


def _result(reference: Any, name: str) -> Any:
    """What a task returned."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        error.cause.add_note(f"in a worker, at {name}")
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        fix = "see that workers have memory enough, look into Ray's logs, and run the same command again"
        raise ConfigError("workers that live to the end", f"{name}: {reason.rstrip('.')}", fix) from None


def _refusal(error: Exception, address: str | None) -> ConfigError:
    """What is said where Ray cannot be entered, or cannot be started."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    if address:
        fix = "see that it is a Ray of the same version and that RAY_AUTH_TOKEN fits, or unset RAY_ADDRESS"
        return ConfigError("a Ray cluster that lets this process in", f"RAY_ADDRESS={address}: {reason}", fix)
    fix = "run the same command again when the machine is less busy, with room in memory and in /tmp"
    return ConfigError("a Ray that comes up on this machine within 30 seconds", f"ray: {reason}", fix)


def _check_answers(address: str | None) -> None:
    """Asks a `host:port` whether anybody listens, because Ray itself would try for minutes.

    Raises:
        ConfigError: Nobody does.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdigit():  # none, "auto", or a URL, which Ray takes apart
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            "a Ray cluster that answers", f"RAY_ADDRESS={address} ({error})", "start it, or unset RAY_ADDRESS"
        ) from None
