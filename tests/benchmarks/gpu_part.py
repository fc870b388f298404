"""Process that runs one part of the GPU check.

Prints lines of JSON: the names of its checks, then for each check its name when it starts, and its rows.

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
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # works without an installed project

from gpu_context import CheckContext, OutOfTimeError, describe_environment  # noqa: E402
from gpu_results import Row, build_late_row  # noqa: E402

Checks = Iterator[tuple[str, Callable[[], list[Row]]]]
MODULES = {
    "a": "gpu_decode",
    "b": "gpu_augment",
    "c": "gpu_steps",
    "d": "gpu_loop",
    "e": "gpu_training",
    "f": "gpu_report",
    "g": "gpu_environment",
    "h": "gpu_replicas",
    "i": "gpu_determinism",
    "j": "gpu_inference",
}
MAX_NOTE = 160  # characters


def main() -> None:
    """Runs the part that the command line names, or describes the environment."""
    part = sys.argv[1]
    context = CheckContext(**json.loads(sys.argv[2]))
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard error instead
    if part == "environment":
        environment = describe_environment(context)
        about = {"environment": environment, "gpu": context.has_gpu, "devices": context.count_devices()}
        print(json.dumps(about), file=output, flush=True)
        return

    def write(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=output, flush=True)

    module = importlib.import_module(MODULES.get(part, part))
    checks = list(module.list_checks(context))
    write({"checks": [name for name, _ in checks]})
    if part in MODULES:
        context.warm_up()
    for name, check in checks:
        write({"started": name})
        for row in run_checks(part, iter([(name, check)]), context):
            write({"row": asdict(row)})


def run_checks(part: str, checks: Checks, context: CheckContext) -> Iterator[Row]:
    """Runs the checks and yields their rows; a failing check yields a failed row.

    A check that finds no time left yields a row without a value.
    """
    for name, check in checks:
        if context.remaining_seconds <= 0:
            yield build_late_row(part, name, "no time left")
            continue
        try:
            yield from check()
        except OutOfTimeError:
            yield build_late_row(part, name, "not done in time")
        except Exception as error:  # noqa: BLE001 (the table shows any error)
            traceback.print_exc()
            first_line = next(iter(str(error).strip().splitlines()), "")
            note = f"failed: {type(error).__name__}: {first_line}"
            yield Row(part, name, passed=False, note=note[:MAX_NOTE])


if __name__ == "__main__":
    main()
