"""Measures the order of rows: time and memory by number of rows, egress by hosts and lanes, shuffle quality.

Usage: .venv/bin/python tests/benchmarks/order.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelines.input.order import EpochOrder, OrderSpec

SEED = 7
BATCH = 1024
ROWS_PER_SHARD = 1000  # about 110 MB of photos of 110 kB
WINDOW = 64
SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
HOSTS = 32
CLASSES = 100

# One process per size, because the peak of the memory of a process never falls.
MEASURE = """
import json, resource, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from pipelines.input.order import EpochOrder, OrderSpec

shard_rows = np.full({rows} // {rows_per_shard}, {rows_per_shard})
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = []
for position in (0, 0.5):
    start = time.process_time()
    order = EpochOrder(OrderSpec((shard_rows,), {batch}, {seed}, {window}), 1)
    step = int(position * order.steps)
    order.find_rows(range(step, step + 1))
    seconds.append(time.process_time() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([*seconds, (peak - base) / 1024]))
"""


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table in Markdown."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def measure_sizes(sizes: Sequence[int]) -> None:
    """Measures the CPU time to a batch at the start and in the middle of an epoch, and the memory of both."""
    rows = []
    for size in sizes:
        line = [f"{size:,}"]
        for window in (WINDOW, None):
            script = MEASURE.format(
                root=str(Path(__file__).parents[2]),
                rows=size,
                rows_per_shard=ROWS_PER_SHARD,
                batch=BATCH,
                seed=SEED,
                window=window,
            )
            command = [sys.executable, "-c", script]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            first, middle, memory = json.loads(result.stdout)
            line.append(f"{1000 * first:,.1f} / {1000 * middle:,.1f} ms, {memory:,.0f} MB")
        rows.append(line)
    print_table(("rows", f"window of {WINDOW} shards: first step / step in the middle", "no window"), rows)


def count_egress(spec: OrderSpec, hosts: int) -> float:
    """Returns how often the rows of a set are fetched in an epoch, if a host fetches each shard once."""
    shard_rows = spec.shard_rows[0]
    fetched = 0
    for host in range(hosts):
        is_read = np.zeros(len(shard_rows), bool)
        for _, shards in EpochOrder(spec, 0).iterate_windows(0, host, hosts):
            is_read[shards] = True
        fetched += int(shard_rows[is_read].sum())
    return fetched / spec.rows


def measure_egress(shard_counts: Sequence[int]) -> None:
    """Counts the egress of an epoch for `HOSTS` hosts, with shards of 500 to 1,500 rows."""
    rows = []
    for count in shard_counts:
        shard_rows = np.random.default_rng(0).integers(500, 1500, count)
        spec = OrderSpec((shard_rows,), BATCH, SEED, WINDOW)
        lanes = (1, HOSTS, 2 * HOSTS)
        figures = [count_egress(replace(spec, lanes=number), HOSTS) for number in lanes]
        rows.append([f"{count:,}", *(f"{figure:.3f}" for figure in figures)])
    print_table(("shards", "1 lane", f"{HOSTS} lanes", f"{2 * HOSTS} lanes"), rows)


def measure_quality(shards: int, epochs: int) -> None:
    """Measures how well the orders shuffle a set that is sorted by class."""
    spec = OrderSpec((np.full(shards, ROWS_PER_SHARD),), BATCH, SEED)
    class_of_row = np.arange(spec.rows) * CLASSES // spec.rows
    variants = {
        "stored order": replace(spec, seed=None),
        "full": spec,
        "window 16": replace(spec, window=16),
        "window 64": replace(spec, window=64),
        "window 256": replace(spec, window=256),
        "window 64, 8 lanes": replace(spec, window=64, lanes=8),
        "window 64, 32 lanes": replace(spec, window=64, lanes=32),
        "window 256, 32 lanes": replace(spec, window=256, lanes=32),
    }
    rows = []
    for name, variant in variants.items():
        distances = []
        class_counts = []
        start = time.process_time()
        for epoch in range(epochs):
            order = EpochOrder(variant, epoch)
            batches = order.find_rows(range(order.steps - 1))  # the last one is padded
            distances.append(np.abs(np.diff(batches.ravel())).mean() / spec.rows)
            class_counts += [len(np.unique(class_of_row[batch])) for batch in batches]
        seconds = (time.process_time() - start) / epochs
        rows.append(
            [
                name,
                f"{np.mean(distances):.3f}",
                f"{np.mean(class_counts):.1f}",
                f"{np.min(class_counts)}",
                f"{seconds:.2f} s",
            ]
        )
    head = ("order", "distance between neighbours", "classes per batch", "fewest", "time per epoch")
    print_table(head, rows)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Measures the order of rows.")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    measure_sizes(SIZES[:1] if options.quick else SIZES)
    measure_egress((100,) if options.quick else (320, 640, 1280, 10_000))
    measure_quality(256 if options.quick else 1280, 1 if options.quick else 3)


if __name__ == "__main__":
    main()
