"""Errors of the shard cache that users can fix: a folder, a disk or a budget that does not suffice."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.remote.folder import Budget, format_gigabytes

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
FOLDER_FIX = "free space, change permissions, or set GLASSBOX_CACHE to another folder"


@contextmanager
def report_folder_errors(folder: Path) -> Iterator[None]:
    """Turns errors of the operating system about the cache folder into an error with a fix."""
    try:
        yield
    except OSError as error:
        raise _describe_folder_error(folder, error.strerror or str(error)) from None


def describe_full_disk(folder: Path) -> ConfigError:
    """Returns the error for a disk that has no space for what is needed at the same time."""
    return _describe_folder_error(folder, os.strerror(errno.ENOSPC))


def _describe_folder_error(folder: Path, reason: str) -> ConfigError:
    return ConfigError("a cache folder that can be written", f"{folder}: {reason}", FOLDER_FIX)


def describe_lack(budget: Budget, needed: int, purpose: str) -> ConfigError:
    """Returns the error for a budget that is too small.

    Args:
        budget: Budget that does not suffice.
        needed: Number of bytes that suffice.
        purpose: What needs them.
    """
    needed_gb = format_gigabytes(needed)
    return ConfigError(
        f"a shard cache of at least {needed_gb}: {purpose}",
        f"budget={budget}",
        f"set data.cache_gb or GLASSBOX_CACHE_GB to at least {needed_gb.removesuffix(' GB')}, "
        "or read fewer shards at a time with a smaller data.window",
    )
