"""Kills, stops and starves real trainings, and prints a table: each fault, its outcome, and the time it took.

`python tests/benchmarks/faults.py --help`; half an hour on two cores. Every run is a `glassbox train` on Ray.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from statistics import median

TESTS = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(TESTS.parent), str(TESTS)]  # the packages, then the helpers of the tests

import fault_cases as cases  # noqa: E402 (after the path is set)
import fault_nodes as nodes  # noqa: E402
import fault_stores as stores  # noqa: E402
from fault_lab import Lab, open_lab  # noqa: E402

NamedCase = tuple[str, cases.Case]


def kill_many_workers(lab: Lab, kills: int, seed: int) -> cases.Outcome:
    """Kills workers at least so often, in as many runs as that takes."""
    chance = random.Random(seed)
    outcomes: list[cases.Outcome] = []
    while sum(outcome.count for outcome in outcomes) < kills and len(outcomes) < kills:
        name = f"killed-{len(outcomes)}"
        outcomes.append(cases.kill_workers(lab, chance, kills=6, at_any_time=0.5, name=name))
        print(outcomes[-1], file=sys.stderr, flush=True)
    count = sum(outcome.count for outcome in outcomes)
    seconds = [value for outcome in outcomes for value in outcome.seconds]
    difference = max(outcome.difference or 0 for outcome in outcomes)
    result = f"restarted each time; {len(outcomes)} of {len(outcomes)} runs finished"
    return cases.Outcome("kill -9 of a random worker", count, result, seconds, difference)


def list_cases_on_two_cpus(kills: int, seed: int) -> list[NamedCase]:
    """Lists the faults for a cluster with room for two workers."""
    return [
        ("kill", partial(kill_many_workers, kills=kills, seed=seed)),
        ("stop", partial(cases.stop_worker, rank=0)),
        ("stop", partial(cases.stop_worker, rank=1)),
        ("driver", partial(cases.kill_driver, workers=2)),
        ("driver", partial(cases.kill_driver, workers=1)),
        ("driver", partial(cases.kill_driver, workers=2, damage=True)),
        ("other", cases.stop_starting_worker),
        ("other", cases.terminate_driver),
        ("other", cases.damage_row),
        ("other", cases.diverge),
        ("other", cases.diverge_and_skip),
    ]


CASES_ON_ONE_CPU: list[NamedCase] = [
    ("busy", nodes.occupy_cluster),
    ("node", nodes.lose_node),
    ("elastic", nodes.add_and_lose_node),
]
CASES_WITHOUT_CLUSTER: list[NamedCase] = [
    ("driver", partial(cases.kill_driver, workers=2)),
    ("disk", nodes.fill_disk),
    ("many", nodes.request_too_many_workers),
    ("store", stores.kill_server),
    ("store", stores.kill_fetcher),
    ("store", stores.kill_driver_of_store),
    ("store", stores.fill_cache_disk),
]


def run_cases(cpus: int, named: list[NamedCase]) -> list[cases.Outcome]:
    """Runs some cases one after the other on a cluster whose head has so many CPUs."""
    outcomes = []
    with (
        tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as folder,
        open_lab(Path(folder), cpus) as lab,
    ):
        for name, case in named:
            start = time.monotonic()
            try:
                outcomes.append(case(lab))
            except AssertionError:
                outcomes.append(cases.Outcome(name, 1, f"FAILED: {traceback.format_exc(limit=-1)}", []))
            print(f"{outcomes[-1]} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    return outcomes


def format_table(outcomes: list[cases.Outcome]) -> str:
    """Formats outcomes as a Markdown table, those of the same fault in one row."""
    lines = [
        "| fault | times | outcome | seconds, median (longest) | weights as undisturbed |",
        "|---|---|---|---|---|",
    ]
    for fault in dict.fromkeys(outcome.fault for outcome in outcomes):
        same = [outcome for outcome in outcomes if outcome.fault == fault]
        count = sum(outcome.count for outcome in same)
        result = "; ".join(dict.fromkeys(outcome.result for outcome in same))
        cells = (fault, count, result, _format_seconds(same), _format_difference(same))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _format_seconds(outcomes: list[cases.Outcome]) -> str:
    seconds = [value for outcome in outcomes for value in outcome.seconds]
    return f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else ""


def _format_difference(outcomes: list[cases.Outcome]) -> str:
    differences = [outcome.difference for outcome in outcomes if outcome.difference is not None]
    if not differences:
        return ""
    return "yes, to the bit" if max(differences) == 0 else f"within {max(differences):.0e}"


def main() -> int:
    """Runs the selected cases and prints the table; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=30, metavar="N", help="random kills of workers (default: 30)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random kills (default: 0)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="run only these: kill, stop, driver, other, busy, node, elastic, disk, many, store",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # leaves no cluster behind
    groups = (
        (2, list_cases_on_two_cpus(options.kills, options.seed)),
        (1, CASES_ON_ONE_CPU),
        (0, CASES_WITHOUT_CLUSTER),
    )
    outcomes = []
    for cpus, named in groups:
        selected = [entry for entry in named if not options.only or entry[0] in options.only]
        if selected:
            outcomes += run_cases(cpus, selected)
    print(format_table(outcomes))
    return int(any("FAILED" in outcome.result for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
