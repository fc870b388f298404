"""The Ray cluster that work runs on: the one `RAY_ADDRESS` names, else one of this process's own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

OBJECT_STORE_BYTES = 256 * 2**20  # a local cluster passes work descriptions around, not images


@contextmanager
def connected(log_to_driver: bool = False) -> Iterator[None]:
    """Connects to Ray for the length of a block, and disconnects only if it connected.

    Args:
        log_to_driver: Whether what the workers print shows up here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keeps CUDA visible; Ray's coming default
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    options = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    ray.init(
        address=address or "local",
        logging_level=logging.WARNING,
        log_to_driver=log_to_driver,
        **options,
    )
    try:
        yield
    finally:
        ray.shutdown()
