"""Copies the files of one directory into another, either of which may be a bucket: `sync.py SOURCE DESTINATION`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs

THREADS = 8
LAST = "manifest.json"  # names what lies beside it, so that it must not arrive first


def place(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI or a path, and the path on it."""
    return fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).absolute().as_uri())


def listed(system: fs.FileSystem, root: str) -> dict[str, fs.FileInfo]:
    """The files below a directory, by their path from there; none where it does not exist."""
    found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(root).lstrip("/"): info for info in found if info.type == fs.FileType.File}


def sync(source: str, destination: str) -> tuple[int, int]:
    """Copies what the destination lacks, has in another size or has older; deletes nothing.

    Args:
        source: Directory or URI.
        destination: Likewise.

    Returns:
        Files copied, and files that were there.

    Raises:
        FileNotFoundError: Nothing lies at the source.
    """
    (from_system, from_root), (to_system, to_root) = place(source), place(destination)
    wanted, present = listed(from_system, from_root), listed(to_system, to_root)
    if not wanted:
        raise FileNotFoundError(
            f"Expected files at the source. Received: source={source}. Fix: see that it is spelled right."
        )

    def stale(name: str) -> bool:
        old, new = present.get(name), wanted[name]
        return old is None or old.size != new.size or old.mtime < new.mtime

    def copy(name: str) -> None:
        target = f"{to_root}/{name}"
        partial = target  # an object of a bucket appears whole or not at all
        if to_system.type_name != "s3":
            to_system.create_dir(target.rpartition("/")[0])
            partial += ".partial"
        fs.copy_files(
            wanted[name].path, partial, source_filesystem=from_system, destination_filesystem=to_system
        )
        if partial != target:
            to_system.move(partial, target)

    changed = sorted(filter(stale, wanted))
    with ThreadPoolExecutor(THREADS) as pool:
        for last in (False, True):
            list(pool.map(copy, [name for name in changed if (Path(name).name == LAST) is last]))
    return len(changed), len(wanted) - len(changed)


if __name__ == "__main__":
    try:
        print("{} files copied, {} were there".format(*sync(*sys.argv[1:])))
    except OSError as error:
        sys.exit(f"sync: {error}")
