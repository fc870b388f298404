"""Putting a report where people look at it: the old one whole until the new one stands, whoever stops in between."""

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

MANIFEST, PAGE = "manifest.json", "index.html"
KIND = "glassbox report"
VERSION = 4  # of what reports look like and their manifests hold: with another one, reports are made anew


def kind_of(directory: Path) -> str:
    """What a directory holds by its manifest; empty where it is nothing of ours."""
    try:
        return str(json.loads((directory / MANIFEST).read_bytes())["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_report(directory: Path) -> bool:
    """Whether a directory holds a report of ours, which a new one may replace."""
    return kind_of(directory) == KIND


@contextmanager
def publishing(out: Path, kind: str = KIND) -> Iterator[Path]:
    """Yields an empty directory; what the block writes there becomes the report at `out` when it succeeds.

    Pictures carry a digest in their names, so new ones go beside the old ones; then the page changes from the old to the new
    in one step, then the manifest, and last goes what no page shows any more. Somebody who reads meanwhile, and who
    starts again after a kill, finds a whole page.

    Args:
        out: The directory of the report; a report of the same kind that stands there is replaced.
        kind: What the new manifest says it is.

    Raises:
        ConfigError: `out` holds something else, or cannot be written.
    """
    noun = kind.rpartition(" ")[2]
    if out.exists() and kind_of(out) != kind and (not out.is_dir() or any(out.iterdir())):
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
        for written in [*temporary.rglob("*"), temporary]:
            sync(written)  # a file or a directory
        _move(temporary, out)
    except OSError as error:
        raise ConfigError(
            f"a place for the {noun} that can be written",
            f"out={out}: {error.strerror or error}",
            "make room or choose another",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(out: Path) -> None:
    """Removes what killed jobs left beside a report. Only for who holds the claim on it."""
    for left in out.parent.glob(f".tmp-*-{out.name}"):
        shutil.rmtree(left, ignore_errors=True)


def _move(temporary: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        os.replace(temporary, out)
        sync(out.parent)
        return
    new = {path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()}
    last = [Path(PAGE), Path(MANIFEST)]
    for file in [*sorted(new - set(last)), *last]:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / file, out / file)
    for path in sorted(out.rglob("*"), reverse=True):  # files before the folders they lie in
        if path.is_file() and path.relative_to(out) not in new:
            path.unlink()
        elif path.is_dir():
            with suppress(OSError):
                path.rmdir()
    sync(out)
