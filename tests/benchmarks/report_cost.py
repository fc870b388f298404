"""Measures the CPU time of a whole report with this code and with an earlier version, section by section.

`python tests/benchmarks/report_cost.py --base CHECKOUT --run RUN --data SHARDS`: every round renders the
report of copies of the run with both, in processes of their own and in alternating order; also the sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
GOAL_RATIO = 1.4
VIEW_GOAL = 350_000  # bytes of the page and the pictures of its first view
IMAGE_GOAL = 600_000  # bytes per image that is examined closely, for small networks
START = "start"  # imports, opening the run, loading the model
# Renders the report of a run, and prints the seconds of CPU of all threads by the name of the section.
WORKER = """
import json, sys, time
from pathlib import Path

began = time.process_time()
seconds, current = {}, "start"


def progress(done, total, name):
    global began, current
    now = time.process_time()
    seconds[current] = seconds.get(current, 0.0) + now - began
    began, current = now, name


from service.report.job import render_report
from service.runs import Run

page = render_report(Run(Path(sys.argv[1])), Path(sys.argv[2]), progress=progress)
progress(0, 0, "end")
print("SECONDS", json.dumps(seconds))
"""


def main() -> None:
    """Renders in turns, and prints the table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="checkout of the earlier version")
    parser.add_argument("--run", type=Path, required=True, help="run directory; it is copied")
    parser.add_argument("--data", type=Path, required=True, help="its shard set")
    parser.add_argument(
        "--base-run", type=Path, help="the same run for the earlier version, if its format differs"
    )
    parser.add_argument("--base-data", type=Path, help="the same shard set for the earlier version")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (default: 2)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="directory for the copies")
    options = parser.parse_args()
    code = {"before": options.base.resolve(), "now": ROOT}
    sources = {"before": options.base_run or options.run, "now": options.run}
    data = {"before": (options.base_data or options.data).resolve(), "now": options.data.resolve()}
    rounds: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory(prefix="glassbox-benchmark-", dir=options.scratch) as folder:
        runs = {}
        for name in code:
            runs[name] = Path(folder) / name
            shutil.copytree(sources[name], runs[name], ignore=shutil.ignore_patterns("report", "events"))
        for number in range(options.rounds):
            names = list(code) if number % 2 == 0 else list(reversed(code))
            for name in names:
                rounds[name].append(_render(code[name], runs[name], data[name]))
                print(f"round {number + 1}, {name}: {sum(rounds[name][-1].values()):.1f} s", flush=True)
        _print_table(rounds)
        for name, run in runs.items():
            _print_sizes(name, run / "report")


def _render(checkout: Path, run: Path, data: Path) -> dict[str, float]:
    """Renders a report in a new process; returns the seconds of CPU by section."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", WORKER, str(run), str(data)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS "))
    seconds: dict[str, float] = json.loads(line.removeprefix("SECONDS "))
    return seconds


def _print_table(rounds: dict[str, list[dict[str, float]]]) -> None:
    sections = list(dict.fromkeys(name for one in [*rounds["now"], *rounds["before"]] for name in one))
    totals = {name: [sum(one.values()) for one in measured] for name, measured in rounds.items()}
    before = median(totals["before"])
    print("\n| section | before, CPU s | now, CPU s | difference |\n|---|---:|---:|---:|")
    for section in sections:
        seconds = {name: median(one.get(section, 0.0) for one in rounds[name]) for name in rounds}
        share = (seconds["now"] - seconds["before"]) / before
        print(f"| {section} | {seconds['before']:.1f} | {seconds['now']:.1f} | {share:+.1%} |")
    ratio = median(now / base for now, base in zip(totals["now"], totals["before"], strict=True))
    print(f"| **all** | {before:.1f} | {median(totals['now']):.1f} | {ratio - 1:+.1%} |")
    print(f"\nnow / before: {ratio:.2f}, goal <= {GOAL_RATIO}: {'yes' if ratio <= GOAL_RATIO else 'no'}")


def _print_sizes(name: str, report: Path) -> None:
    html = (report / "index.html").read_text()
    # Views are sections that carry `data-view`; the first one is open when the page is.
    views = re.split(r"<section class=\"view\"", html)
    # Pictures load lazily: not in a box that is closed.
    shown = re.sub(r"<details(?![^>]* open).*?</details>", "", views[1], flags=re.DOTALL)
    pictures = set(re.findall(r'src="(pictures/[^"]+)"', shown))
    first_view = len(html.encode()) + sum((report / picture).stat().st_size for picture in pictures)
    total = sum(path.stat().st_size for path in report.rglob("*") if path.is_file())
    gallery = sum(path.stat().st_size for path in report.glob("*/gallery-*"))
    examples = _count_examples()
    print(f"{name}: first view {first_view / 1000:.0f} kB, goal <= {VIEW_GOAL / 1000:.0f} kB")
    print(f"{name}: report {total / 1e6:.2f} MB, of which the gallery {gallery / 1e6:.2f} MB")
    per_image = (total - gallery) / examples
    print(f"{name}: {per_image / 1e6:.2f} MB per image closely examined, without the gallery")
    print(f"    (goal for small networks <= {IMAGE_GOAL / 1e6:.1f} MB)")


def _count_examples() -> int:
    sys.path.insert(0, str(ROOT))
    from service.report.options import ReportOptions

    return ReportOptions().heatmap_images


if __name__ == "__main__":
    main()
