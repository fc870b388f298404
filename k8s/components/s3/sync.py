"""Copies the files of one directory to another; either may be in a bucket: `sync.py SOURCE DESTINATION`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs

THREADS = 8
LAST = "manifest.json"  # lists the files next to it, so it must not arrive before them


def open_location(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a URI or path, and the path on it."""
    return fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).absolute().as_uri())


def list_files(system: fs.FileSystem, root: str) -> dict[str, fs.FileInfo]:
    """Returns the files below a directory by relative path; an absent directory has none."""
    infos = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [info for info in infos if info.type == fs.FileType.File]
    return {info.path.removeprefix(root).lstrip("/"): info for info in files}


def sync(source: str, destination: str) -> tuple[int, int]:
    """Copies files that the destination lacks or has with another size or an older time; deletes nothing.

    Args:
        source: Directory or URI to copy from.
        destination: Directory or URI to copy to; created if absent.

    Returns:
        The numbers of copied and of unchanged files.

    Raises:
        FileNotFoundError: The source contains no files.
    """
    source_system, source_root = open_location(source)
    target_system, target_root = open_location(destination)
    source_files = list_files(source_system, source_root)
    target_files = list_files(target_system, target_root)
    if not source_files:
        raise FileNotFoundError(
            f"Expected files at the source. Received: source={source}. Fix: check the path for typos."
        )

    def is_outdated(name: str) -> bool:
        new = source_files[name]
        old = target_files.get(name)
        return old is None or old.size != new.size or old.mtime < new.mtime

    def copy(name: str) -> None:
        target = f"{target_root}/{name}"
        # An object in a bucket appears atomically; a file needs a temporary name.
        is_atomic = target_system.type_name == "s3"
        written = target if is_atomic else f"{target}.partial"
        if not is_atomic:
            target_system.create_dir(target.rpartition("/")[0])
        path = source_files[name].path
        fs.copy_files(path, written, source_filesystem=source_system, destination_filesystem=target_system)
        if not is_atomic:
            target_system.move(written, target)

    outdated = sorted(filter(is_outdated, source_files))
    manifests = [name for name in outdated if Path(name).name == LAST]
    others = [name for name in outdated if Path(name).name != LAST]
    with ThreadPoolExecutor(THREADS) as pool:
        for names in (others, manifests):
            list(pool.map(copy, names))
    return len(outdated), len(source_files) - len(outdated)


if __name__ == "__main__":
    try:
        print("{} files copied, {} unchanged".format(*sync(*sys.argv[1:])))
    except OSError as error:
        sys.exit(f"sync: {error}")
