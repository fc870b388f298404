"""Measures whether memory and speed of a shard build are independent of the size of the source."""

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
import results

SMALL = 20_000
LARGE = 200_000
QUICK = (200, 2_000)
MEMORY_GOAL = 1.0  # GiB per process
SPEED_GOAL = 0.9  # of the small build's speed


class PeakMemory:
    """Context manager that samples the resident memory of this process and its descendants.

    Args:
        interval: Seconds between two samples.

    Attributes:
        peaks: Peak in bytes by `driver`, or by name and id of a descendant.
    """

    def __init__(self, interval: float = 0.1) -> None:
        self.peaks: dict[str, int] = {}
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()  # the block may be shorter than an interval

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
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
    sizes = (small, large, small)
    load_before = results.read_load()
    speeds = []
    peaks: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory(prefix="glassbox-benchmark-", dir=options.scratch) as scratch,
        ray_session(),
    ):
        for index, images in enumerate(sizes):
            with PeakMemory() as memory:
                speeds.append(_build(images, Path(scratch) / str(index)))
            if images == large:
                peaks = memory.peaks
    peak_gib = {
        name: size / 2**30 for name, size in peaks.items() if name == "driver" or name.startswith("ray::")
    }
    figures = {
        "title": "Shards: memory and speed of a build of many small images",
        "images": list(sizes),
        "images_per_second": speeds,
        "speed_kept": speeds[1] / median((speeds[0], speeds[2])),
        "peak_gib": peak_gib,
        "load_before": load_before,
        "load_after": results.read_load(),
        "machine": results.describe_machine({}),
    }
    print(format_figures(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _build(images: int, out: Path) -> float:
    """Builds a synthetic set; returns images per second since the workers were ready."""
    from pipelines.shards.build import build_shards
    from pipelines.sources import open_source
    from pipelines.spec import ShardSpec

    progress_times: list[float] = []
    source = open_source(f"synthetic:evidence,train={images},validation=0,size=32")
    build_shards(
        source,
        out,
        ShardSpec(validation=0.0),
        lambda done, total: progress_times.append(time.perf_counter()),
    )
    return images / (time.perf_counter() - progress_times[0])


def format_figures(figures: dict[str, Any]) -> str:
    """Formats the figures as text."""
    lines = [figures["title"], ""]
    for images, speed in zip(figures["images"], figures["images_per_second"], strict=True):
        lines.append(f"{images:>8,} images  {speed:8.0f} images/s")
    ratio = figures["speed_kept"]
    reached = "yes" if ratio >= SPEED_GOAL else "no"
    lines += ["", f"speed of the large build {ratio:.2f} of the small one's, goal >= {SPEED_GOAL}: {reached}"]
    for name, size in sorted(figures["peak_gib"].items()):
        lines.append(f"{name:<30} peak {size:.2f} GiB")
    peak = max(figures["peak_gib"].values())
    reached = "yes" if peak < MEMORY_GOAL else "no"
    lines.append(f"largest peak {peak:.2f} GiB, goal < {MEMORY_GOAL}: {reached}")
    host = figures["machine"]
    machine = f"{host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB"
    lines += ["", f"{machine}; load {figures['load_before']} to {figures['load_after']}"]
    return "\n".join(lines)
