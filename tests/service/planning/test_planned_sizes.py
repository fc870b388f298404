"""Memory, disk and network of a plan, against numbers computed by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from plan_samples import make_site, make_workload

import pipelines.input
from service.planning.sizes import BATCHES_IN_MEMORY, PROCESS_BYTES, compute_sizes
from service.planning.text import format_duration, format_size

GB = 1e9


def test_fetched_bytes_with_and_without_lanes() -> None:
    """A set of 1 GB, 3 epochs, 2 hosts; shards at the border of two lanes are fetched twice: 10 %."""
    workload = make_workload(epochs=3)
    sizes = compute_sizes(workload, make_site())
    assert sizes.fetched_bytes == sizes.fetched_bytes_without_lanes == pytest.approx(6 * GB)
    assert sizes.fetched_bytes_with_lanes == pytest.approx(3.3 * GB)
    kept = compute_sizes(workload, make_site(disk_bytes=10**9))
    assert kept.is_set_cached
    assert kept.fetched_bytes == pytest.approx(2 * GB)
    assert kept.fetched_bytes_with_lanes == pytest.approx(1.925 * GB)
    local = compute_sizes(make_workload(is_remote=False), make_site(storage="disk"))
    assert (local.fetched_bytes, local.disk_cache_bytes) == (0, 0)


def test_validation_images_are_part_of_the_set() -> None:
    """1 GB for training and 1,000 images of 100 kB, which each host fetches once if its disk holds them."""
    workload = make_workload(validation_images=1000)
    sizes = compute_sizes(workload, make_site(disk_bytes=11 * 10**8))
    assert (sizes.set_bytes, sizes.disk_cache_bytes) == (11 * 10**8, 11 * 10**8)
    assert sizes.is_set_cached
    assert sizes.fetched_bytes == pytest.approx(2 * 1.1 * GB)
    # Else in both of the evaluations, like the training images in both epochs.
    small = compute_sizes(workload, make_site(disk_bytes=10**9))
    assert not small.is_set_cached
    assert small.fetched_bytes == pytest.approx(2 * 2.2 * GB)
    # A lane is half of the validation images on each of two hosts.
    assert small.fetched_bytes_with_lanes == pytest.approx((2 * 1.1 + 2 * 0.1) * GB)


def test_all_reduce_of_all_updates() -> None:
    """8 GPUs, 4 MB of gradients, 2 epochs of 10 steps."""
    sizes = compute_sizes(make_workload(), make_site())
    assert sizes.all_reduce_bytes == pytest.approx(7e6)
    assert sizes.all_reduce_total_bytes == pytest.approx(7e6 * 8 * 20)
    # Four steps make an update, and the two that an epoch leaves make another: three in each epoch.
    accumulated = compute_sizes(make_workload(accumulate=4), make_site())
    assert accumulated.all_reduce_total_bytes == pytest.approx(7e6 * 8 * 6)


@pytest.mark.parametrize(("epochs", "checkpoints", "milestones"), [(1, 1, 1), (2, 2, 2), (5, 3, 3)])
def test_checkpoints_that_are_kept(epochs: int, checkpoints: int, milestones: int) -> None:
    """The newest two and the best one, and the weights of three epochs, if there are so many."""
    sizes = compute_sizes(make_workload(epochs=epochs), make_site())
    assert sizes.checkpoints_bytes == checkpoints * 12_345_678 + milestones * 4_400_000


def test_memory() -> None:
    workload = make_workload(cache="host", validation_images=1000)
    sizes = compute_sizes(workload, make_site(hosts=1, gpus=0, cores=2))
    assert sizes.ram_parts == pytest.approx(
        {
            "process": PROCESS_BYTES,
            "copies of the weights": 3 * 4.4e6 + 2 * 8e6,
            "batches": 7 * 1000 * 250_000,
            "decoded images": 11_000 * 150_000,
            "outputs of layers": 1000 * 2 * 10e6,
            "gradients": 4e6,
        }
    )
    assert sizes.gpu_memory_bytes == 0
    half = compute_sizes(workload, make_site(hosts=2, gpus=0, cores=2))
    assert half.ram_parts["batches"] == pytest.approx(7 * 500 * 250_000)
    measured = compute_sizes(workload, make_site(hosts=1, gpus=0), process_bytes=5e8)
    assert measured.ram_parts["process"] == 5e8
    assert "outputs of layers" not in measured.ram_parts  # they are part of the process
    # A batch of 1,000 on 8 GPUs: 125 images of 10 million values of 2 bytes on each.
    on_gpus = compute_sizes(make_workload(), make_site())
    assert on_gpus.gpu_memory_bytes == pytest.approx(4.4e6 + 8e6 + 4e6 + 125 * 20e6)


def test_memory_of_gpus() -> None:
    """A moving average of a million weights; 10,000 decoded images, which the GPUs of one host share."""
    plain = compute_sizes(make_workload(), make_site()).gpu_memory_bytes
    averaged = compute_sizes(make_workload(ema=True), make_site()).gpu_memory_bytes
    assert averaged - plain == pytest.approx(4e6)
    cached = make_workload(cache="device")
    two_hosts = compute_sizes(cached, make_site()).gpu_memory_bytes
    assert two_hosts - plain == pytest.approx(10_000 * 150_000)
    one_host = compute_sizes(cached, make_site(hosts=1, gpus=8)).gpu_memory_bytes
    assert one_host - plain == pytest.approx(10_000 * 150_000 / 8)


def test_batches_in_memory_are_those_of_the_input_pipeline() -> None:
    path = Path(pipelines.input.__path__[0]) / "tfdata.py"
    values = {
        node.targets[0].id: node.value.value
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    assert values["PREFETCH"] + values["PARALLEL_BATCHES"] + 1 == BATCHES_IN_MEMORY


def test_formats() -> None:
    sizes = [format_size(size) for size in (12, 1_234, 999_600, 140.9e9, 1e15)]
    assert sizes == ["12 bytes", "1.23 kB", "1,000 kB", "141 GB", "1 PB"]
    durations = [format_duration(seconds) for seconds in (1.234, 90, 5400, 7.2e6)]
    assert durations == ["1.23 s", "1.5 min", "1.5 h", "2,000 h"]
