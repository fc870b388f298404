"""Contestants of the shard benchmark: what the machine can do at best, and this project's builder."""

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

from input_ours import on_threads
from worker import Rounds

COMMAND = (sys.executable, "-c", "import sys; from service.cli import main; sys.exit(main(sys.argv[1:]))")


def read(folder: str) -> list[bytes]:
    """The photos, in memory."""
    return [path.read_bytes() for path in sorted(Path(folder).glob("*/*"))]


def bare(
    folder: str, cores: int, threads: bool, quality: int | None = None, size: int | None = None
) -> Rounds:
    """Decodes images that are in memory already, perhaps scales and encodes them, and drops the result."""
    global _held
    _held = read(folder)
    if threads:
        yield None
        while True:
            on_threads(lambda image: transcode(image, quality, size), _held, cores)
            yield None
    step = -(-len(_held) // (8 * cores))
    parts = [(start, min(start + step, len(_held)), quality, size) for start in range(0, len(_held), step)]
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        yield None
        while True:
            pool.map(_transcode_held, parts, chunksize=1)
            yield None


_held: list[bytes] = []


def _transcode_held(part: tuple[int, int, int | None, int | None]) -> None:
    start, stop, quality, size = part
    for image in _held[start:stop]:
        transcode(image, quality, size)


def transcode(image: bytes, quality: int | None, size: int | None) -> None:
    """Decode, scale so that the shorter side is at most `size`, encode: the calls that the builder makes and no others."""
    import simplejpeg
    from PIL import Image

    pixels = simplejpeg.decode_jpeg(image, strict=True)
    height, width, _ = pixels.shape
    if size is not None and min(height, width) > size:
        scaled = (round(width * size / min(height, width)), round(height * size / min(height, width)))
        pixels = np_array(Image.fromarray(pixels).resize(scaled, Image.Resampling.BICUBIC))
    if quality is not None:
        simplejpeg.encode_jpeg(pixels, quality, colorsubsampling="420")


def np_array(picture: Any) -> Any:
    """A picture's pixels as an array that can be encoded."""
    import numpy as np

    return np.ascontiguousarray(picture)


def copy(folder: str, scratch: str) -> Rounds:
    """`cp -r` of the same files, and `sync` of the file system that they went to."""

    def work(out: Path) -> None:
        subprocess.run(["cp", "-rL", folder, str(out)], check=True)
        subprocess.run(["sync", "--file-system", str(out)], check=True)

    yield from _fresh(scratch, "copy", work)


def ours(folder: str, scratch: str, **spec: Any) -> Rounds:
    """`build_shards` on a Ray that runs already; what counts begins when its workers are ready."""
    from pipelines.cluster import ray_session
    from pipelines.shards.build import build_shards
    from pipelines.sources import open_source
    from pipelines.spec import ShardSpec

    def work(out: Path) -> float:
        began = time.perf_counter()
        source = open_source(f"folder:{folder}")
        opened, ready = time.perf_counter(), []
        build_shards(source, out, ShardSpec(**spec), lambda done, total: ready.append(time.perf_counter()))
        return opened - began + time.perf_counter() - ready[0]

    with ray_session():
        yield from _fresh(scratch, "ours", work)


def command_line(folder: str, scratch: str) -> Rounds:
    """`glassbox shards build` from the first to the last, with the start of Python and of Ray."""

    def work(out: Path) -> None:
        subprocess.run(
            [*COMMAND, "shards", "build", f"folder:{folder}", str(out)], check=True, capture_output=True
        )

    yield from _fresh(scratch, "command", work)


def _fresh(scratch: str, name: str, work: Callable[[Path], float | None]) -> Rounds:
    """Rounds that each write to a directory of their own, which is removed off the clock."""
    yield None
    while True:
        out = Path(scratch) / f"{name}-{os.getpid()}"
        began = time.perf_counter()
        seconds = work(out)
        taken = time.perf_counter() - began
        shutil.rmtree(out)
        yield taken if seconds is None else seconds
