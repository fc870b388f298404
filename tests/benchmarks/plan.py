"""Compares what `glassbox plan` predicts with what trainings on this machine take.

`python tests/benchmarks/plan.py --digits SHARDS --photos SHARDS`; some minutes. Each round plans and trains
every preset, one directly after the other, so that both see the same load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRESETS = {"mnist_mlp": "digits", "mnist_cnn": "digits", "cats_dogs_small": "photos"}
EPOCHS = 3
ROUNDS = 3
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}


def run_command(*arguments: str) -> tuple[str, float]:
    """Runs glassbox in a process of its own; returns what it prints and its largest memory in bytes."""
    command = [sys.executable, "-c", "from service.cli import main; raise SystemExit(main())", *arguments]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=os.environ | QUIET)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        errors.seek(0)
        if status:
            raise SystemExit(f"{' '.join(arguments)}\n{errors.read()}")
        return output.read(), usage.ru_maxrss * 1024.0


def compare(preset: str, shards: Path, folder: Path) -> dict[str, float]:
    """Plans and trains one preset; returns predicted divided by measured figures, and the plain figures."""
    setting = f"epochs={EPOCHS}"
    text, _ = run_command("plan", "--preset", preset, "--data", str(shards), "--json", setting)
    plan: dict[str, Any] = json.loads(text)
    out = folder / "run"
    _, memory = run_command(
        "train", "--local", "--preset", preset, "--data", str(shards), "--out", str(out), setting
    )
    lines = (out / "metrics.jsonl").read_text().splitlines()
    # The first epoch includes tracing.
    seconds = statistics.median(json.loads(line)["seconds"] for line in lines[1:])
    checkpoints = {path.stat().st_size for path in out.glob("checkpoints/*/state.npz")}
    resources = plan["resources"]
    return {
        "seconds per epoch, measured": seconds,
        "seconds per epoch, predicted": plan["duration"]["epoch_seconds"],
        "seconds": plan["duration"]["epoch_seconds"] / seconds,
        "RAM, measured, MB": memory / 1e6,
        "RAM": resources["ram_bytes"] / memory,
        "checkpoint": float(checkpoints == {resources["checkpoint_bytes"]}),
        "shards": float(resources["train_shards"] == len(list(shards.glob("train-*-of-*.arrow")))),
    }


def main() -> None:
    """Compares all presets, and prints the medians of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, required=True, metavar="SHARDS")
    parser.add_argument("--photos", type=Path, required=True, metavar="SHARDS")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--only", nargs="+", default=list(PRESETS), choices=list(PRESETS), metavar="PRESET")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {preset: [] for preset in options.only}
    for _ in range(options.rounds):
        for preset, rounds in results.items():
            with tempfile.TemporaryDirectory() as folder:
                rounds.append(compare(preset, getattr(options, PRESETS[preset]), Path(folder)))
            print(preset, {name: float(f"{value:.3g}") for name, value in rounds[-1].items()}, flush=True)
    print(f"\nmedians of {options.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    for preset, rounds in results.items():
        medians = {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
        print(preset, {name: float(f"{value:.3g}") for name, value in medians.items()})


if __name__ == "__main__":
    main()
