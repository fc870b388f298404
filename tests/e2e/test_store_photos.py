"""Photos of cats and dogs, trained from a store by two workers that are killed: the weights of local disk."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from fault_lab import compute_difference, open_lab
from stores import Bucket, FaultProxy

from pipelines.shards.build import build_shards
from pipelines.sources import open_source
from pipelines.spec import ShardSpec

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PHOTOS = 400  # per class
KILLS = 2
SETTINGS = (
    "epochs=4",
    "data.image_size=48",
    "data.window=2",
    "data.lanes=2",
    "data.cache=none",
    "global_batch=16",
    "checkpoint_minutes=0.01",
)


def build_set(shared: Path, folder: Path) -> Path:
    """Builds a shard set of some real photos, scaled down, in shards of about 60 kB."""
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for path in sorted((shared / "data/cats_and_dogs_filtered/train" / name).glob("*.jpg"))[:PHOTOS]:
            (folder / "photos" / name / path.name).symlink_to(path)
    spec = ShardSpec(store_size=64, encoding="jpeg:90", shard_mb=0.06)
    build_shards(open_source(f"folder:{folder}/photos"), folder / "set", spec)
    return folder / "set"


def test_two_workers_that_are_killed_twice_reach_the_weights_of_local_disk(
    shared: Path, bucket: Bucket, proxy: FaultProxy
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as name,
        open_lab(Path(name)) as lab,
    ):
        folder = Path(name)
        shards = build_set(shared, folder)
        bucket.upload_folder(shards, "set")
        total = sum(path.stat().st_size for path in shards.iterdir())
        words = ("--preset", "cats_dogs_small", "--workers", "2", "--cpus-per-worker", "1", *SETTINGS)

        local = lab.train("local", *words, "--data", str(shards))
        local.wait_for_exit()

        proxy.latency = 0.01
        proxy.inject("reset", times=10, skip=20, after=20_000)
        proxy.inject("status", times=10, skip=20)
        cache = {"GLASSBOX_CACHE": f"{folder}/cache", "GLASSBOX_STORE_TIMEOUT": "60"}
        training = lab.train(
            "remote",
            *words,
            "--restarts",
            "10",
            f"data.cache_gb={total / 2 / 1e9}",
            "--data",
            f"{bucket.url}/set",
            **cache,
        )
        chance = random.Random(0)
        for _ in range(KILLS):
            training.wait_for_steps(chance.randrange(15, 40))
            chance.choice(training.find_workers()).kill()
        output = training.wait_for_exit()
        assert "a worker was lost" in output
        assert proxy.count_requests("GET", "*/set/train-*") > 0
        assert compute_difference(training.run, local.run) == 0.0
        assert lab.env["AWS_SECRET_ACCESS_KEY"] not in output
