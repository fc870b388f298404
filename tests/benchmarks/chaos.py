"""Disturbs every command at random, compares its results with undisturbed ones to the bit, prints a table.

`python tests/benchmarks/chaos.py --help`; an hour on two cores. Each case is a line of a log; a campaign that
was interrupted continues behind it. It mounts disks, so it runs in a mount namespace of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(TESTS.parent), str(TESTS)]  # the packages, then the helpers of the tests

import chaos_cases as cases  # noqa: E402 (after the path is set)
from chaos_lab import World, WrongError, open_world  # noqa: E402

DEFAULT_FOLDER = "/tmp/glassbox-chaos"  # short: Ray puts sockets into it
WRONG = "wrong"
RESULTS = (cases.EQUAL, cases.REFUSED_THEN_EQUAL, cases.REFUSED, WRONG)
NAMESPACE = "GLASSBOX_CHAOS_NAMESPACE"  # set in the namespace


def run_case(world: World, case: cases.NamedCase, seed: int) -> dict[str, Any]:
    """Runs a case; returns its line of the log."""
    start = time.monotonic()
    world.clear()
    try:
        outcome = case.run(world, random.Random(f"{seed} {case.name}"))
    except WrongError as error:
        outcome = cases.Outcome(1, WRONG, str(error))
    except Exception:  # noqa: BLE001 (a mistake in a case must not end the campaign)
        outcome = cases.Outcome(1, WRONG, traceback.format_exc())
    return {
        "seed": seed,
        "case": case.name,
        "kind": case.kind,
        "faults": outcome.faults,
        "result": outcome.result,
        "seconds": round(time.monotonic() - start, 1),
        "details": outcome.details,
    }


def read_log(path: Path, seed: int) -> list[dict[str, Any]]:
    """Reads the cases that were run with a seed; a line that was cut off counts as not run."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["seed"] == seed:
            lines.append(line)
    return lines


def format_table(lines: list[dict[str, Any]]) -> str:
    """Formats the counts of results by kind as a Markdown table."""
    counts = Counter((line["kind"], line["result"]) for line in lines)
    faults: Counter[str] = Counter()
    for line in lines:
        faults[line["kind"]] += line["faults"]
    rows = [
        f"| disturbance | cases | faults | {' | '.join(RESULTS)} |",
        f"|---{'|---' * (2 + len(RESULTS))}|",
    ]
    for kind in faults:
        results = [counts[kind, result] for result in RESULTS]
        rows.append(f"| {kind} | {sum(results)} | {faults[kind]} | {' | '.join(map(str, results))} |")
    totals = [sum(counts[kind, result] for kind in faults) for result in RESULTS]
    rows.append(f"| all | {sum(totals)} | {faults.total()} | {' | '.join(map(str, totals))} |")
    return "\n".join(rows)


def enter_namespace() -> None:
    """Starts this script again in a mount namespace of its own, which ends with it."""
    if NAMESPACE in os.environ:
        return
    options = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    os.environ[NAMESPACE] = "1"
    os.execvp("unshare", ["unshare", *options, sys.executable, *sys.argv])


def main() -> int:
    """Runs the selected cases that the log lacks, prints the table, returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random choices (default: 0)")
    parser.add_argument("--folder", type=Path, default=Path(DEFAULT_FOLDER), help="for the log and all files")
    parser.add_argument("--only", default="", metavar="REGEX", help="run only cases whose name contains this")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="run every N-th case, from the I-th on")
    parser.add_argument("--again", action="store_true", help="run cases that were wrong again")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of the log")
    options = parser.parse_args()
    enter_namespace()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # leaves no cluster behind
    log = options.folder / "log.jsonl"
    done = {line["case"]: line for line in read_log(log, options.seed)}
    if options.again:
        done = {name: line for name, line in done.items() if line["result"] != WRONG}
    first, parts = map(int, options.part.split("/"))
    part = cases.list_cases()[first - 1 :: parts]
    selected = [case for case in part if re.search(options.only, case.name) and case.name not in done]
    if selected and not options.table:
        with open_world(options.folder) as world:
            for case in selected:
                done[case.name] = run_case(world, case, options.seed)
                print(json.dumps(done[case.name]), file=sys.stderr, flush=True)
                with log.open("a") as file:
                    file.write(f"{json.dumps(done[case.name])}\n")
    print(format_table(list(done.values())))
    return int(any(line["result"] == WRONG for line in done.values()))


if __name__ == "__main__":
    sys.exit(main())
