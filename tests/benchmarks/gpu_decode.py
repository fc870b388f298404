"""Part a: compares DALI with TensorFlow's decoder: equal pixels, hand-over without a copy, and speed."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from gpu_context import SIZE, CheckContext, limit_cores, list_thread_counts, measure_seconds
from gpu_part import Checks
from gpu_results import ABSENT, Row
from harness import CORES

# Bounds in levels of 255; nvJPEG rounds differently from libjpeg-turbo, and DALI resizes differently.
LARGEST_DIFFERENCE = {"GPU:0": 16.0, "CPU:0": 1.0}
MEAN_DIFFERENCE = {"GPU:0": 0.5, "CPU:0": 0.01}
COMPARED_BATCHES = 8
HELD_BATCHES = 3


def list_checks(context: CheckContext) -> Checks:
    """Yields the comparison of pixels, the hand-over, and the speed by number of threads."""
    yield "DALI against tf.data, the same rows", lambda: compare_pixels(context)
    yield "DLPack hand-over", lambda: check_handover(context)
    for threads in list_thread_counts():
        yield f"decode on {threads} threads", lambda threads=threads: measure_speed(context, threads)


def open_batches(context: CheckContext, backend: str) -> tuple[Iterable[Any], int]:
    """Returns batches of the training photos, decoded every epoch, and the number of photos."""
    from pipelines.input.batches import Batches
    from pipelines.spec import DataSpec

    spec = DataSpec(image_size=SIZE, backend=backend, cache="none")
    split = Batches(context.shards, "train", spec, context.choose(64, 64, 8))
    return split.epoch(0), split.rows


def describe_decoder(context: CheckContext) -> str:
    """Returns how DALI decodes on this machine."""
    return "DALI mixed" if context.has_gpu else "DALI on the CPU"


def compare_pixels(context: CheckContext) -> list[Row]:
    """Measures the largest and the mean difference over up to 512 photos."""
    largest = 0
    total = 0.0
    count = 0
    dali, _ = open_batches(context, "dali")
    tfdata, _ = open_batches(context, "tfdata")
    for ours, theirs in islice(zip(dali, tfdata, strict=True), COMPARED_BATCHES):
        if ours["row"].numpy().tolist() != theirs["row"].numpy().tolist():
            raise ValueError("the two decoders return different rows")
        difference = np.abs(ours["image"].numpy().astype(int) - theirs["image"].numpy())
        largest = max(largest, int(difference.max()))
        total += float(difference.sum())
        count += difference.size
    name = f"{describe_decoder(context)} against tf.data, jpeg_fancy_upsampling"
    rows = []
    for kind, value, bound in (
        ("largest", largest, LARGEST_DIFFERENCE[context.device]),
        ("mean", total / count, MEAN_DIFFERENCE[context.device]),
    ):
        title = f"{name}: {kind} difference"
        column = context.as_column(value)
        rows.append(Row("a", title, "levels", **column, goal=f"<= {bound:g}", passed=value <= bound))
    return rows


def check_handover(context: CheckContext) -> list[Row]:
    """Checks that batches stay at DALI's addresses, and unchanged while further batches are decoded."""
    import tensorflow as tf

    dali_addresses = set()
    from_dlpack = tf.experimental.dlpack.from_dlpack

    def record_address(capsule: Any) -> Any:
        dali_addresses.add(read_address(capsule))
        return from_dlpack(capsule)

    tf.experimental.dlpack.from_dlpack = record_address
    try:
        dali, _ = open_batches(context, "dali")
        images = [batch["image"] for batch in islice(dali, HELD_BATCHES)]
    finally:
        tf.experimental.dlpack.from_dlpack = from_dlpack
    second_pass, _ = open_batches(context, "dali")
    expected = [batch["image"].numpy() for batch in islice(second_pass, len(images))]
    addresses = [read_address(tf.experimental.dlpack.to_dlpack(image)) for image in images]
    is_unchanged = all((image.numpy() == other).all() for image, other in zip(images, expected, strict=True))
    is_on_device = all(image.device.endswith(context.device) for image in images)
    share = sum(address in dali_addresses for address in addresses) / len(addresses)
    distinct = len(set(addresses))
    passed = share == 1 and distinct == len(addresses) and is_unchanged and is_on_device
    state = "unchanged" if is_unchanged else "CHANGED"
    note = f"{distinct} batches held, {state}, on {images[0].device[-5:]}"
    name = "DLPack: batches at the address that DALI wrote to"
    column = context.as_column(share)
    return [Row("a", name, "fraction", **column, goal="1: no copy", passed=passed, note=note)]


def read_address(capsule: Any) -> int:
    """Reads the data address of a DLPack capsule: the first field of its tensor."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return int(ctypes.c_void_p.from_address(get_pointer(capsule, b"dltensor")).value or 0)


def measure_speed(context: CheckContext, threads: int) -> list[Row]:
    """Measures photos to uint8 batches with DALI and tf.data on a number of cores."""
    names = {
        "dali": f"{describe_decoder(context)}, {threads} threads",
        "tfdata": f"tf.data, {threads} threads",
    }
    if threads > CORES:
        return [Row("a", name, "images/s", note=f"{ABSENT}: {CORES} cores") for name in names.values()]
    rates = {}
    minimum = context.choose(3.0, 2.0, 0.0)
    with limit_cores(threads):
        for backend in names:
            _, count = open_batches(context, backend)

            def decode(backend: str = backend) -> None:
                batches, _ = open_batches(context, backend)
                deque(batches, maxlen=0)

            rates[backend] = count / measure_seconds(decode, minimum, warm_up=not context.smallest)
    return [
        Row("a", names["dali"], "images/s", **context.as_column(rates["dali"])),
        Row("a", names["tfdata"], "images/s", cpu=rates["tfdata"]),
    ]
