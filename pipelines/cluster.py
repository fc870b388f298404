"""The Ray cluster that work runs on: the one `RAY_ADDRESS` names, else one of this process's own."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import ConfigError

ANSWER_SECONDS = 5.0
OBJECT_STORE_BYTES = 256 * 2**20  # a local cluster passes work descriptions around, not images


@contextmanager
def connected() -> Iterator[None]:
    """Connects to Ray for the length of a block, and disconnects only if it connected.

    A cluster of this process's own takes a token of its own, so that nobody else on the network can
    give it work.

    Raises:
        ConfigError: Nothing answers at `RAY_ADDRESS`.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leaves CUDA_VISIBLE_DEVICES as it is
    if not address and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # Ray reads it when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    if ray.is_initialized():
        yield
        return
    options = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    _check_answers(address)
    ray.init(address=address or "local", logging_level=logging.WARNING, log_to_driver=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


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
        raise ConfigError("a Ray cluster that answers", f"RAY_ADDRESS={address} ({error})", "start it, or unset RAY_ADDRESS") from None
