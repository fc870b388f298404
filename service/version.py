"""Reads the version of the installed glassbox package."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "glassbox-train"  # name of the package; the command and the import are `glassbox`


@cache
def read_version() -> str:
    """Returns the installed version; `unknown` in a checkout that is not installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
