"""Measures `glassbox report --all` over runs whose reports are up to date.

`python tests/benchmarks/unchanged_reports.py`: trains the demo for an epoch, renders its report, and copies
the run 1,000 times; two minutes, and 3 GB.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

GOAL_SECONDS = 10.0
COMMAND = [sys.executable, "-c", "from service.cli import main; raise SystemExit(main())"]
NOT_READ = shutil.ignore_patterns("state.npz", "events", "milestones")  # by the job


def main() -> None:
    """Builds the runs and prints the seconds of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="number of runs (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="directory for the runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="glassbox-benchmark-", dir=options.scratch) as name:
        root = _build_runs(Path(name), options.runs)
        expected = f"reports: 0 rendered, {options.runs} up to date, 0 not finished, 0 failed"
        rounds = []
        for number in range(options.rounds + 1):
            seconds, cpu, output = _measure(["report", "--all", str(root)])
            if expected not in output.splitlines():
                raise SystemExit(output)
            if number:  # the first round is a warm-up
                rounds.append((seconds, cpu))
                print(f"{seconds:.1f} s, {cpu:.1f} s of CPU", flush=True)
    seconds = median(seconds for seconds, _ in rounds)
    verdict = "yes" if seconds < GOAL_SECONDS else "no"
    print(f"{options.runs} unchanged runs: {seconds:.1f} s, goal < {GOAL_SECONDS:g} s: {verdict}")


def _build_runs(folder: Path, count: int) -> Path:
    shards = str(folder / "shards")
    run = folder / "runs" / "run-0000"
    _measure(["shards", "build", "synthetic:evidence", shards])
    _measure(["train", "--local", "--preset", "demo", "--data", shards, "--out", str(run), "epochs=1"])
    _measure(["report", str(run)])
    for number in range(1, count):
        shutil.copytree(run, run.with_name(f"run-{number:04d}"), ignore=NOT_READ)
    # The report of the first run has no link to the index of all runs, but is up to date all the same.
    return run.parent


def _measure(arguments: list[str]) -> tuple[float, float, str]:
    """Runs a command of glassbox; returns seconds, seconds of CPU, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


if __name__ == "__main__":
    main()
