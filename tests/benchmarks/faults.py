"""What training does when it is killed, stopped, starved and misled: a table of faults, how they ended, and how long that took.

`python tests/benchmarks/faults.py --help`; half an hour on two cores. Every run is a real `glassbox train` on a real Ray.
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
from fault_lab import Lab, laboratory  # noqa: E402

Named = tuple[str, cases.Case]


def many_kills(lab: Lab, kills: int, seed: int) -> cases.Outcome:
    """At least so many random kills, over as many runs as they take."""
    chance, found = random.Random(seed), []
    while sum(outcome.times for outcome in found) < kills and len(found) < kills:
        found.append(cases.killed_workers(lab, chance, kills=6, anywhere=0.5, name=f"killed-{len(found)}"))
        print(found[-1], file=sys.stderr, flush=True)
    times, seconds = (
        sum(outcome.times for outcome in found),
        [took for outcome in found for took in outcome.seconds],
    )
    told = f"started again each time; {len(found)} of {len(found)} runs finished"
    return cases.Outcome(
        "kill -9 of a random worker", times, told, seconds, max(outcome.apart or 0 for outcome in found)
    )


def on_two_cpus(kills: int, seed: int) -> list[Named]:
    """The faults of a cluster with room for two workers."""
    killed = partial(many_kills, kills=kills, seed=seed)
    stopped = [partial(cases.silent_worker, rank=rank) for rank in (0, 1)]
    drivers = [
        partial(cases.killed_driver, workers=workers, damage=damage)
        for workers, damage in ((2, False), (1, False), (2, True))
    ]
    others = [cases.stuck_start, cases.preempted, cases.bad_row, cases.diverged, cases.diverged_and_skipped]
    named = {"stop": stopped, "driver": drivers, "other": others}
    return [("kill", killed), *((name, case) for name, group in named.items() for case in group)]


ON_ONE_CPU: list[Named] = [
    ("busy", nodes.busy_cluster),
    ("node", nodes.lost_node),
    ("elastic", nodes.elastic),
]
WITHOUT_A_CLUSTER: list[Named] = [
    ("driver", partial(cases.killed_driver, workers=2)),
    ("disk", nodes.full_disk),
    ("many", nodes.too_many_workers),
]


def outcomes(cpus: int, named: list[Named]) -> list[cases.Outcome]:
    """Does some faults, one after the other, on a cluster whose head has so many CPUs."""
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as folder,
        laboratory(Path(folder), cpus) as lab,
    ):
        for name, case in named:
            began = time.monotonic()
            try:
                found.append(case(lab))
            except AssertionError:
                found.append(cases.Outcome(name, 1, f"FAILED: {traceback.format_exc(limit=-1)}", []))
            print(f"{found[-1]} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    return found


def table(found: list[cases.Outcome]) -> str:
    """The table, as Markdown; outcomes of the same fault in one row."""
    lines = [
        "| fault | times | what happened | seconds, median (longest) | weights as undisturbed |",
        "|---|---|---|---|---|",
    ]
    for fault in dict.fromkeys(outcome.fault for outcome in found):
        same = [outcome for outcome in found if outcome.fault == fault]
        seconds = [value for outcome in same for value in outcome.seconds]
        took = f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else ""
        apart = [outcome.apart for outcome in same if outcome.apart is not None]
        equal = "" if not apart else "yes, to the bit" if max(apart) == 0 else f"within {max(apart):.0e}"
        happened = "; ".join(dict.fromkeys(outcome.happened for outcome in same))
        lines.append(
            f"| {fault} | {sum(outcome.times for outcome in same)} | {happened} | {took} | {equal} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs the faults that were asked for; 1 where one ended as it must not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=30, metavar="N", help="random kills of workers (default: 30)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random kills (default: 0)")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="kill, stop, driver, other, busy, node, elastic, disk, many"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # leaves no cluster behind
    found = []
    for cpus, named in (
        (2, on_two_cpus(options.kills, options.seed)),
        (1, ON_ONE_CPU),
        (0, WITHOUT_A_CLUSTER),
    ):
        if wanted := [entry for entry in named if not options.only or entry[0] in options.only]:
            found += outcomes(cpus, wanted)
    print(table(found))
    return int(any("FAILED" in outcome.happened for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
