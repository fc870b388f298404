"""Compares drawing and applying augmentations with an earlier commit; checks that results are the same.

    python tests/benchmarks/augment.py [--commit COMMIT] [--rounds N]

Each tree runs in a process of its own; rounds alternate between the two, so that noise hits both alike.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BEFORE = "b1a8e7e"  # the last commit with one file per pass instead of one per augmentation
CLASSIC = {"rotation": 40, "shift": 0.2, "shear": 15, "zoom": 0.2, "flip": True}
COLOUR = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 15}
MIXING = {"erase": 0.5, "mixup": 0.4, "cutmix": 1.0}
EVERYTHING = {**CLASSIC, "crop": (0.3, 0.9), **COLOUR, **MIXING}
SPECS = {
    "flip": {"flip": True},
    "classic": CLASSIC,
    "colour": COLOUR,
    "mixing": MIXING,
    "everything": EVERYTHING,
}
ROWS = 4096  # drawn in one call, as `pipelines.input.batches` does
BATCH = 64
SECONDS = 0.3  # of one round of one case


def build_cases() -> dict[str, Callable[[], Any]]:
    """Returns the measured calls of the tree that is first on `sys.path`."""
    import numpy as np
    import tensorflow as tf

    from pipelines.augment import apply
    from pipelines.augment.draw import draw
    from pipelines.spec import AugmentSpec, DataSpec

    apply_all = getattr(apply, "apply_augmentations", None) or apply.augmented
    data = DataSpec()
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *data.image_size, 3)).astype(np.uint8)
    cases: dict[str, Callable[[], Any]] = {}
    for name, settings in SPECS.items():
        spec = AugmentSpec(**settings)
        arrays = {"image": images, **draw(spec, 1, 2, range(BATCH), data)}
        batch = {key: tf.constant(value) for key, value in arrays.items()}
        # as in a training step: part of a graph that is not compiled as a whole
        step = tf.function(lambda batch, spec=spec: apply_all(batch, spec), autograph=False)
        cases[f"draw {name}"] = lambda spec=spec: draw(spec, 1, 2, np.arange(ROWS), data)
        cases[f"apply {name}"] = lambda step=step, batch=batch: step(batch)
    return cases


def serve() -> None:
    """Runs one round of a case for every line on standard input."""
    cases = build_cases()
    for line in sys.stdin:
        call = cases[line.strip()]
        digest = compute_digest(call())
        count = 0
        start = time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            wait_for(call())
            count += 1
        seconds = (time.perf_counter() - start) / count
        print(json.dumps({"seconds": seconds, "digest": digest}), flush=True)


def wait_for(result: Any) -> None:
    """Waits until tensors are computed, which TensorFlow does asynchronously on a GPU."""
    if not isinstance(result, dict):
        result[0].numpy()


def compute_digest(result: Any) -> str:
    """Hashes all arrays of a result."""
    import numpy as np

    arrays = result.values() if isinstance(result, dict) else [part for part in result if part is not None]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.asarray(array + np.float32(0)).tobytes())  # 0 makes -0.0 and 0.0 the same
    return digest.hexdigest()


def start_worker(tree: Path) -> subprocess.Popen[str]:
    """Starts a process that runs the cases of a tree."""
    environment = os.environ | {"PYTHONPATH": str(tree), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-P", __file__, "--serve"]
    return subprocess.Popen(
        command, env=environment, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def request_round(worker: subprocess.Popen[str], case: str) -> dict[str, Any]:
    """Runs one round of a case in a worker."""
    assert worker.stdin
    assert worker.stdout
    print(case, file=worker.stdin, flush=True)
    return json.loads(worker.stdout.readline())


def compare(commit: str, rounds: int) -> bool:
    """Prints times and ratios of all cases; tells whether both trees gave the same arrays."""
    is_same = True
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", commit, "pipelines"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        workers = {commit: start_worker(Path(folder)), "working tree": start_worker(ROOT)}
        print(f"{'case':<18} {commit:>10} {'now':>10}  ratio  same")
        for kind in ("draw", "apply"):
            for name in SPECS:
                case = f"{kind} {name}"
                results: dict[str, list[dict[str, Any]]] = {tree: [] for tree in workers}
                for number in range(rounds + 1):  # the first round warms up
                    for tree in list(workers) if number % 2 else reversed(list(workers)):
                        results[tree].append(request_round(workers[tree], case))
                before, after = ([r["seconds"] for r in measured[1:]] for measured in results.values())
                ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
                digests = {r["digest"] for measured in results.values() for r in measured}
                is_same &= len(digests) == 1
                times = [f"{statistics.median(seconds) * 1000:7.2f} ms" for seconds in (before, after)]
                print(f"{case:<18} {' '.join(times)}  {ratio:5.2f}  {'yes' if len(digests) == 1 else 'NO'}")
        for worker in workers.values():
            worker.communicate()
    return is_same


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Compare augmentations with those of an earlier commit.")
    parser.add_argument("--commit", default=BEFORE, help=f"commit to compare with (default: {BEFORE})")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds of each case (default: 9)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    return 0 if compare(options.commit, options.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
