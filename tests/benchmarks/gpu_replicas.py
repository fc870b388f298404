"""Part h: compares several devices with one: the same losses, the speed-up, NCCL, and a sharded cache."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpu_context import CheckContext
from gpu_part import Checks
from gpu_processes import run_processes
from gpu_results import ABSENT, Row

COUNTS = (2, 4, 8)
# Relative difference of the loss of an epoch: another order of float32 sums, over some dozens of updates.
LOSS_TOLERANCE = 1e-4
# Share of the ideal speed-up; NVLink leaves the sum of ResNet-50's 100 MB of gradients about 2 ms of 50.
MIN_EFFICIENCY = 0.9
SPEED = {"batch": 256, "updates": 20, "network": "resnet50"}
# A linear model of pixels of 0 to 255 diverges with larger steps.
SMALLEST_RUN = {"model": "linear", "epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 1e-6}}
SMALLEST_SPEED = {"batch": 4, "updates": 2, "network": "linear"}


def list_checks(context: CheckContext) -> Checks:
    """Yields all devices, two processes and the sharded cache, then smaller numbers of devices."""
    largest, *others = sorted(COUNTS, key=lambda count: (count > context.devices, -count))
    yield f"{largest} devices of one process", lambda: compare_mirrored(context, largest)
    yield "two processes", lambda: compare_processes(context)
    yield "sharded cache", lambda: compare_sharded(context)
    for count in others:
        yield f"{count} devices of one process", lambda count=count: compare_mirrored(context, count)


def build_settings(context: CheckContext, name: str, *, speed: bool) -> dict[str, Any]:
    """Returns the settings of a process that trains a run."""
    run: dict[str, Any] = dict(SMALLEST_RUN) if context.smallest else {}
    settings: dict[str, Any] = {"shards": str(context.shards), "folder": context.scratch, "runs": {name: run}}
    if speed and (context.has_gpu or context.smallest):
        settings["speed"] = SMALLEST_SPEED if context.smallest else SPEED
    return settings


@lru_cache
def measure_devices(context: CheckContext, count: int) -> dict[str, Any]:
    """Trains in one process with a number of devices, and measures its step."""
    settings = build_settings(context, f"devices{count}", speed=True)
    (report,) = run_processes(context, [list(range(count))], settings, f"devices{count}.log")
    if report["replicas"] != count:
        raise RuntimeError(f"{report['replicas']} replicas instead of {count}")
    return report


def compare_mirrored(context: CheckContext, count: int) -> list[Row]:
    """Compares several devices of one process with one device."""
    title = f"{count} devices of one process"
    if context.devices < count:
        return [_build_absent_row(title, context)]
    one = measure_devices(context, 1)
    many = measure_devices(context, count)
    rows = [_compare_losses(context, title, one, many, "devices1", f"devices{count}")]
    if "images_per_second" not in many:
        return [*rows, Row("h", f"{title}: speed-up", note=f"{ABSENT}: no GPU")]
    speed_up = many["images_per_second"] / one["images_per_second"]
    is_judged = context.has_gpu and not context.smallest
    rows.append(
        Row(
            "h",
            f"{title}: speed-up of a step",
            "times",
            **context.as_column(speed_up),
            goal=f">= {MIN_EFFICIENCY * count:g}",
            passed=speed_up >= MIN_EFFICIENCY * count if is_judged else None,
            note=f"{many['images_per_second']:,.0f} images/s, {SPEED['network']}, 256 images per device",
        )
    )
    return rows


def compare_sharded(context: CheckContext) -> list[Row]:
    """Compares a cache of which each device holds a part with one device that holds everything."""
    from pipelines.input.reader import ShardReader

    title = "sharded cache"
    if context.devices < COUNTS[0]:
        return [_build_absent_row(title, context)]
    count = max(count for count in COUNTS if count <= context.devices)
    settings = build_settings(context, "sharded", speed=False)
    size = ShardReader(context.shards, "train").rows * 150 * 150 * 3
    settings["runs"]["sharded"]["data"] = {"image_size": (150, 150), "cache": "device"}
    # Half of the free memory takes a part, but not the whole split.
    settings["gpu"] = int(3 * size / count) if context.has_gpu else 0
    settings["ram"] = 4 * size if context.has_gpu else 3 * size
    (report,) = run_processes(context, [list(range(count))], settings, "sharded.log")
    cache = report["runs"]["sharded"]["cache"]
    row = _compare_losses(
        context, f"{title} on {count} devices", measure_devices(context, 1), report, "devices1", "sharded"
    )
    if "sharded" not in cache:
        return [Row("h", title, passed=False, note=f"failed: not sharded: {cache}")]
    return [row]


def compare_processes(context: CheckContext) -> list[Row]:
    """Compares two processes of one device each, which sum through NCCL, with one device."""
    title = "two processes, one device each"
    if context.devices < COUNTS[0]:
        return [_build_absent_row(title, context)]
    settings = build_settings(context, "processes", speed=False)
    reports = run_processes(context, [[0], [1]], settings, "processes.log")
    row = _compare_losses(context, title, measure_devices(context, 1), reports[0], "devices1", "processes")
    rows = [row]
    digests = {report["runs"]["processes"]["digest"] for report in reports}
    rows.append(
        Row(
            "h",
            f"{title}: the same weights in both",
            "of 1",
            **context.as_column(float(len(digests) == 1)),
            goal="to the bit",
            passed=len(digests) == 1,
        )
    )
    if context.has_gpu:
        rows.append(_describe_nccl(Path(context.scratch, "processes.log").read_text(errors="replace")))
    return rows


def _describe_nccl(log: str) -> Row:
    """Returns whether NCCL summed, and through what, from its own messages."""
    version = re.search(r"NCCL version (\S+)", log)
    paths = sorted(set(re.findall(r"via (P2P\S*|SHM\S*|NET/\S+)", log)))
    note = f"{version.group(1) if version else 'no message of NCCL'}, via {', '.join(paths) or 'unknown'}"
    passed = version is not None
    return Row("h", "two processes: NCCL", "of 1", gpu=float(passed), goal="used", passed=passed, note=note)


def _compare_losses(
    context: CheckContext, title: str, one: dict[str, Any], many: dict[str, Any], first: str, second: str
) -> Row:
    """Compares the losses of all epochs."""
    expected = one["runs"][first]["metrics"]
    actual = many["runs"][second]["metrics"]
    names = ("loss", "val_loss")
    pairs = [(a[name], b[name]) for a, b in zip(expected, actual, strict=True) for name in names if name in a]
    difference = max(abs(b / a - 1) for a, b in pairs)
    return Row(
        "h",
        f"{title}: losses against one device",
        "of the loss",
        **context.as_column(difference),
        goal=f"<= {LOSS_TOLERANCE}",
        passed=difference <= LOSS_TOLERANCE,
        note=many["runs"][second]["cache"],
    )


def _build_absent_row(title: str, context: CheckContext) -> Row:
    return Row("h", title, note=f"{ABSENT}: {context.devices} device")
