"""The source `photos:PATH`: a folder of images or a single one, without classes, for predictions only."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from pipelines.errors import ConfigError, DataError
from pipelines.remote.files import fetch_file
from pipelines.remote.uri import Uri
from pipelines.sources.base import UNLABELLED_SOURCES, build_listing_error
from pipelines.sources.folder import SCHEMA, FolderSource, list_files
from pipelines.sources.layout import build_table, is_image
from pipelines.sources.locations import parse_source_location
from pipelines.sources.store_folder import list_store_files

SPLIT = "photos"


@UNLABELLED_SOURCES.register("photos")
def open_photos(argument: str) -> FolderSource:
    """Lists the files below a folder, at any depth, in the order of their paths, which are their identifiers.

    Hidden files and folders are left out; links to files are followed, links to folders are not. The path may
    also be that of a single file.

    Args:
        argument: Path of the folder or the file, or its URI in an object store.

    Returns:
        A source without classes and with one split, `photos`, whose labels are all -1.

    Raises:
        ConfigError: There is no such folder.
        DataError: The folder cannot be listed, or holds no image.
    """
    root = parse_source_location("photos", argument)
    if isinstance(root, Uri) and is_image(os.fsencode(root.name)):
        root = fetch_file(root)
    if isinstance(root, Uri):
        files = list_store_files(root)
    elif root.is_file():
        files = build_table([(os.fsencode(root.name), root.stat().st_size)], SCHEMA)
        root = root.parent
    else:
        files = _list_files(root, argument)
    if not any(is_image(path.as_py()) for path in files["path"]):
        received = f"source=photos:{argument}: files={len(files)}, images=0"
        raise DataError("a folder with images", received, "check the path")
    labels = pa.array([-1] * len(files), pa.int32())
    table = files.sort_by("path").append_column("label", labels).combine_chunks()
    return FolderSource(f"photos:{argument}", (), str(root), {SPLIT: table})


def _list_files(root: Path, argument: str) -> pa.Table:
    """Lists path and size of the files below a directory.

    Raises:
        ConfigError: There is no such folder.
        DataError: The folder cannot be listed.
    """
    if not root.is_dir():
        raise ConfigError("a folder", f"source=photos:{argument} (no such folder)", "check the path")
    try:
        return list_files(root)
    except OSError as error:
        raise build_listing_error(error) from None
