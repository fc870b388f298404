"""A process that runs one part of the GPU check: a line of JSON for every row, as soon as it is there.

A part is a module with `checks(lab)`, which yields names and what measures them. A check that fails stops none of the others.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the project need not be installed

from gpu_lab import Lab, environment  # noqa: E402
from gpu_results import ABSENT, Row  # noqa: E402

Checks = Iterator[tuple[str, Callable[[], list[Row]]]]
MODULES = {
    "a": "gpu_decode",
    "b": "gpu_augment",
    "c": "gpu_steps",
    "d": "gpu_loop",
    "e": "gpu_training",
    "f": "gpu_report",
}


def main() -> None:
    """Runs the part that the command line names, or describes the machine."""
    part, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    lab = Lab(**settings)
    if part == "environment":
        print(json.dumps({"environment": environment(lab), "gpu": lab.gpu}), file=answers, flush=True)
        return
    if part in MODULES:
        lab.find_devices()
    for row in rows_of(part, importlib.import_module(MODULES.get(part, part)).checks(lab), lab):
        print(row.line(), file=answers, flush=True)


def rows_of(part: str, checks: Checks, lab: Lab) -> Iterator[Row]:
    """The rows of all checks; one that fails is a row that says so."""
    for name, check in checks:
        if lab.left <= 0:
            yield Row(part, name, note=f"{ABSENT}: no time left")
            continue
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 (Keras raises no narrower one where a download fails)
            traceback.print_exc()
            first = next(iter(str(error).strip().splitlines()), "")
            yield Row(part, name, passed=False, note=f"failed: {type(error).__name__}: {first}"[:160])


if __name__ == "__main__":
    main()
