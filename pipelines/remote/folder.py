"""The cache folder on local disk, and how many bytes the shard cache may take there."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.remote.uri import parse_location

FOLDER = "GLASSBOX_CACHE"  # environment variable: the cache folder
BUDGET = "GLASSBOX_CACHE_GB"  # environment variable: bytes of the shard cache, in units of 10**9
GIGABYTE = 10**9
DISK_SHARE = 0.9  # of the free disk space that the shard cache takes by default


def find_cache_folder() -> Path:
    """Returns the cache folder: `GLASSBOX_CACHE`, or `glassbox` in the user's cache directory.

    The folder may not exist yet.

    Raises:
        ConfigError: `GLASSBOX_CACHE` is a URI of a store.
    """
    folder = os.environ.get(FOLDER)
    if folder:
        location = parse_location(folder)
        if not isinstance(location, Path):
            raise ConfigError("a folder on a local disk", f"{FOLDER}={location}", f"set {FOLDER} to a path")
        return location.expanduser().absolute()
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return user.absolute() / "glassbox"


@dataclass(frozen=True)
class Budget:
    """The largest number of bytes that the shard cache takes on disk, and where the number comes from.

    Attributes:
        bytes: Largest size of all files of the shard cache together, those being fetched included.
        reason: What the number was set by.
    """

    bytes: int
    reason: str

    def __str__(self) -> str:
        return f"{format_gigabytes(self.bytes)} ({self.reason})"


def read_budget(cache_gb: float | None, folder: Path, cached_bytes: int) -> Budget:
    """Returns the budget of the shard cache: `data.cache_gb`, `GLASSBOX_CACHE_GB`, or a share of the disk.

    Args:
        cache_gb: Budget from the configuration in units of 10**9 bytes; None if it is not set.
        folder: Existing folder of the shard cache.
        cached_bytes: Bytes that the shard cache takes now.

    Raises:
        ConfigError: The environment variable is not a positive number.
    """
    if cache_gb is not None:
        return Budget(int(cache_gb * GIGABYTE), "data.cache_gb")
    text = os.environ.get(BUDGET)
    if text:
        return Budget(int(_parse_gigabytes(text) * GIGABYTE), BUDGET)
    available = shutil.disk_usage(folder).free + cached_bytes
    return Budget(int(DISK_SHARE * available), f"{DISK_SHARE:.0%} of the free disk space")


def format_gigabytes(count: int) -> str:
    """Returns a number of bytes in GB, rounded up, so that a budget of that number suffices."""
    digits = 2 if count >= GIGABYTE else 6
    unit = GIGABYTE // 10**digits
    return f"{math.ceil(count / unit) / 10**digits:.{digits}f}".rstrip("0").rstrip(".") + " GB"


def measure_folder(folder: Path) -> int:
    """Returns the size of all files below a folder in bytes; 0 if it does not exist."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # it has just been removed
            size += path.stat().st_size if path.is_file() else 0
    return size


def _parse_gigabytes(text: str) -> float:
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ConfigError("a positive number of gigabytes", f"{BUDGET}={text}", f"set {BUDGET} to a number")
    return gigabytes
