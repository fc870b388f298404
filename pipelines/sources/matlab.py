"""Reads the classes of ImageNet's `meta.mat` with SciPy, in a process of its own: damaged files crash SciPy.

The process runs this file, which imports nothing else of the package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from signal import Signals

FAILED = 1  # exit code for an exception, which is written to stderr


def read_classes(path: Path) -> list[tuple[int, str, str]]:
    """Reads number (ILSVRC2012_ID), WordNet ID and words of each class.

    Args:
        path: A file of MATLAB.

    Raises:
        ValueError: The file is damaged.
    """
    command = [sys.executable, "-P", __file__, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode == 0:
        return [tuple(row) for row in json.loads(result.stdout)]
    if result.returncode == FAILED:
        raise ValueError(result.stderr.strip())
    raise ValueError(f"SciPy crashes: {describe_exit(result.returncode)}")


def describe_exit(code: int) -> str:
    """Names the signal that ended a process, or its exit code."""
    return Signals(-code).name if code < 0 else f"exit code {code}"


def write_classes(path: str) -> int:
    """Writes the classes as JSON, or the exception to stderr; returns the exit code."""
    from scipy.io import loadmat

    try:
        rows = loadmat(path, squeeze_me=True, simplify_cells=True)["synsets"]
        classes = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in rows]
    except Exception as error:  # noqa: BLE001 (SciPy raises almost anything for a damaged file)
        sys.stderr.write(f"{type(error).__name__}: {error}")
        return FAILED
    sys.stdout.write(json.dumps(classes))
    return 0


if __name__ == "__main__":
    sys.exit(write_classes(sys.argv[1]))
