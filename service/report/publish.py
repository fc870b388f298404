"""Publishes a page in a directory or a store: readers see either the old page or the new one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.remote.store import ObjectMissingError, delete, list_objects, read_bytes, upload, write_bytes
from pipelines.remote.uri import Location, Uri
from pipelines.storage import parse_json, read_bounded, sync, write_atomically

MANIFEST = "manifest.json"
DIGEST = "sha256"  # last entry of a manifest
DIGEST_LINE = f',\n"{DIGEST}": '
PAGE = "index.html"
SUMMARY = "summary.json"  # in a store: the part of the manifest that a job over all runs reads
SUMMARY_KEYS = ("kind", "version", "made_of", "about", "checks", "thumbnails", "single_file")
SUMMARY_FIGURES = {"summary": None, "curves": ("epochs",)}  # figures in the summary: all, or some keys
GENERATOR = re.compile(r'<meta name="generator" content="(glassbox (?:report|comparison))">')  # kind of page
PAGE_START_BYTES = 4096  # of a page, in which its generator is named
PICTURES = "pictures"
VIEWS = "views"
DIGEST_NAMED = (f"{PICTURES}/", f"{VIEWS}/")  # folders whose files have a digest in their name
UPLOADS_AT_A_TIME = 16
KIND = "glassbox report"
VERSION = 12  # version of the page and its manifest; reports of another version are rendered again


def write_page_manifest(directory: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of a page."""
    write_atomically(directory / MANIFEST, format_manifest(content))


def format_manifest(content: dict[str, Any]) -> str:
    """Formats a manifest, or its summary: one line per entry, and null for NaN and infinity.

    The last line is the digest of the text before it. A digest of the content would take longer to compare
    than the manifest to parse, which counts when a job looks at all runs.
    """
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'), ensure_ascii=False, allow_nan=False)}"
        for key, value in _replace_non_finite(content).items()
    ]
    text = "{\n" + ",\n".join(lines)
    return f'{text}{DIGEST_LINE}"{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(item) for item in value]
    return value


def read_page_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of the page in a directory; empty if there is none or it is damaged."""
    try:
        return parse_manifest(read_bounded(directory / MANIFEST))
    except (OSError, ValueError):
        return {}


def parse_manifest(text: bytes) -> dict[str, Any]:
    """Returns the content of a page's manifest or of its summary; empty if it is damaged.

    Version 1 wrote no digest.
    """
    try:
        content = parse_json(text)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    start, _, _ = text.rpartition(DIGEST_LINE.encode())
    return content if content.pop(DIGEST, None) in (None, hashlib.sha256(start).hexdigest()) else {}


def read_kind(directory: Path) -> str:
    """Returns the kind of page in a directory; empty if it holds anything else.

    A page whose manifest is damaged is still known by its first bytes, so that it can be rendered again.
    """
    kind = str(read_page_manifest(directory).get("kind", ""))
    return kind or read_generator(directory / PAGE)


def read_generator(page: Path) -> str:
    """Returns the kind of page that a report or a comparison says it is; empty for any other file."""
    if not page.is_file():  # a pipe would block
        return ""
    try:
        with page.open("rb") as file:
            start = file.read(PAGE_START_BYTES).decode(errors="replace")
    except OSError:
        return ""
    match = GENERATOR.search(start)
    return match[1] if match else ""


def is_report(directory: Path) -> bool:
    """Returns whether a directory holds a report, which a new one may replace."""
    return read_kind(directory) == KIND


@contextmanager
def publish(out: Location, kind: str = KIND) -> Iterator[Path]:
    """Yields an empty directory, whose content replaces the page at `out` once the block succeeds.

    Names of pictures and views contain a digest, so new ones can be stored next to old ones. The page is
    replaced after that, then the manifest, and unused files are removed last. Readers, and a job that starts
    after another was killed, find a complete page at any time.

    Args:
        out: Directory of the page, or its URI; a page of the same kind in it is replaced.
        kind: Kind of page, as recorded in its manifest.

    Yields:
        A temporary directory; on a disk, next to `out`.

    Raises:
        ConfigError: `out` holds something else, or cannot be written.
        StoreError: The store denies access or does not respond.
    """
    if isinstance(out, Uri):
        _check_replaceable(out, kind)
        with tempfile.TemporaryDirectory(prefix="glassbox-page-") as folder:
            yield Path(folder)
            _upload_page(Path(folder), out, kind)
        return
    noun = kind.rpartition(" ")[2]
    is_other = not out.is_dir() or any(out.iterdir())
    if out.exists() and read_kind(out) != kind and is_other:
        raise ConfigError(
            f"a new directory or an older {noun}",
            f"out={out} (holds something else)",
            "choose another --out or remove it",
        )
    blocked = next((out / name for name in (PAGE, MANIFEST) if (out / name).is_dir()), None)
    if blocked is not None:  # found out now, or the page would be replaced without its manifest
        raise ConfigError(
            f"a {noun} whose files can be replaced", f"file={blocked} (a directory)", "remove it"
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


def _check_replaceable(out: Uri, kind: str) -> None:
    """Checks that there is nothing but a page of the same kind at a URI.

    Raises:
        ConfigError: There is something else.
    """
    if read_remote_manifest(out / MANIFEST).get("kind") == kind:
        return
    # Pictures and views of a job that was killed, and hidden files such as leases, are no obstacle.
    names = (info.uri.relative_to(out) for info in list_objects(out))
    other = next((name for name in names if not name.startswith((".", *DIGEST_NAMED))), None)
    if other is not None:
        noun = kind.rpartition(" ")[2]
        raise ConfigError(
            f"an empty prefix or an older {noun}",
            f"out={out} (holds something else, such as {other})",
            "choose another --out or remove it",
        )


def _upload_page(directory: Path, out: Uri, kind: str) -> None:
    """Replaces the page at a URI: pictures, page, manifest and summary; then removes what is not used."""
    existing = {info.uri.relative_to(out): info.size for info in list_objects(out)}
    sizes = {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }
    last = [name for name in (PAGE, MANIFEST) if name in sizes]
    first = [name for name in sizes if name not in last]
    new = [
        name for name in first if not (name.startswith(DIGEST_NAMED) and existing.get(name) == sizes[name])
    ]
    with ThreadPoolExecutor(UPLOADS_AT_A_TIME) as threads:
        list(threads.map(lambda name: upload(directory / name, out / name), sorted(new)))
        for name in last:
            upload(directory / name, out / name)
        names = set(sizes)
        if kind == KIND:
            names.add(SUMMARY)
            summary = summarize_manifest(read_page_manifest(directory))
            write_bytes(out / SUMMARY, format_manifest(summary).encode())
        unused = [name for name in existing if name not in names and not name.startswith(".")]
        list(threads.map(lambda name: delete(out / name), unused))


def summarize_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a report's manifest that tells its inputs, and what the index page shows."""
    figures = {}
    for section, keys in SUMMARY_FIGURES.items():
        values = manifest["figures"].get(section, {})
        figures[section] = values if keys is None else _select(values, keys)
    return {**_select(manifest, SUMMARY_KEYS), "figures": figures}


def _select(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def read_remote_manifest(uri: Uri) -> dict[str, Any]:
    """Returns the manifest of a page in a store, or its summary; empty if there is none or it is damaged."""
    try:
        return parse_manifest(read_bytes(uri))
    except ObjectMissingError:
        return {}
