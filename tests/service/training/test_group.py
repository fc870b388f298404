"""How many workers a run gets, and what counts as the cause of its end."""

from __future__ import annotations

import errno

import pytest
import tensorflow as tf
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)

from pipelines.errors import ConfigError, DataError, TrainingError
from service.runs import StoppedError
from service.training.group import Group, WorkerLostError, WorkerSpec, find_cause, plan_groups

SMALL, LARGE, GPUS = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 8.0}
HEAD = {"memory": 1e9}  # without CPUs, as clusters have it that keep work off it


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ((None, None, None, None), WorkerSpec()),
        (("4", None, None, None), WorkerSpec(4, 4)),
        (("1:4", 2, 0, 0), WorkerSpec(1, 4, cpus=2, gpus=0, restarts=0)),
        ((None, None, 3, 5), WorkerSpec(gpus=3, restarts=5)),
    ],
)
def test_options(options: tuple[str | None, int | None, int | None, int | None], scale: WorkerSpec) -> None:
    assert WorkerSpec.read(*options) == scale


@pytest.mark.parametrize(
    ("options", "received"),
    [
        (("many", None, None, None), "workers=many"),
        (("0", None, None, None), "workers=0"),
        (("3:2", None, None, None), "workers=3:2"),
        (("1:2:3", None, None, None), "workers=1:2:3"),
        (("2:", None, None, None), None),
        ((":2", None, None, None), "workers=:2"),
        (("2", 0, None, None), "cpus-per-worker=0"),
        (("2", None, -1, None), "gpus-per-worker=-1"),
        ((None, None, None, -1), "restarts=-1"),
    ],
)
def test_wrong_options(
    options: tuple[str | None, int | None, int | None, int | None], received: str | None
) -> None:
    if received is None:
        assert WorkerSpec.read(*options) == WorkerSpec(2, 2)
        return
    with pytest.raises(ConfigError) as refusal:
        WorkerSpec.read(*options)
    assert refusal.value.received == received


@pytest.mark.parametrize(
    ("scale", "nodes", "groups"),
    [
        (WorkerSpec(), [SMALL], [(1, 2, 0)]),
        (WorkerSpec(), [SMALL, LARGE, {"CPU": 64.0}], [(1, 8, 2)]),  # GPUs count before CPUs
        (WorkerSpec(cpus=3, gpus=1), [SMALL, LARGE], [(1, 3, 1)]),
        (WorkerSpec(cpus=3), [SMALL], []),
        (WorkerSpec(), [HEAD], []),
        (WorkerSpec(2, 2), [SMALL], [(2, 1, 0)]),
        (WorkerSpec(1, 1), [SMALL], [(1, 2, 0)]),
        (WorkerSpec(3, 3), [SMALL], []),
        (WorkerSpec(2, 2, cpus=2), [SMALL], []),
        (WorkerSpec(2, 2), [{"CPU": 3.0}, {"CPU": 1.0}], [(2, 1, 0)]),  # not 2 CPUs each: one node has 1
        (WorkerSpec(2, 2), [LARGE], [(2, 4, 1)]),
        (WorkerSpec(2, 2), [GPUS, LARGE], [(2, 8, 4)]),  # both on the first node
        (WorkerSpec(2, 2), [{"CPU": 64.0}, LARGE], [(2, 4, 1)]),  # CPUs of nodes without a GPU are of no use
        (WorkerSpec(3, 3), [LARGE], []),  # three workers cannot have a GPU each
        (WorkerSpec(3, 3, gpus=0), [LARGE], [(3, 2, 0)]),
        (WorkerSpec(1, 4, cpus=1), [SMALL, {"CPU": 1.0}], [(3, 1, 0), (2, 1, 0), (1, 1, 0)]),
        (WorkerSpec(1, 4), [LARGE], [(2, 4, 1), (1, 4, 1)]),  # what 4 workers cannot have, 2 share
        (WorkerSpec(2, 4), [HEAD], []),
    ],
)
def test_groups_there_is_room_for(
    scale: WorkerSpec, nodes: list[dict[str, float]], groups: list[tuple[int, int, int]]
) -> None:
    smallest, found = plan_groups(scale, nodes, global_batch=24)
    assert found == [Group(*group) for group in groups]
    assert not found or smallest == found[-1]


def test_without_room_it_is_known_what_to_wait_for() -> None:
    assert plan_groups(WorkerSpec(2, 4, cpus=3), [SMALL], 8) == (Group(2, 3, 0), [])
    assert plan_groups(WorkerSpec(), [], 8) == (Group(1, 1, 0), [])


def test_only_groups_that_share_the_batch_evenly() -> None:
    four = [{"CPU": 4.0, "GPU": 4.0}]
    assert [group.workers for group in plan_groups(WorkerSpec(1, 4), four, 8)[1]] == [4, 2, 1]
    assert [group.workers for group in plan_groups(WorkerSpec(1, 4), four, 9)[1]] == [3, 1]
    smallest, groups = plan_groups(WorkerSpec(1, 4, cpus=1, gpus=2), four, 8)
    assert (smallest.workers, [group.workers for group in groups]) == (1, [2, 1])


def test_a_batch_that_does_not_divide() -> None:
    with pytest.raises(ConfigError) as refusal:
        plan_groups(WorkerSpec(3, 3), [{"CPU": 8.0}], 8)
    assert refusal.value.received == "global_batch=8"
    assert refusal.value.fix == "use 6 or 9"
    with pytest.raises(ConfigError, match="4 replicas"):
        plan_groups(WorkerSpec(2, 2, gpus=2), [GPUS], 6)


def failed(**failures: Exception) -> WorkerGroupError:
    """As Ray reports failures by rank: those of the worker's function with their traceback."""
    wrapped = {int(rank[1:]): error for rank, error in failures.items()}
    return WorkerGroupError(
        "m",
        {
            r: e if isinstance(e, WorkerHealthCheckFailedError) else UserExceptionWithTraceback(e, "trace")
            for r, e in wrapped.items()
        },
    )


DEAD = WorkerHealthCheckFailedError("a check failed", RayActorError(error_msg="The actor is dead.\n\tpid: 7"))
CUT_OFF = tf.errors.UnavailableError(None, None, "Connection reset")


def test_the_cause_is_the_workers_own_error() -> None:
    mine, bug, stop = DataError("a", "b", "c"), ZeroDivisionError("x"), StoppedError("y")
    assert find_cause(failed(r0=CUT_OFF, r1=mine)) is mine
    assert find_cause(failed(r0=mine, r1=CUT_OFF)) is mine
    assert find_cause(failed(r0=bug, r1=mine)) is mine
    assert find_cause(failed(r0=DEAD, r1=bug)) is bug
    assert find_cause(failed(r0=DEAD, r1=stop)) is stop


def test_a_lost_worker() -> None:
    for error, told in (
        (failed(r1=DEAD), "The actor is dead"),
        (failed(r0=CUT_OFF), "another worker no longer answers it: UnavailableError"),
        (ControllerError(WorkerGroupStartupFailedError("it did not start")), "it did not start"),
    ):
        cause = find_cause(error)
        assert type(cause) is WorkerLostError
        assert str(cause) == told


def test_an_error_of_tensorflow_that_no_other_worker_causes_is_a_bug() -> None:
    bug = tf.errors.InvalidArgumentError(None, None, "shapes")
    assert find_cause(failed(r0=bug, r1=DEAD)) is bug


def test_a_full_disk() -> None:
    for error, told in (
        (OSError(errno.ENOSPC, "No space left", "/run/x"), "/run/x: No space left"),
        (OSError(errno.ENOSPC, "No space left"), "No space left"),
    ):
        cause = find_cause(failed(r0=error))
        assert type(cause) is TrainingError
        assert cause.received == f"error={told}"
