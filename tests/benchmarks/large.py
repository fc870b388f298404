"""Whether a build's memory stays flat and its speed stays the same however large the source is."""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import psutil
import table

SMALL, LARGE, QUICK = 20_000, 200_000, (200, 2_000)
MEMORY_GOAL, SPEED_GOAL = 1.0, 0.9  # GiB a process; share of the small build's speed


class PeakMemory:
    """Samples the resident memory of this process and of all below it, within a block.

    Args:
        pause: Seconds between two samples.

    Attributes:
        peaks: Bytes by `driver` and by the name of each process below it, with its number.
    """

    def __init__(self, pause: float = 0.1) -> None:
        self.peaks: dict[str, int] = {}
        self._pause, self._over = pause, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()  # a block may be shorter than a pause

    def _watch(self) -> None:
        while not self._over.wait(self._pause):
            self._look()

    def _look(self) -> None:
        driver = psutil.Process()
        for process in (driver, *driver.children(recursive=True)):
            try:
                name = "driver" if process == driver else f"{process.name()} {process.pid}"
                size = process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.peaks[name] = max(self.peaks.get(name, 0), size)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Builds a small set, a large one and the small one again, and prints the figures."""
    from pipelines.cluster import ray_session

    small, large = QUICK if options.quick else (SMALL, LARGE)
    before, speeds, peaks = table.load(), [], {}
    with (
        tempfile.TemporaryDirectory(prefix="glassbox-benchmark-", dir=options.scratch) as scratch,
        ray_session(),
    ):
        for place, images in enumerate((small, large, small)):
            with PeakMemory() as memory:
                speeds.append(_build(images, Path(scratch) / str(place)))
            if images == large:
                peaks = memory.peaks
    workers = {
        name: size / 2**30 for name, size in peaks.items() if name == "driver" or name.startswith("ray::")
    }
    figures = {
        "title": "Shards: memory and speed of a build of many small images",
        "images": [small, large, small],
        "images_per_second": speeds,
        "speed_kept": speeds[1] / median((speeds[0], speeds[2])),
        "peak_gib": workers,
        "load_before": before,
        "load_after": table.load(),
        "machine": table.machine({}),
    }
    print(text(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _build(images: int, out: Path) -> float:
    """Builds a synthetic set; images per second from the moment the workers are ready."""
    from pipelines.shards.build import build_shards
    from pipelines.sources import open_source
    from pipelines.spec import ShardSpec

    ready: list[float] = []
    source = open_source(f"synthetic:evidence,train={images},validation=0,size=32")
    build_shards(
        source, out, ShardSpec(validation=0.0), lambda done, total: ready.append(time.perf_counter())
    )
    return images / (time.perf_counter() - ready[0])


def text(figures: dict[str, Any]) -> str:
    """The figures in words."""
    lines = [figures["title"], ""]
    for images, speed in zip(figures["images"], figures["images_per_second"], strict=True):
        lines.append(f"{images:>8,} images  {speed:8.0f} images/s")
    kept, peak = figures["speed_kept"], max(figures["peak_gib"].values())
    lines += ["", f"speed kept {kept:.2f}, goal >= {SPEED_GOAL}: {'yes' if kept >= SPEED_GOAL else 'no'}"]
    lines += [f"{name:<30} {size:.2f} GiB at most" for name, size in sorted(figures["peak_gib"].items())]
    lines += [f"largest {peak:.2f} GiB, goal < {MEMORY_GOAL}: {'yes' if peak < MEMORY_GOAL else 'no'}"]
    host = figures["machine"]
    lines += [
        "",
        f"{host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB; load {figures['load_before']} to {figures['load_after']}",
    ]
    return "\n".join(lines)
