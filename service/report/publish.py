"""Publishes a report atomically: readers see either the old page or the new one, never a mixture."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.storage import sync

MANIFEST = "manifest.json"
PAGE = "index.html"
KIND = "glassbox report"
VERSION = 6  # version of the page and its manifest; reports of another version are rendered again


def read_kind(directory: Path) -> str:
    """Returns the kind of page in a directory, from its manifest; empty if it holds anything else."""
    try:
        return str(json.loads((directory / MANIFEST).read_bytes())["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_report(directory: Path) -> bool:
    """Returns whether a directory holds a report, which a new one may replace."""
    return read_kind(directory) == KIND


@contextmanager
def publish(out: Path, kind: str = KIND) -> Iterator[Path]:
    """Yields an empty directory, whose content replaces the page at `out` once the block succeeds.

    Names of pictures contain a digest, so new pictures can be stored next to old ones. The page is replaced
    after that, then the manifest, and unused pictures are removed last. Readers, and a job that starts after
    another was killed, find a complete page at any time.

    Args:
        out: Directory of the page; a page of the same kind in it is replaced.
        kind: Kind of page, as recorded in its manifest.

    Yields:
        A temporary directory next to `out`.

    Raises:
        ConfigError: `out` holds something else, or cannot be written.
    """
    noun = kind.rpartition(" ")[2]
    is_other = not out.is_dir() or any(out.iterdir())
    if out.exists() and read_kind(out) != kind and is_other:
        raise ConfigError(
            f"a new directory or an older {noun}",
            f"out={out} (holds something else)",
            "choose another --out or remove it",
        )
    temporary = out.with_name(f".tmp-{secrets.token_hex(4)}-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        _replace(temporary, out)
    except OSError as error:
        raise ConfigError(
            f"a directory for the {noun} that can be written",
            f"out={out}: {error.strerror or error}",
            "free some space or choose another directory",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(out: Path) -> None:
    """Removes temporary directories of killed jobs next to a report; only for the holder of its lease."""
    for directory in out.parent.glob(f".tmp-*-{out.name}"):
        shutil.rmtree(directory, ignore_errors=True)


def _replace(temporary: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        os.replace(temporary, out)
        sync(out.parent)
        return
    new = {path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()}
    last = [Path(PAGE), Path(MANIFEST)]
    for file in [*sorted(new - set(last)), *last]:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / file, out / file)
    # In reverse order files come before the folders they are in.
    for path in sorted(out.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(out) not in new:
            path.unlink()
        elif path.is_dir():
            with suppress(OSError):
                path.rmdir()
    sync(out)
