"""Process that runs candidates of a benchmark. It needs the standard library only, so any Python can run it.

A candidate is a generator: the code before its first `yield` prepares, and every further step is one round of
a fixed amount of work. It yields the seconds to report, or None to report the duration of the whole round.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

Rounds = Iterator[float | None]

LIBRARIES = {
    "tensorflow": "TensorFlow",
    "keras": "Keras",
    "ray": "Ray",
    "nvidia.dali": "DALI",
    "torch": "PyTorch",
    "torchvision": "torchvision",
    "PIL": "Pillow",
    "simplejpeg": "simplejpeg",
    "tensorflow_datasets": "tensorflow-datasets",
}


def main() -> None:
    """Replies to JSON requests line by line: prepare a candidate, then run its rounds."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard error instead
    candidates: dict[str, Rounds] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = _handle(request, candidates)
        except ModuleNotFoundError as error:
            reply = {"missing": str(error)}
        except Exception as error:  # noqa: BLE001 (the table shows any error)
            traceback.print_exc()
            first_line = next(iter(str(error).strip().splitlines()), "")
            reply = {"failed": f"{type(error).__name__}: {first_line}"}
        print(json.dumps(reply), file=replies, flush=True)


def _handle(request: dict[str, Any], candidates: dict[str, Rounds]) -> dict[str, Any]:
    name = request["name"]
    if "function" in request:
        module, function = request["function"].split(":")
        candidates[name] = getattr(importlib.import_module(module), function)(**request["settings"])
        next(candidates[name])
        return {"versions": _find_versions()}
    start = time.perf_counter()
    seconds = next(candidates[name])
    return {"seconds": time.perf_counter() - start if seconds is None else seconds}


def _find_versions() -> dict[str, str]:
    """Returns the versions of Python and of the imported libraries."""
    versions = {"Python": sys.version.split()[0]}
    for module, title in LIBRARIES.items():
        version = getattr(sys.modules.get(module), "__version__", None)
        if isinstance(version, str):
            versions[title] = version
    return versions


if __name__ == "__main__":
    main()
