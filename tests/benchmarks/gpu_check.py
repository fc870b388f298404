"""Whether everything is right on this machine's GPU, and how fast: `python tests/benchmarks/gpu_check.py --help`, 10 minutes at most.

Each part runs in a process of its own with its share of the time; whatever needs a GPU that is not there says so.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]  # the project need not be installed

import gpu_results  # noqa: E402
import photos  # noqa: E402
from gpu_results import Row  # noqa: E402
from runner import say  # noqa: E402

PARTS = {  # title, and how much of the time
    "a": ("decoding with DALI", 60),
    "b": ("augmentation on the device", 40),
    "c": ("a step of every model", 220),
    "d": ("the loop around it", 100),
    "e": ("training", 120),
    "f": ("the report", 40),
}
START_SECONDS = 90.0  # to describe the machine
IMAGES = {"gpu": None, "cpu": 240, "smallest": 24}  # photos; None for all, or 2,000 generated ones


def main(arguments: list[str] | None = None) -> int:
    """Runs the check.

    Returns:
        0, or 1 where something failed.
    """
    options = _parser().parse_args(arguments)
    began = time.time()
    ends = began + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="glassbox-gpu-check-", dir=options.scratch) as scratch:
        log = Path(scratch) / "log"
        settings: dict[str, Any] = {"scratch": scratch, "smallest": options.smallest, "ends": ends}
        (about,) = list(_lines("environment", settings, log, START_SECONDS)) or [{}]
        if "environment" not in about:
            raise SystemExit(
                f"Expected TensorFlow. Received: {log.read_text()[-2000:]}\nFix: put it on PYTHONPATH, or `make setup EXTRA=gpu`."
            )
        for name, value in about["environment"].items():
            say(f"{name}: {value}")
        amount = "smallest" if options.smallest else "gpu" if about["gpu"] else "cpu"
        note = _shards(options.data, options.images or IMAGES[amount], Path(scratch))
        settings["real"] = not note.startswith("generated")
        environment = about["environment"] | {
            "photos": note,
            "date": time.strftime("%Y-%m-%d"),
            "form": amount,
        }
        rows = list(_rows(options.part or list(PARTS), settings, log))
        kept = log.read_text(errors="replace")
    seconds = time.time() - began
    text = gpu_results.report(environment, rows, seconds)
    print(text)
    if options.out:
        _write(options.out, environment, rows, seconds, {"gpu-check.txt": text + "\n", "gpu-check.log": kept})
    return 1 if gpu_results.failures(rows) else 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="write gpu-check.json, .txt, .md and the log there"
    )
    made.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    made.add_argument(
        "--minutes",
        type=float,
        default=9.5,
        metavar="N",
        help="after which everything has ended (default: 9.5)",
    )
    made.add_argument(
        "--smallest", action="store_true", help="whether everything runs, with tiny amounts of work"
    )
    made.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of classes, or of train/ and validation/ with classes (default: the real photos)",
    )
    made.add_argument(
        "--images", type=int, metavar="N", help="only N of the photos for training, evenly from all classes"
    )
    made.add_argument(
        "--scratch", type=Path, metavar="DIR", help="where shards and runs may lie (default: the system's)"
    )
    return made


def _write(
    out: Path, environment: dict[str, Any], rows: list[Row], seconds: float, texts: dict[str, str]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    figures = {"environment": environment, "seconds": seconds, "rows": [asdict(row) for row in rows]}
    texts |= {
        "gpu-check.json": json.dumps(figures, indent=1) + "\n",
        "gpu-check.md": gpu_results.markdown(rows) + "\n",
    }
    for name, text in texts.items():
        (out / name).write_text(text)


def _shards(data: Path | None, images: int | None, scratch: Path) -> str:
    """Writes the photos as shards in which a third is for validation, or what the data set holds for it; returns what they are."""
    from shard_samples import write_shards

    from pipelines.records import Record
    from pipelines.shards.images import UnreadableImageError, prepare_image
    from pipelines.spec import ShardSpec

    _, note = photos.stage(data, images, scratch / "photos")
    splits: dict[str, list[Path]] = {"train": sorted((scratch / "photos").glob("*/*"))}
    held_out = (data or photos.REAL) / "validation"
    if held_out.is_dir():
        photos.stage(held_out, None if images is None else max(images // 2, 2), scratch / "held out")
        splits["validation"] = sorted((scratch / "held out").glob("*/*"))
    else:
        splits = {
            "train": [p for n, p in enumerate(splits["train"]) if n % 3],
            "validation": splits["train"][::3],
        }
    classes = sorted(path.name for path in (scratch / "photos").iterdir())
    records: dict[str, list[Record]] = {}
    for split, files in splits.items():
        records[split] = []
        for path in sorted(files, key=lambda path: path.name[::-1]):  # classes mixed
            try:
                ready = prepare_image(path.read_bytes(), ShardSpec())
            except UnreadableImageError:
                continue
            records[split].append(
                Record(
                    ready.image,
                    classes.index(path.parent.name),
                    f"{path.parent.name}/{path.name}",
                    ready.shape,
                )
            )
    write_shards(scratch / "shards", classes, records)
    return f"{len(records['train'])} {note}, {len(records['validation'])} for validation"


def _rows(parts: list[str], settings: dict[str, Any], log: Path) -> Iterator[Row]:
    """The rows of all parts. What a part leaves of its time goes to those after it."""
    for place, part in enumerate(parts):
        title, share = PARTS[part]
        left = settings["ends"] - time.time()
        seconds = left * share / sum(PARTS[other][1] for other in parts[place:])
        say(f"part {part}: {title}, {seconds:.0f} s at most")
        for found in _lines(part, settings | {"ends": time.time() + seconds}, log, seconds):
            row = Row(**found)
            say(gpu_results.text([row]).splitlines()[1])
            yield row


def _lines(part: str, settings: dict[str, Any], log: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """What the process of a part says, line by line; one more where it ends badly or has to be ended."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(HERE / "gpu_part.py"), part, json.dumps(settings)]
    ends = time.monotonic() + seconds
    with log.open("ab") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=os.environ | quiet, start_new_session=True
        )
    assert child.stdout
    unread = b""
    try:
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while (left := ends - time.monotonic()) > 0 and ready.select(left):
                more = os.read(child.stdout.fileno(), 1 << 16)
                if not more:
                    break
                *lines, unread = (unread + more).split(b"\n")
                yield from map(json.loads, lines)
            else:
                yield asdict(
                    Row(part, "all of it", passed=False, note=f"failed: not done after {seconds:.0f} s")
                )
                return
        if child.wait(timeout=30):
            yield asdict(
                Row(
                    part,
                    "all of it",
                    passed=False,
                    note=f"failed: the process ended with status {child.returncode}",
                )
            )
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


if __name__ == "__main__":
    sys.exit(main())
