"""Candidates of the store benchmark: the client alone, and this project's reader and batches."""

from __future__ import annotations

import os
import shutil
from typing import Any

from worker import Rounds

SPLIT = "train"
SEED = 0
CONCURRENT_FETCHES = 8
EPOCHS = 1000  # of a training, which is one pass over the shards


def client(bucket: str, prefix: str) -> Rounds:
    """Fetches all shards into memory with the client, several at a time, and does nothing else."""
    from concurrent.futures import ThreadPoolExecutor

    from obstore.store import S3Store

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    store = S3Store(bucket, config={"endpoint": endpoint}, client_options={"allow_http": True})
    keys = [entry["path"] for page in store.list(prefix) for entry in page]
    shards = [key for key in keys if "/train-" in key]

    def fetch(key: str) -> int:
        return len(store.get(key).bytes())

    with ThreadPoolExecutor(CONCURRENT_FETCHES) as pool:
        yield None
        while True:
            list(pool.map(fetch, shards))
            yield None


def rows(
    location: str, cache: str, cache_gb: float | None, batch: int, window: int, is_cold: bool = False
) -> Rounds:
    """Reads the encoded images of an epoch in their order, with their checksums.

    All rounds are epochs of one pass, as in a training, unless the cache is emptied before each.

    Args:
        location: The shard set.
        cache: Folder of the cache.
        cache_gb: Budget of the cache; None for no limit.
        batch: Images per batch.
        window: Number of shards that are shuffled together.
        is_cold: Whether every round starts with an empty cache.
    """
    from pipelines.input.order import EpochOrder, OrderSpec
    from pipelines.input.passes import Pass, PassReader
    from pipelines.input.reader import ShardReader

    os.environ["GLASSBOX_CACHE"] = cache
    epochs = 1 if is_cold else EPOCHS

    def open_pass(epoch: int) -> tuple[OrderSpec, PassReader]:
        reader = ShardReader(location, SPLIT, cache_gb)
        spec = OrderSpec((reader.shard_rows,), batch, SEED, window)
        return spec, PassReader(reader, Pass(spec, epoch, epochs, 0, EpochOrder(spec, epoch).steps))

    yield None
    for epoch in range(EPOCHS):
        if is_cold:
            shutil.rmtree(cache, ignore_errors=True)
        if is_cold or epoch == 0:
            spec, current = open_pass(epoch)
        order = EpochOrder(spec, epoch)
        for step in range(order.steps):
            numbers = order.find_rows(range(step, step + 1))[0]
            current.reader.read_images(numbers[numbers >= 0])
            current.finish(epoch, step)
        if is_cold:
            current.close()
        yield None


def batches(location: str, cache: str, batch: int, window: int, size: int, is_cold: bool = False) -> Rounds:
    """Produces decoded batches, as a training without augmentation receives them.

    Args:
        location: The shard set.
        cache: Folder of the cache.
        batch: Images per batch.
        window: Number of shards that are shuffled together.
        size: Height and width of the images.
        is_cold: Whether every round opens the set anew, with an empty cache.
    """
    from pipelines.input.batches import Batches
    from pipelines.spec import DataSpec

    os.environ["GLASSBOX_CACHE"] = cache
    data = DataSpec(image_size=(size, size), cache="none", backend="tfdata", window=window)

    def open_batches() -> Any:
        return Batches(location, SPLIT, data, batch, seed=SEED)

    opened = open_batches()
    epoch = 0
    yield None
    while True:
        if is_cold:
            shutil.rmtree(cache, ignore_errors=True)
            opened = open_batches()
        for _ in opened.epoch(epoch):
            pass
        epoch += 1
        yield None
