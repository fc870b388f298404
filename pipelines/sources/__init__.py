"""Sources: where labelled images come from, one file per source. `open_source` opens one by its name.

To write your own source, define a class with the attributes and methods of `Source` in a file or a package:

    class Thumbnails:
        classes = ("cat", "dog")

        def __init__(self, argument=""):
            self.name = f"thumbnails:{argument}"
            ...

        def counts(self):
            return {"train": 1000}

        def read(self, split, start, stop):
            for index in range(start, stop):
                yield Example(image=..., label=..., id=f"{index:06d}")

        def fingerprint(self):
            return ...

Its name is `file.py:Thumbnails` or `package.module:Thumbnails`, optionally followed by `:ARGUMENT`, which is
passed to the class. A package that declares the entry point `thumbnails = "package.module:Thumbnails"` in
the group `glassbox.sources` makes it available as `thumbnails` and `thumbnails:ARGUMENT`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, DataError, GlassboxError, suggest
from pipelines.plugins import is_reference, load_reference, split_argument
from pipelines.remote.uri import Uri, is_uri, parse_location
from pipelines.sources.base import DATASETS, SOURCES, UNLABELLED_SOURCES, Source
from pipelines.sources.options import SourceOptions

__all__ = ["DATASETS", "SOURCES", "UNLABELLED_SOURCES", "Source", "SourceOptions", "open_source"]

FORMS = (
    "folder:DIR, archive:FILE, https://HOST/FILE#sha256=DIGEST, csv:FILE, parquet:FILE, webdataset:PATTERN, "
    "tfrecord:PATTERN, idx:DIR, imagenet:DIR, tfds:NAME, synthetic:evidence, cats_and_dogs, "
    "or file.py:CLASS or package.module:CLASS for a source of your own"
)
_MEMBERS = ("name", "classes", "counts", "read", "fingerprint")  # of `Source`

logger = logging.getLogger(__name__)


def open_source(
    name: str, labelled: bool = True, options: SourceOptions | None = None, log_notes: bool = True
) -> Source:
    """Opens a source by its name, and logs what it decided: splits, columns, classes, files not read.

    Args:
        name: `KIND:ARGUMENT`, the name of a known data set, or that of your own source (see above).
        labelled: Whether the source must have classes. If not, `photos:DIR` is a source as well.
        options: Splits, columns and class names that the user specified.
        log_notes: Whether to log the decisions; False where they have been logged before.

    Raises:
        ConfigError: The kind is unknown, its argument is missing, or your own source cannot be imported.
        DataError: The source exists but cannot be used.
    """
    source = _open(name, labelled, options or SourceOptions())
    if log_notes:
        for note in getattr(source, "notes", ()):
            logger.info("%s: %s", source.name, note)
    return source


def _open(name: str, labelled: bool, options: SourceOptions) -> Source:
    from pipelines.sources import (  # noqa: F401 (importing registers them)
        archive,
        cats_and_dogs,
        csv_table,
        download,
        folder,
        idx,
        imagenet,
        parquet,
        photos,
        synthetic,
        tfds,
        tfrecord,
        webdataset,
    )

    kind, _, argument = name.partition(":")
    if kind in DATASETS and not argument:
        return _open_with_options(DATASETS.get(kind), (), options, name)
    if kind in SOURCES and argument:
        return _open_with_options(SOURCES.get(kind), (argument,), options, name)
    if kind in UNLABELLED_SOURCES and argument and not labelled:
        return _open_with_options(UNLABELLED_SOURCES.get(kind), (argument,), options, name)
    reference, argument_of_reference = split_argument(name)
    is_plugin = kind not in SOURCES and (kind in SOURCES.names() or is_reference(reference))
    if is_plugin and options.list_names():
        raise _build_option_error(name, options.list_names())
    if is_plugin and kind in SOURCES.names():  # an entry point
        return _open_plugin(SOURCES.get(kind), argument, name)
    if is_plugin:
        return _open_plugin(load_reference(reference, "source"), argument_of_reference, name)
    raise _build_unknown_error(name, labelled)


def _open_with_options(
    factory: Callable[..., Source], arguments: tuple[str, ...], options: SourceOptions, name: str
) -> Source:
    """Calls a factory, with the options if it takes any.

    Raises:
        ConfigError: An option is set that the source does not have.
    """
    if "options" in inspect.signature(factory).parameters:
        return factory(*arguments, options=options)
    if options.list_names():
        raise _build_option_error(name, options.list_names())
    return factory(*arguments)


def _build_option_error(name: str, names: list[str]) -> ConfigError:
    received = f"source={name} with {' '.join(names)}"
    return ConfigError("options that this source has", received, f"leave {' and '.join(names)} out")


def _open_plugin(factory: Any, argument: str, name: str) -> Source:
    """Opens a source of another package.

    Raises:
        ConfigError: The factory cannot be called, or does not return a source.
        DataError: The factory failed.
    """
    if not callable(factory):
        received = f"source={name} ({type(factory).__name__})"
        raise ConfigError("a class or function that returns a source", received, "name such a class")
    try:
        source = factory(argument) if argument else factory()
    except GlassboxError:
        raise
    except Exception as error:
        received = f"source={name}: {type(error).__name__}: {error}"
        raise DataError("a source that opens", received, "repair the source or its argument") from error
    missing = [member for member in _MEMBERS if not hasattr(source, member)]
    if missing:
        received = f"source={name} ({type(source).__name__} without {', '.join(missing)})"
        fix = "add what is missing; pipelines/sources/__init__.py describes a source"
        raise ConfigError(f"a source with {', '.join(_MEMBERS)}", received, fix)
    return source  # type: ignore[no-any-return]


def _build_unknown_error(name: str, labelled: bool) -> ConfigError:
    """Returns the error for a name that is not that of a source, with suggestions."""
    from pipelines.sources.archive import find_archive_kind

    kind = name.partition(":")[0]
    forms = FORMS if labelled else f"photos:DIR, {FORMS}"
    known = [*SOURCES.names(), *DATASETS.names()]
    if not labelled:
        known.extend(UNLABELLED_SOURCES.names())
    fix = f"write {forms}"
    location = parse_location(name) if is_uri(name) else None  # refuses an unknown scheme, or a query
    if isinstance(location, Uri) and not location.is_read_only:
        fix = f"write {'archive' if find_archive_kind(location.name) else 'folder'}:{location}"
    elif kind not in known:
        path = Path(name).expanduser()
        if name and path.exists():
            fix = f"write {'folder' if path.is_dir() else 'archive'}:{name}"
        else:
            fix = f"{suggest(kind, known)}; {fix}"
    return ConfigError("a known source", f"source={name}", fix)
