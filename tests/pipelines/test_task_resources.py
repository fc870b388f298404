"""What tasks request: a share of a GPU and of its CPUs where there is one, else CPUs."""

from __future__ import annotations

import pytest

from pipelines.cluster import TaskResources, choose_task_resources

GPU_NODE = {"CPU": 16.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "tasks", "is_shared", "expected"),
    [
        ([GPU_NODE], 100, False, TaskResources(4, 0.25)),
        ([GPU_NODE], 1, False, TaskResources(16, 1.0)),
        ([GPU_NODE], 1, True, TaskResources(4, 0.25)),
        ([GPU_NODE] * 2, 6, False, TaskResources(5, 0.3333)),
        ([{"CPU": 64.0, "GPU": 8.0}], 100, False, TaskResources(2, 0.25)),
        ([{"CPU": 2.0, "GPU": 1.0}], 100, False, TaskResources(1, 0.5)),
        ([{"CPU": 2.0, "GPU": 4.0}], 100, False, TaskResources(1, 1.0)),
        ([{"CPU": 0.0}, GPU_NODE, {"CPU": 8.0, "GPU": 2.0}], 100, False, TaskResources(1, 0.25)),
        ([{"CPU": 8.0}], 100, False, TaskResources(1)),
        ([{"CPU": 8.0}], 2, False, TaskResources(4)),
        ([{"CPU": 8.0}], 2, True, TaskResources(1)),
        ([{"CPU": 8.0}, {"CPU": 2.0}], 1, False, TaskResources(2)),
        ([{"CPU": 0.0}], 1, False, TaskResources(1)),
        ([], 1, False, TaskResources(1)),
    ],
)
def test_tasks_share_the_gpus_and_their_cpus(
    nodes: list[dict[str, float]], tasks: int, is_shared: bool, expected: TaskResources
) -> None:
    assert choose_task_resources(nodes, tasks, is_shared) == expected
