"""Candidates of the shard benchmark: raw decoding and copying as limits, and this project's builder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from input_ours import PARTS_PER_PROCESS, run_on_threads
from worker import Rounds

COMMAND = (sys.executable, "-c", "import sys; from service.cli import main; sys.exit(main(sys.argv[1:]))")


def read_photos(folder: str) -> list[bytes]:
    """Reads the photos into memory."""
    return [path.read_bytes() for path in sorted(Path(folder).glob("*/*"))]


def raw(
    folder: str, cores: int, threads: bool, quality: int | None = None, size: int | None = None
) -> Rounds:
    """Decodes images in memory, optionally scales and encodes them, and discards the result.

    Args:
        folder: Folder of photos, one subfolder per class.
        cores: Number of threads or processes.
        threads: Whether to use threads instead of processes.
        quality: JPEG quality to encode with; None for no encoding.
        size: Shorter side to scale down to; None for no scaling.
    """
    global _shared_images
    _shared_images = read_photos(folder)
    if threads:
        yield None
        while True:
            run_on_threads(lambda image: transcode(image, quality, size), _shared_images, cores)
            yield None
    count = len(_shared_images)
    step = -(-count // (PARTS_PER_PROCESS * cores))
    parts = [(start, min(start + step, count), quality, size) for start in range(0, count, step)]
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        yield None
        while True:
            pool.map(_transcode_part, parts, chunksize=1)
            yield None


_shared_images: list[bytes] = []  # inherited by forked processes, which saves sending the images


def _transcode_part(part: tuple[int, int, int | None, int | None]) -> None:
    start, stop, quality, size = part
    for image in _shared_images[start:stop]:
        transcode(image, quality, size)


def transcode(image: bytes, quality: int | None, size: int | None) -> None:
    """Decodes, scales the shorter side to at most `size`, and encodes, with the same calls as the builder."""
    import numpy as np
    import simplejpeg
    from PIL import Image

    pixels = simplejpeg.decode_jpeg(image, strict=True)
    height, width, _ = pixels.shape
    shorter = min(height, width)
    if size is not None and shorter > size:
        new_size = (round(width * size / shorter), round(height * size / shorter))
        resized = Image.fromarray(pixels).resize(new_size, Image.Resampling.BICUBIC)
        pixels = np.ascontiguousarray(resized)
    if quality is not None:
        simplejpeg.encode_jpeg(pixels, quality, colorsubsampling="420")


def copy(folder: str, scratch: str) -> Rounds:
    """Copies the files with `cp -r`, and runs `sync` on the target's filesystem."""

    def work(out: Path) -> None:
        subprocess.run(["cp", "-rL", folder, str(out)], check=True)
        subprocess.run(["sync", "--file-system", str(out)], check=True)

    yield from _run_in_new_directories(scratch, "copy", work)


def ours(folder: str, scratch: str, **spec: Any) -> Rounds:
    """Runs `build_shards` on a running Ray, without the time until Ray's workers are ready."""
    from pipelines.cluster import ray_session
    from pipelines.shards.build import build_shards
    from pipelines.sources import open_source
    from pipelines.spec import ShardSpec

    def work(out: Path) -> float:
        start = time.perf_counter()
        source = open_source(f"folder:{folder}")
        open_seconds = time.perf_counter() - start
        progress_times: list[float] = []
        build_shards(
            source, out, ShardSpec(**spec), lambda done, total: progress_times.append(time.perf_counter())
        )
        return open_seconds + time.perf_counter() - progress_times[0]

    # Ray lowers the priority of its workers, which on a busy machine would compare priorities, not builders.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with ray_session():
        yield from _run_in_new_directories(scratch, "ours", work)


def command_line(folder: str, scratch: str) -> Rounds:
    """Runs `glassbox shards build`, including the start of Python and Ray."""

    def work(out: Path) -> None:
        command = [*COMMAND, "shards", "build", f"folder:{folder}", str(out)]
        subprocess.run(command, check=True, capture_output=True)

    yield from _run_in_new_directories(scratch, "command", work)


def _run_in_new_directories(scratch: str, name: str, work: Callable[[Path], float | None]) -> Rounds:
    """Runs rounds that write to a new directory each, and deletes it outside the measured time."""
    yield None
    while True:
        out = Path(scratch) / f"{name}-{os.getpid()}"
        start = time.perf_counter()
        seconds = work(out)
        duration = time.perf_counter() - start
        shutil.rmtree(out)
        yield duration if seconds is None else seconds
