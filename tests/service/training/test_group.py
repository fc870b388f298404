"""How many workers a run gets, and which error counts as the cause of its end."""

from __future__ import annotations

import errno

import pytest
import tensorflow as tf
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)

from pipelines.errors import ConfigError, DataError, TrainingError
from service.failures import WorkerLostError
from service.runs import StoppedError
from service.training.group import (
    Group,
    WorkerSpec,
    describe_open_ports,
    describe_unused_gpus,
    find_cause,
    plan_groups,
)

SMALL = {"CPU": 2.0}
LARGE = {"CPU": 8.0, "GPU": 2.0}
GPUS = {"CPU": 16.0, "GPU": 8.0}
HEAD = {"memory": 1e9}  # a head node without CPUs, so that no work runs there
Options = tuple[str | None, int | None, int | None, int | None]


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ((None, None, None, None), WorkerSpec()),
        (("4", None, None, None), WorkerSpec(4, 4)),
        (("2:", None, None, None), WorkerSpec(2, 2)),
        (("1:4", 2, 0, 0), WorkerSpec(1, 4, cpus=2, gpus=0, restarts=0)),
        ((None, None, 3, 5), WorkerSpec(gpus=3, restarts=5)),
    ],
)
def test_options_of_the_command_line(options: Options, spec: WorkerSpec) -> None:
    assert WorkerSpec.read(*options) == spec


@pytest.mark.parametrize(
    ("options", "received"),
    [
        (("many", None, None, None), "workers=many"),
        (("0", None, None, None), "workers=0"),
        (("3:2", None, None, None), "workers=3:2"),
        (("1:2:3", None, None, None), "workers=1:2:3"),
        ((":2", None, None, None), "workers=:2"),
        (("2", 0, None, None), "cpus-per-worker=0"),
        (("2", None, -1, None), "gpus-per-worker=-1"),
        ((None, None, None, -1), "restarts=-1"),
    ],
)
def test_wrong_options_are_refused(options: Options, received: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        WorkerSpec.read(*options)
    assert refusal.value.received == received


@pytest.mark.parametrize(
    ("spec", "nodes", "groups"),
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
        (WorkerSpec(2, 2), [{"CPU": 64.0}, LARGE], [(2, 4, 1)]),  # CPUs of nodes without a GPU do not help
        (WorkerSpec(), [{"CPU": 16.0, "GPU": 5.0}], [(1, 16, 4)]),  # 5 GPUs cannot share 24 images
        (WorkerSpec(3, 3), [LARGE], []),  # three workers cannot have a GPU each
        (WorkerSpec(3, 3, gpus=0), [LARGE], [(3, 2, 0)]),
        (WorkerSpec(1, 4, cpus=1), [SMALL, {"CPU": 1.0}], [(3, 1, 0), (2, 1, 0), (1, 1, 0)]),
        (WorkerSpec(1, 4), [LARGE], [(2, 4, 1), (1, 4, 1)]),  # what 4 workers cannot have, 2 share
        (WorkerSpec(2, 4), [HEAD], []),
    ],
)
def test_groups_that_fit_on_the_nodes_are_planned(
    spec: WorkerSpec, nodes: list[dict[str, float]], groups: list[tuple[int, int, int]]
) -> None:
    smallest, planned = plan_groups(spec, nodes, global_batch=24)
    assert planned == [Group(*group) for group in groups]
    assert not planned or smallest == planned[-1]


def test_without_room_only_the_smallest_group_is_returned() -> None:
    assert plan_groups(WorkerSpec(2, 4, cpus=3), [SMALL], 8) == (Group(2, 3, 0), [])
    assert plan_groups(WorkerSpec(), [], 8) == (Group(1, 1, 0), [])


def test_only_groups_that_share_the_batch_evenly_are_planned() -> None:
    four = [{"CPU": 4.0, "GPU": 4.0}]
    assert [group.workers for group in plan_groups(WorkerSpec(1, 4), four, 8)[1]] == [4, 2, 1]
    assert [group.workers for group in plan_groups(WorkerSpec(1, 4), four, 9)[1]] == [3, 1]
    smallest, groups = plan_groups(WorkerSpec(1, 4, cpus=1, gpus=2), four, 8)
    assert (smallest.workers, [group.workers for group in groups]) == (1, [2, 1])


def test_a_batch_that_no_group_can_share_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        plan_groups(WorkerSpec(3, 3), [{"CPU": 8.0}], 8)
    assert refusal.value.received == "global_batch=8"
    assert refusal.value.fix == "use 6 or 9"
    with pytest.raises(ConfigError, match="4 replicas"):
        plan_groups(WorkerSpec(2, 2, gpus=2), [GPUS], 6)
    with pytest.raises(ConfigError, match=r"5 replicas.*use 20 or 25"):  # requested, not the largest possible
        plan_groups(WorkerSpec(gpus=5), [GPUS], 24)


def test_only_groups_that_divide_the_lanes_are_planned() -> None:
    nodes = [{"CPU": 6.0}]
    _, groups = plan_groups(WorkerSpec(1, 6), nodes, 12, lanes=4)
    assert [group.workers for group in groups] == [4, 2, 1]
    smallest, groups = plan_groups(WorkerSpec(3, 6), nodes, 12, lanes=4)
    assert (smallest.workers, [group.workers for group in groups]) == (4, [4])
    assert [group.workers for group in plan_groups(WorkerSpec(), nodes, 12, lanes=4)[1]] == [1]
    assert len(plan_groups(WorkerSpec(1, 6), nodes, 12, lanes=1)[1]) == 5  # those that divide the batch
    with pytest.raises(ConfigError) as refusal:
        plan_groups(WorkerSpec(3, 3), nodes, 12, lanes=4)
    assert refusal.value.received == "workers=3 lanes=4"
    assert refusal.value.fix == "use 2 or 4 workers, or 3 or 6 lanes"


def test_gpus_that_one_worker_does_not_use_are_reported() -> None:
    group, _ = plan_groups(WorkerSpec(), [GPUS], 20)
    assert group.gpus == 5
    note = describe_unused_gpus(WorkerSpec(), [GPUS], group, 20, None)
    assert note == (
        "training on 5 of 8 GPUs, because more cannot share a batch of 20 evenly; "
        "global_batch=16 or 24 would use all 8"
    )
    assert describe_unused_gpus(WorkerSpec(gpus=4), [GPUS], Group(1, 16, 4), 20, None) is None
    assert describe_unused_gpus(WorkerSpec(), [GPUS], Group(1, 16, 8), 24, None) is None
    assert describe_unused_gpus(WorkerSpec(), [SMALL], Group(1, 2, 0), 20, None) is None


def fail_workers(**failures: Exception) -> WorkerGroupError:
    """The error that Ray raises for failures by rank: those of the worker's function with their traceback."""
    by_rank = {int(rank[1:]): error for rank, error in failures.items()}
    return WorkerGroupError(
        "m",
        {
            r: e if isinstance(e, WorkerHealthCheckFailedError) else UserExceptionWithTraceback(e, "trace")
            for r, e in by_rank.items()
        },
    )


DEAD = WorkerHealthCheckFailedError("a check failed", RayActorError(error_msg="The actor is dead.\n\tpid: 7"))
CUT_OFF = tf.errors.UnavailableError(None, None, "Connection reset")


def test_the_cause_is_the_workers_own_error() -> None:
    mine = DataError("a", "b", "c")
    bug = ZeroDivisionError("x")
    stop = StoppedError("y")
    assert find_cause(fail_workers(r0=CUT_OFF, r1=mine), 2) is mine
    assert find_cause(fail_workers(r0=mine, r1=CUT_OFF), 2) is mine
    assert find_cause(fail_workers(r0=bug, r1=mine), 2) is mine
    assert find_cause(fail_workers(r0=DEAD, r1=bug), 2) is bug
    assert find_cause(fail_workers(r0=DEAD, r1=stop), 2) is stop


def test_a_lost_worker_is_recognized() -> None:
    for error, message in (
        (fail_workers(r1=DEAD), "The actor is dead"),
        (fail_workers(r0=CUT_OFF), "another worker does not respond: UnavailableError: Connection reset"),
        (ControllerError(WorkerGroupStartupFailedError("it did not start")), "it did not start"),
    ):
        cause = find_cause(error, 2)
        assert type(cause) is WorkerLostError
        assert str(cause) == message


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_of_a_gpu_ends_the_run_although_the_other_worker_loses_its_peer(workers: int) -> None:
    failure = tf.errors.InternalError(None, None, "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure")
    cause = find_cause(fail_workers(r0=failure, r1=CUT_OFF), workers)
    assert type(cause) is TrainingError
    assert "CUDA_ERROR_LAUNCH_FAILED" in cause.received


def test_a_worker_that_ray_ends_for_lack_of_memory_ends_the_run() -> None:
    killed = RayActorError(error_msg="Task was killed due to the node running low on memory.")
    cause = find_cause(fail_workers(r0=WorkerHealthCheckFailedError("a check failed", killed)), 2)
    assert type(cause) is TrainingError


def test_the_end_of_the_controller_for_lack_of_memory_ends_the_run() -> None:
    """Ray raises this error as it is, not in one of Ray Train."""
    cause = find_cause(OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."), 1)
    assert type(cause) is TrainingError
    assert cause.exit_code == 4


def test_an_invalid_argument_of_tensorflow_is_a_bug() -> None:
    bug = tf.errors.InvalidArgumentError(None, None, "shapes")
    assert find_cause(fail_workers(r0=bug, r1=DEAD), 2) is bug


def test_a_full_disk_is_an_error_of_the_run() -> None:
    for error, reason in (
        (OSError(errno.ENOSPC, "No space left", "/run/x"), "/run/x: No space left"),
        (OSError(errno.ENOSPC, "No space left"), "No space left"),
    ):
        cause = find_cause(fail_workers(r0=error), 1)
        assert type(cause) is TrainingError
        assert cause.received == f"error={reason}"


@pytest.mark.parametrize(
    ("workers", "is_local", "has_note"), [(1, True, False), (2, True, True), (2, False, False)]
)
def test_several_workers_on_a_local_ray_are_told_that_others_can_reach_them(
    workers: int, is_local: bool, has_note: bool
) -> None:
    assert bool(describe_open_ports(Group(workers, 1, 0), is_local)) == has_note
