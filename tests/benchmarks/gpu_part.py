"""Process that runs one part of the GPU check and prints a line of JSON for every measured row.

A part is a module with `list_checks(context)`, which yields names and functions that measure rows. A failing
check does not stop the others.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # works without an installed project

from gpu_context import CheckContext, describe_environment  # noqa: E402
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
MAX_NOTE = 160  # characters


def main() -> None:
    """Runs the part that the command line names, or describes the environment."""
    part = sys.argv[1]
    context = CheckContext(**json.loads(sys.argv[2]))
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard error instead
    if part == "environment":
        about = {"environment": describe_environment(context), "gpu": context.has_gpu}
        print(json.dumps(about), file=output, flush=True)
        return
    if part in MODULES:
        context.enable_memory_growth()
    module = importlib.import_module(MODULES.get(part, part))
    for row in run_checks(part, module.list_checks(context), context):
        print(row.to_json(), file=output, flush=True)


def run_checks(part: str, checks: Checks, context: CheckContext) -> Iterator[Row]:
    """Runs the checks and yields their rows; a failing check yields a failed row."""
    for name, check in checks:
        if context.remaining_seconds <= 0:
            yield Row(part, name, note=f"{ABSENT}: no time left")
            continue
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 (the table shows any error)
            traceback.print_exc()
            first_line = next(iter(str(error).strip().splitlines()), "")
            note = f"failed: {type(error).__name__}: {first_line}"
            yield Row(part, name, passed=False, note=note[:MAX_NOTE])


if __name__ == "__main__":
    main()
