"""Progress of a run as the driver shows it: a bar, a line an epoch, and at the end where the time went."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.runs import Run

POLL_SECONDS = 0.5
SLOW_INPUT = 0.1  # share of the training that waits for input, from which on there is something to gain
SCORES = ("loss", "accuracy", "val_loss", "val_accuracy", "val_top5", "val_auc")
PARTS = {  # of the time a run takes, by their names in the status
    "ray": "starting Ray",
    "workers": "starting the workers",
    "imports": "importing TensorFlow",
    "setup": "building the model, opening the data",
    "first call": "first call, which traces and compiles",
    "training": "training",
    "waiting for input": "waiting for input",
    "evaluation": "evaluation",
    "checkpoints": "copying checkpoints",
}


def epoch_line(metrics: dict[str, float], epochs: int) -> str:
    """One epoch in one line of text."""
    scores = [f"{name} {metrics[name]:.4f}" for name in SCORES if name in metrics]
    speed = f"{metrics['images_per_second']:.0f} images/s  input wait {metrics['input_wait']:.0%}  {metrics['seconds']:.1f} s"
    return "  ".join([f"epoch {metrics['epoch']:.0f}/{epochs}", *scores, speed])


def where_the_time_went(timings: dict[str, float]) -> str:
    """The parts of a run's time, longest first, and a hint where input held it back.

    Args:
        timings: Seconds by name; `total` is the whole.
    """
    total = timings["total"]
    parts = {name: seconds for name, seconds in timings.items() if name in PARTS}
    parts = dict(sorted(parts.items(), key=lambda part: -part[1])) | {"rest": total - sum(parts.values())}
    lines = [
        f"{seconds:8.1f} s {seconds / total:5.0%}  {PARTS.get(name, 'everything else')}"
        for name, seconds in parts.items()
    ]
    waited = timings.get("waiting for input", 0.0)
    share = waited / max(waited + timings.get("training", 0.0), 1e-9)
    if share > SLOW_INPUT:
        lines.append(
            f"input held the training back for {share:.0%} of its time: try data.cache=host, data.decode=fast or more CPUs"
        )
    return "\n".join([f"{total:8.1f} s in all", *lines])


@contextmanager
def shown(run: Run, epochs: int) -> Iterator[None]:
    """Shows a run's progress while the block trains: a bar in a terminal, plain lines elsewhere."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(run, epochs, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(run: Run, epochs: int, done: threading.Event) -> None:
    console = Console(highlight=False, soft_wrap=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    ]
    said, printed = 0, len(run.metrics())
    if not console.is_terminal:
        console.print(
            f"starting {run.path.name}: {epochs} epochs; Ray and TensorFlow take a while to come up"
        )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("starting", total=None, speed="")
        while True:
            last = done.wait(POLL_SECONDS)  # looked at before reading, so that the last epoch is never missed
            status, metrics = run.status(), run.metrics()
            sentences = _sentences(status)
            for sentence in sentences[said:]:
                console.print(sentence)
            said = max(said, len(sentences))
            printed = min(printed, len(metrics))  # after a restart there may be fewer
            for epoch in metrics[printed:]:
                console.print(epoch_line(epoch, epochs))
            printed = len(metrics)
            _update(bar, task, status.get("progress"))
            if last:
                return


def _sentences(status: dict[str, Any]) -> list[str]:
    """What is told once: where images are kept, then whatever happened."""
    caches = [f"{split}: {tier}" for split, tier in (status.get("caches") or {}).items()]
    return [*status.get("notices", []), *caches] if not caches else [*caches, *status.get("notices", [])]


def _update(bar: Progress, task: Any, progress: dict[str, Any] | None) -> None:
    if progress:
        done = (progress["epoch"] - 1) * progress["rows"] + progress["images"]
        scores = "".join(
            f"{name} {progress[name]:.3f}, " for name in ("loss", "accuracy") if name in progress
        )
        speed = (
            f"{progress['images_per_second']:.0f} images/s, {progress['input_wait']:.0%} waiting for input"
        )
        memory = f", {progress['memory_bytes'] / 1e9:.1f} GB" if "memory_bytes" in progress else ""
        description = f"epoch {progress['epoch']}/{progress['epochs']}"
        bar.update(
            task,
            completed=done,
            total=progress["epochs"] * progress["rows"],
            description=description,
            speed=scores + speed + memory,
        )
