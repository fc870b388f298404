"""Checks correctness and speed on this machine's GPU, in at most 10 minutes.

`python tests/benchmarks/gpu_check.py --help`. Each part runs in a process of its own with its share of the
time; without a GPU the parts run on the CPU, and rows that need a GPU say so.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOGICAL_DEVICES = "GLASSBOX_LOGICAL_DEVICES"  # environment variable: number of logical CPU devices
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]  # works without an installed project

import gpu_results  # noqa: E402
import photos  # noqa: E402
from gpu_results import Row  # noqa: E402
from runner import log_progress  # noqa: E402


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        title: Description of the part.
        seconds: Its share of the time.
        meaning: What its results mean, and where to look in the code.
        uses_all_devices: Whether it runs on all devices; otherwise it sees a single one.
    """

    title: str
    seconds: float
    meaning: str
    uses_all_devices: bool = False


# The most valuable first: a part that runs out of time leaves less to the following ones.
PARTS = {
    "g": Part(
        "the machine and the image",
        50,
        "What the image or the driver lacks costs speed or stops a run before any code of glassbox: "
        "k8s/image/Dockerfile, k8s/overlays/gpu/workers.yaml, service/devices.py.",
    ),
    "e": Part(
        "training",
        80,
        "Losses of a GPU that differ from those of a CPU mean a wrong kernel or a wrong step: "
        "service/training/step.py, pipelines/augment/apply.py. Slow epochs with fast steps mean the loop: "
        "service/training/loop.py.",
    ),
    "h": Part(
        "several devices",
        160,
        "Other losses than one device mean wrong slices or sums: service/training/distribute.py, step.py, "
        "packing.py, and for the sharded cache pipelines/input/cache.py. A low speed-up means sums or "
        "input that wait: NCCL's messages are in the log; service/training/strategy.py.",
        uses_all_devices=True,
    ),
    "i": Part(
        "determinism",
        60,
        "Two runs that differ mean an operation without a deterministic kernel: service/devices.py. Only the "
        "resumed run differs: state that a checkpoint lacks, service/checkpoint.py.",
    ),
    "j": Part(
        "evaluate and predict",
        30,
        "Other probabilities than a CPU mean a wrong kernel, or pixels scaled differently: "
        "service/inference/classifier.py. A low speed means decoding: service/inference/datasets.py.",
    ),
    "a": Part(
        "decoding with DALI",
        40,
        "Different pixels mean that DALI decodes or resizes differently; a copy means that batches pass "
        "through RAM: pipelines/input/dali.py.",
    ),
    "d": Part(
        "the training loop",
        60,
        "A low ratio with waiting means the input: pipelines/input/batches.py. Without waiting it means what "
        "the loop adds to a step: service/training/loop.py, controller.py.",
    ),
    "c": Part(
        "a step of every model",
        50,
        "A loss that is not finite means a kernel or precision that fails; a low share of the peak means "
        "that XLA is off or the batch is small: service/training/learner.py, step.py.",
    ),
    "b": Part(
        "augmentation on the device",
        20,
        "Other pixels than on a CPU mean a wrong warp or colour pass: pipelines/augment/apply.py.",
    ),
    "f": Part(
        "the report",
        20,
        "Heatmaps that are not finite, or patterns that do not respond: service/report/analysis.",
    ),
}
DEFAULT_MINUTES = 9.5
ENVIRONMENT_SECONDS = 90.0  # time limit of the description of the environment
EXIT_SECONDS = 30
IMAGES = {"gpu": None, "cpu": 240, "smallest": 24}  # photos; None for all, or 2,000 generated ones


def main(arguments: list[str] | None = None) -> int:
    """Runs the check.

    Returns:
        0, or 1 if a check failed.
    """
    options = _build_parser().parse_args(arguments)
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="glassbox-gpu-check-", dir=options.scratch) as scratch:
        log = Path(scratch) / "log"
        settings: dict[str, Any] = {
            "scratch": scratch,
            "smallest": options.smallest,
            "deadline": start + 60 * options.minutes,
        }
        about = _describe_environment(settings, log)
        form = "gpu" if about["gpu"] else "cpu"
        if options.smallest:
            form = "smallest"
        note = _build_shards(options.data, options.images or IMAGES[form], Path(scratch))
        settings["real"] = "generated" not in note
        settings["devices"] = about["devices"]
        environment = about["environment"] | {
            "photos": note,
            "date": time.strftime("%Y-%m-%d"),
            "form": form,
        }
        parts = [part for part in PARTS if part in (options.part or PARTS)]
        rows = list(_run_parts(parts, settings, log))
        log_text = log.read_text(errors="replace")
    seconds = time.time() - start
    meanings = {part: PARTS[part].meaning for part in parts}
    report = gpu_results.format_report(environment, rows, seconds, meanings)
    print(report)
    if options.out:
        figures = {"environment": environment, "seconds": seconds, "rows": [asdict(row) for row in rows]}
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu-check.json").write_text(json.dumps(figures, indent=1) + "\n")
        (options.out / "gpu-check.txt").write_text(report + "\n")
        table = gpu_results.format_markdown(rows)
        explanation = gpu_results.format_meanings(meanings)
        (options.out / "gpu-check.md").write_text(f"{table}\n\n{explanation}\n")
        (options.out / "gpu-check.log").write_text(log_text)
    return 1 if gpu_results.find_failures(rows) else 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write gpu-check.json, .txt, .md and .log to this directory"
    )
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="run only this part; may be repeated"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=DEFAULT_MINUTES,
        metavar="N",
        help=f"time limit of the whole check (default: {DEFAULT_MINUTES})",
    )
    parser.add_argument(
        "--smallest", action="store_true", help="check that everything runs, with the least work"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of classes, or of train/ and validation/ with classes (default: the real photos)",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="use N of the photos for training, evenly from all classes"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="directory for shards and runs (default: the system's)"
    )
    return parser


def _describe_environment(settings: dict[str, Any], log: Path) -> dict[str, Any]:
    """Runs the process that imports TensorFlow and describes the machine."""
    lines = list(_run_process("environment", settings, log, ENVIRONMENT_SECONDS, dict(os.environ)))
    if len(lines) != 1 or "environment" not in lines[0]:
        raise SystemExit(
            f"Expected TensorFlow. Received: {log.read_text()[-2000:]}\n"
            "Fix: put it on PYTHONPATH, or run `make setup EXTRA=gpu`."
        )
    about = lines[0]
    for name, value in about["environment"].items():
        log_progress(f"{name}: {value}")
    return about


def _build_shards(data: Path | None, images: int | None, scratch: Path) -> str:
    """Builds the shard set, with a third of the photos for validation unless the data has a validation split.

    Returns:
        A description of the photos.
    """
    from shard_samples import write_shards

    from pipelines.records import Record

    _, note = photos.stage(data, images, scratch / "photos")
    files = sorted((scratch / "photos").glob("*/*"))
    classes = sorted(path.name for path in (scratch / "photos").iterdir())
    validation = (data or photos.REAL) / "validation"
    if validation.is_dir():
        count = None if images is None else max(images // 2, 2)
        photos.stage(validation, count, scratch / "held out")
        splits = {"train": files, "validation": sorted((scratch / "held out").glob("*/*"))}
    else:
        train = [path for index, path in enumerate(files) if index % 3]
        splits = {"train": train, "validation": files[::3]}
    records: dict[str, list[Record]] = {}
    for split, paths in splits.items():
        mixed = sorted(paths, key=lambda path: path.name[::-1])  # reversed names interleave the classes
        records[split] = list(_read_records(mixed, classes))
    write_shards(scratch / "shards", classes, records)
    return f"{len(records['train'])} {note}, {len(records['validation'])} for validation"


def _read_records(paths: list[Path], classes: list[str]) -> Iterator[Any]:
    """Yields the records of readable photos."""
    from pipelines.records import Record
    from pipelines.shards.images import UnreadableImageError, prepare_image
    from pipelines.spec import ShardSpec

    for path in paths:
        try:
            prepared = prepare_image(path.read_bytes(), ShardSpec())
        except UnreadableImageError:
            continue
        label = path.parent.name
        yield Record(prepared.image, classes.index(label), f"{label}/{path.name}", prepared.shape)


def _run_parts(parts: list[str], settings: dict[str, Any], log: Path) -> Iterator[Row]:
    """Yields the rows of all parts; the time that a part does not use goes to the following ones."""
    for index, name in enumerate(parts):
        part = PARTS[name]
        remaining = settings["deadline"] - time.time()
        remaining_weight = sum(PARTS[other].seconds for other in parts[index:])
        seconds = remaining * part.seconds / remaining_weight
        log_progress(f"part {name}: {part.title}, at most {seconds:.0f} s. {part.meaning}")
        for row in _run_part(name, settings | {"deadline": time.time() + seconds}, log, seconds):
            log_progress(gpu_results.format_text([row]).splitlines()[1])
            yield row


def _run_part(name: str, settings: dict[str, Any], log: Path, seconds: float) -> Iterator[Row]:
    """Yields the rows of a part.

    If its process crashes, the check that was running has failed. If its time is over, that check is not
    measured, which is no failure: compiling kernels takes minutes on a new GPU. Checks that were not started
    are not measured in both cases.
    """
    environment = dict(os.environ) if PARTS[name].uses_all_devices else _pin_device()
    waiting: list[str] = []
    running = "whole part"
    for line in _run_process(name, settings, log, seconds, environment):
        if "checks" in line:
            waiting = line["checks"]
        elif "started" in line:
            running = line["started"]
            waiting.remove(running)
        elif "row" in line:
            yield Row(**line["row"])
        elif "late" in line:
            yield gpu_results.build_late_row(name, running, line["late"])
            yield from (gpu_results.build_late_row(name, check, "no time left") for check in waiting)
        elif "failed" in line:
            yield Row(name, running, passed=False, note=f"failed: {line['failed']}")
            note = "the process of this part has failed"
            yield from (gpu_results.build_late_row(name, check, note) for check in waiting)


def _pin_device() -> dict[str, str]:
    """Returns the environment of a process that sees a single GPU, or a single CPU device."""
    environment = dict(os.environ)
    environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if environment.get(LOGICAL_DEVICES):
        environment[LOGICAL_DEVICES] = "1"
    return environment


def _run_process(
    part: str, settings: dict[str, Any], log: Path, seconds: float, environment: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yields the lines that a part prints, then `late` if its time is over, or `failed` if it crashes."""
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    # TensorFlow's kernels, compiled by the driver for a new GPU, exceed the default of 1 GiB.
    environment.setdefault("CUDA_CACHE_MAXSIZE", str(4 << 30))
    command = [sys.executable, str(HERE / "gpu_part.py"), part, json.dumps(settings)]
    deadline = time.monotonic() + seconds
    with log.open("ab") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True
        )
    try:
        is_complete = yield from _read_lines(child, deadline)
        if not is_complete:
            yield {"late": f"not done after {seconds:.0f} s"}
        elif child.wait(timeout=EXIT_SECONDS):
            yield {"failed": f"the process ended with status {child.returncode}"}
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert child.stdout
        child.stdout.close()


def _read_lines(child: subprocess.Popen[bytes], deadline: float) -> Iterator[dict[str, Any]]:
    """Yields the JSON lines of a process; returns whether its output ended before the deadline."""
    assert child.stdout
    unread = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            # What has been written before the deadline still counts.
            if not selector.select(max(deadline - time.monotonic(), 0.0)):
                return False
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                return True
            *lines, unread = (unread + chunk).split(b"\n")
            for line in lines:
                yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
