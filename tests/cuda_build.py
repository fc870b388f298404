"""Provides TensorFlow's build for CUDA to tests that need the kernels registered for a GPU, but no GPU."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK_FILE = ROOT / ".lock" / "gpu.txt"
CACHE_VARIABLE = "GLASSBOX_TEST_CACHE"  # environment variable: directory that keeps the build
DOWNLOAD_SECONDS = 1800  # 600 MB


class UnavailableError(Exception):
    """The build cannot be installed; the message is the reason."""


def provide_cuda_build() -> list[Path]:
    """Returns the directories to put on `PYTHONPATH` for TensorFlow's build for CUDA.

    None where this environment has that build. Otherwise the locked wheel, without what it depends on, which
    all builds share: downloaded once, 600 MB, and unpacked, 1.8 GB, into `~/.cache/glassbox-tests`.

    Raises:
        UnavailableError: The wheel cannot be downloaded, or there is none for this platform.
    """
    if _has_cuda_build():
        return []
    requirement = read_requirement(LOCK_FILE.read_text(), "tensorflow")
    version = requirement.split()[0].partition("==")[2]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    default = Path("~/.cache/glassbox-tests").expanduser()
    cache = Path(os.environ.get(CACHE_VARIABLE, default))
    folder = cache / f"tensorflow-cuda-{version}-{python}"
    cache.mkdir(parents=True, exist_ok=True)
    with _hold_lock(cache / "lock"):
        if not folder.is_dir():
            _install(requirement, folder)
    return [folder]


def read_requirement(lock: str, name: str) -> str:
    """Returns the lines of a package in a lock file: its version and the hashes of its files.

    Args:
        lock: Content of the lock file.
        name: Name of the package.
    """
    pattern = rf"^{re.escape(name)}==.*(?:\n +--hash=.*)+"
    match = re.search(pattern, lock, re.MULTILINE)
    if match is None:
        raise UnavailableError(f"{LOCK_FILE} has no hashes for {name}")
    return match.group().rstrip("\\ \n")


def _has_cuda_build() -> bool:
    """Tells whether the TensorFlow of this environment is the build for CUDA, without importing it."""
    try:
        metadata.version("tensorflow")
    except metadata.PackageNotFoundError:
        return False  # the build for CPUs has another name
    return True


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Holds a lock within a block, so that only one test process downloads."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(requirement: str, folder: Path) -> None:
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    requirements = unfinished / "requirements.txt"
    requirements.write_text(requirement + "\n")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--no-compile"]
    command += ["--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command += ["--target", str(unfinished), "--requirement", str(requirements)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(unfinished)
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"pip cannot install TensorFlow for CUDA: {lines[-1]}") from None
    except subprocess.TimeoutExpired:
        shutil.rmtree(unfinished)
        raise UnavailableError(f"no TensorFlow for CUDA within {DOWNLOAD_SECONDS} s") from None
    unfinished.rename(folder)
