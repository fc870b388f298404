"""Checks the locations among the options of a command before it runs: paths, and URIs of object stores."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.remote.uri import Uri, is_uri, parse_location
from service.user_code import build_code_error

# Sources of this package whose argument is a location. Other sources interpret their arguments themselves.
SOURCE_KINDS = ("folder", "archive", "csv", "parquet", "webdataset", "tfrecord", "idx", "photos")
CODE_OPTIONS = ("custom_objects",)
OUTPUT_OPTIONS = ("out",)
WEB = ("http://", "https://")
# A URI, alone or after the kind of a source (`csv:s3://...`) or after a key (`model=s3://...`).
_PREFIX = rf"(?:{'|'.join(SOURCE_KINDS)}):|tfds:folder=|[\w.]+="
_LOCATION = re.compile(rf"(?P<prefix>(?:{_PREFIX})?)(?P<uri>[A-Za-z][A-Za-z0-9+.-]*://.*)", re.DOTALL)


def check_locations(options: argparse.Namespace) -> None:
    """Refuses unknown schemes, and replaces `file:///PATH` by `/PATH`, in all options.

    Args:
        options: Parsed options, which are changed in place.

    Raises:
        ConfigError: An option is a URI of a scheme that glassbox cannot read, code that is not on a disk of
            this machine, or an output on the web.
    """
    for name, value in vars(options).items():
        checked = _check_value(value)
        setattr(options, name, checked)
        if name in CODE_OPTIONS:
            _check_is_local(checked or ())
        if name in OUTPUT_OPTIONS and is_uri(checked):
            _check_is_writable(name, checked)


def _check_is_local(texts: Sequence[str]) -> None:
    for text in texts:
        if is_uri(text):
            raise build_code_error(parse_location(text))


def _check_is_writable(name: str, uri: str) -> None:
    location = parse_location(uri)
    if isinstance(location, Uri) and location.is_read_only:
        expected = "an output that can be written: a path, or s3://, gs:// or az://"
        raise ConfigError(expected, f"{name}={location}", "write to one of these")


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
