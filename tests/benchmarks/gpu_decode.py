"""Part a: DALI beside TensorFlow's decoder: the same pixels, handed over where they lie, and how fast."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from arena import CORES
from gpu_lab import SIZE, Lab, on_cores, seconds_each, thread_counts
from gpu_part import Checks
from gpu_results import ABSENT, Row

LARGEST = {
    "GPU:0": 16.0,
    "CPU:0": 1.0,
}  # levels of 255; nvJPEG rounds otherwise than libjpeg-turbo, and DALI's resize than TensorFlow's
MEAN = {"GPU:0": 0.5, "CPU:0": 0.01}


def checks(lab: Lab) -> Checks:
    """Agreement, hand-over, speed by threads."""
    yield "DALI against tf.data, the same rows", lambda: agreement(lab)
    yield "DLPack hand-over", lambda: handover(lab)
    for threads in thread_counts():
        yield f"decode on {threads} threads", lambda threads=threads: speed(lab, threads)


def batches(lab: Lab, backend: str) -> tuple[Iterable[Any], int]:
    """The training photos, decoded every time, and how many there are."""
    from pipelines.input.batches import Batches
    from pipelines.spec import DataSpec

    split = Batches(
        lab.shards, "train", DataSpec(image_size=SIZE, backend=backend, cache="none"), lab.pick(64, 64, 8)
    )
    return split.epoch(0), split.rows


def way(lab: Lab) -> str:
    """How DALI decodes here."""
    return "DALI mixed" if lab.gpu else "DALI on the CPU"


def agreement(lab: Lab) -> list[Row]:
    """Largest and mean difference of up to 512 photos."""
    largest, total, count = 0, 0.0, 0
    for ours, theirs in islice(zip(batches(lab, "dali")[0], batches(lab, "tfdata")[0], strict=True), 8):
        if ours["row"].numpy().tolist() != theirs["row"].numpy().tolist():
            raise ValueError("the two decoders give different rows")
        difference = np.abs(ours["image"].numpy().astype(int) - theirs["image"].numpy())
        largest, total, count = (
            max(largest, int(difference.max())),
            total + float(difference.sum()),
            count + difference.size,
        )
    name, mean = f"{way(lab)} against tf.data, jpeg_fancy_upsampling", total / count
    most, average = LARGEST[lab.device], MEAN[lab.device]
    return [
        Row(
            "a",
            f"{name}: largest difference",
            "levels",
            **lab.column(largest),
            goal=f"<= {most:g}",
            passed=largest <= most,
        ),
        Row(
            "a",
            f"{name}: mean difference",
            "levels",
            **lab.column(mean),
            goal=f"<= {average:g}",
            passed=mean <= average,
        ),
    ]


def handover(lab: Lab) -> list[Row]:
    """Whether the batches lie where DALI gave them away, and stay as they are while others are decoded."""
    import tensorflow as tf

    given, take = set(), tf.experimental.dlpack.from_dlpack

    def watched(capsule: Any) -> Any:
        given.add(address(capsule))
        return take(capsule)

    tf.experimental.dlpack.from_dlpack = watched
    try:
        held = [batch["image"] for batch in islice(batches(lab, "dali")[0], 3)]
    finally:
        tf.experimental.dlpack.from_dlpack = take
    theirs = [batch["image"].numpy() for batch in islice(batches(lab, "dali")[0], len(held))]
    places = [address(tf.experimental.dlpack.to_dlpack(image)) for image in held]
    kept = all((image.numpy() == other).all() for image, other in zip(held, theirs, strict=True))
    share = sum(place in given for place in places) / len(places)
    passed = (
        share == 1
        and len(set(places)) == len(places)
        and kept
        and all(image.device.endswith(lab.device) for image in held)
    )
    note = f"{len(set(places))} batches held, {'unchanged' if kept else 'CHANGED'}, on {held[0].device[-5:]}"
    name = "DLPack: batches that lie where DALI put them"
    return [Row("a", name, "share", **lab.column(share), goal="1: no copy", passed=passed, note=note)]


def address(capsule: Any) -> int:
    """Where the data of a DLPack capsule lies: the first field of what it points to."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(ctypes.c_void_p.from_address(pointer(capsule, b"dltensor")).value or 0)


def speed(lab: Lab, threads: int) -> list[Row]:
    """Photos to uint8 batches, by DALI and by tf.data, where both have so many cores."""
    names = (f"{way(lab)}, {threads} threads", f"tf.data, {threads} threads")
    if threads > CORES:
        return [Row("a", name, "images/s", note=f"{ABSENT}: {CORES} cores") for name in names]
    rates = []
    with on_cores(threads):
        for backend in ("dali", "tfdata"):
            _, count = batches(lab, backend)
            seconds = seconds_each(
                lambda backend=backend: deque(batches(lab, backend)[0], 0),
                lab.pick(3.0, 2.0, 0.0),
                not lab.smallest,
            )
            rates.append(count / seconds)
    return [
        Row("a", names[0], "images/s", **lab.column(rates[0])),
        Row("a", names[1], "images/s", cpu=rates[1]),
    ]
