"""Trainings and machines whose plans are computed by hand in the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from service.planning.rates import GB_PER_GPU, GB_PER_HOST, IMAGES_PER_GPU, IMAGES_PER_HOST, Rate
from service.planning.workload import NetworkFigures, Site, Workload

NETWORK = NetworkFigures(
    name="network",
    parameters=1_100_000,
    trainable_parameters=1_000_000,
    multiply_adds=500_000_000,
    training_operations=3_000_000_000,
    activation_values=10_000_000,
    optimizer_bytes=8_000_000,
    checkpoint_bytes=12_345_678,
)


def make_workload(**changes: Any) -> Workload:
    """10,000 images of 100 kB in 10 shards, 2 epochs of 10 steps of 1,000, decoded by the CPU each time."""
    workload = Workload(
        network=NETWORK,
        train_images=10_000,
        validation_images=0,
        image_bytes=100_000.0,
        pixel_bytes=150_000,
        is_raw=False,
        shard_bytes=np.full(10, 100_000_000),
        validation_shards=0,
        shard_rows=1000,
        is_remote=True,
        cache="none",
        cache_reason="none",
        global_batch=1000,
        accumulate=1,
        epochs=2,
        evaluate_every=1,
        lanes=1,
        value_bytes=2,
        keep_checkpoints=2,
        decodes_on_gpu=False,
        ema=False,
    )
    return replace(workload, **changes)


def make_site(**changes: Any) -> Site:
    """2 hosts of 4 GPUs with shards on S3 and disks that hold none of them."""
    site = Site(
        hosts=2,
        gpus=4,
        accelerator="h100",
        cores=16,
        ram_bytes=10**12,
        gpu_memory_bytes=80 * 10**9,
        disk_bytes=0,
        storage="s3",
    )
    return replace(site, **changes)


def make_rates(**changes: float) -> dict[str, Rate]:
    """Rates of which only the step, with 100 images/s per GPU, limits anything."""
    rates = {
        "store": Rate(1.0, GB_PER_HOST, "test"),
        "network": Rate(2.0, GB_PER_HOST, "test"),
        "cache_fill": Rate(3.0, GB_PER_HOST, "test"),
        "read": Rate(4.0, GB_PER_HOST, "test"),
        "decode": Rate(5_000.0, IMAGES_PER_HOST, "test"),
        "feed": Rate(6_000.0, IMAGES_PER_HOST, "test"),
        "to_device": Rate(3.0, GB_PER_GPU, "test"),
        "step": Rate(100.0, IMAGES_PER_GPU, "test"),
        "all_reduce": Rate(7.0, GB_PER_GPU, "test"),
    }
    return {name: replace(rate, value=changes.get(name, rate.value)) for name, rate in rates.items()}
