"""A process that holds contestants of a benchmark. It needs the standard library alone, so that any Python can run it.

A contestant is a generator: what stands before its first `yield` prepares, and every further step is one round of a
fixed amount of work, for which it yields the seconds that count, or None for all of the round's.
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


def main() -> None:
    """Answers one JSON line with another until the input ends: first how to prepare a contestant, then its rounds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    contestants: dict[str, Rounds] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request, contestants)
        except ModuleNotFoundError as error:
            answer = {"missing": str(error)}
        except Exception as error:  # noqa: BLE001 (Keras raises no narrower one where a download fails)
            traceback.print_exc()
            answer = {
                "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            }
        print(json.dumps(answer), file=answers, flush=True)


def _answer(request: dict[str, Any], contestants: dict[str, Rounds]) -> dict[str, Any]:
    name = request["name"]
    if "function" in request:
        module, function = request["function"].split(":")
        contestants[name] = getattr(importlib.import_module(module), function)(**request["settings"])
        next(contestants[name])
        return {"versions": _versions()}
    began = time.perf_counter()
    seconds = next(contestants[name])
    return {"seconds": time.perf_counter() - began if seconds is None else seconds}


def _versions() -> dict[str, str]:
    """Versions of the libraries that matter, of those imported here."""
    names = {
        "tensorflow": "TensorFlow",
        "keras": "Keras",
        "ray": "Ray",
        "nvidia.dali": "DALI",
        "torch": "PyTorch",
    }
    names |= {
        "torchvision": "torchvision",
        "PIL": "Pillow",
        "simplejpeg": "simplejpeg",
        "tensorflow_datasets": "tensorflow-datasets",
    }
    found = {"Python": sys.version.split()[0]}
    for module, title in names.items():
        version = getattr(sys.modules.get(module), "__version__", None)
        if isinstance(version, str):
            found[title] = version
    return found


if __name__ == "__main__":
    main()
