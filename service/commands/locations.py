"""Checks the locations among the options of a command before it runs: paths, and URIs of object stores."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from pipelines.remote.uri import parse_location

# Sources of this package whose argument is a location. Other sources interpret their arguments themselves.
SOURCE_KINDS = ("folder", "archive", "csv", "parquet", "webdataset", "tfrecord", "idx", "photos")
WEB = ("http://", "https://")
# A URI, alone or after the kind of a source (`csv:s3://...`) or after a key (`model=s3://...`).
_LOCATION = re.compile(
    rf"(?P<prefix>(?:(?:{'|'.join(SOURCE_KINDS)}):|[\w.]+=)?)(?P<uri>[A-Za-z][A-Za-z0-9+.-]*://.*)", re.DOTALL
)


def check_locations(options: argparse.Namespace) -> None:
    """Refuses unknown schemes, and replaces `file:///PATH` by `/PATH`, in all options.

    Args:
        options: Parsed options, which are changed in place.

    Raises:
        ConfigError: An option is a URI of a scheme that glassbox cannot read.
    """
    for name, value in vars(options).items():
        setattr(options, name, _check_value(value))


def _check_value(value: Any) -> Any:
    if isinstance(value, str):
        return _check_text(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_check_value, value))
    return value


def _check_text(text: str) -> str:
    match = _LOCATION.fullmatch(text)
    if match is None or match["uri"].lower().startswith(WEB):  # sources on the web may have a query
        return text
    location = parse_location(match["uri"])
    return f"{match['prefix']}{location}" if isinstance(location, Path) else text
