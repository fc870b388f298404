"""Shows the progress of a run in the driver: a bar, a line per epoch, and the time per phase at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.remote.folder import format_gigabytes
from pipelines.spec import DataSpec
from pipelines.text import escape_name, print_lines
from service.progress_bar import open_display
from service.recipe import format_epochs
from service.runs import Run
from service.training.checks import EARLY_STOP

POLL_SECONDS = 0.5
SLOW_INPUT = 0.1  # share of the whole time spent waiting for input from which a hint is shown
SCORES = ("loss", "accuracy", "val_loss", "val_accuracy", "val_top5", "val_auc")
PHASES = {  # phases of a run, by their names in the status
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


def format_epoch(metrics: dict[str, float], epochs: int) -> str:
    """Returns the metrics of an epoch as one line of text.

    Args:
        metrics: Metrics of the epoch (see `Run.metrics`).
        epochs: Number of epochs of the run.
    """
    scores = [f"{name} {metrics[name]:.4f}" for name in SCORES if name in metrics]
    speed = (
        f"{metrics['images_per_second']:.0f} images/s  input wait {metrics['input_wait']:.0%}  "
        f"{metrics['seconds']:.1f} s"
    )
    return "  ".join([f"epoch {metrics['epoch']:.0f}/{epochs}", *scores, speed])


def summarize_timings(timings: Mapping[str, float], data: DataSpec, tier: str) -> str:
    """Returns the phases of a run, longest first, and a hint if waiting for input took a large share.

    Args:
        timings: Seconds by phase; `total` is the whole.
        data: Data settings of the run.
        tier: Cache tier of the training images: `none`, `host` or `device`.
    """
    total = timings["total"]
    phases = {name: seconds for name, seconds in timings.items() if name in PHASES}
    longest_first = sorted(phases.items(), key=lambda phase: -phase[1])
    longest_first.append(("rest", total - sum(phases.values())))

    lines = [f"{total:8.1f} s in all"]
    for name, seconds in longest_first:
        lines.append(f"{seconds:8.1f} s {seconds / total:5.0%}  {PHASES.get(name, 'everything else')}")
    hint = find_input_hint(timings, data, tier)
    if hint:
        lines.append(hint)
    return "\n".join(lines)


def format_store(values: Mapping[str, float]) -> str:
    """Returns as text how much was fetched from a store, how much its cache helped, and the time waited.

    Args:
        values: Values of the progress or the status (see `service.training.telemetry.describe_store`).
    """
    fetched = format_gigabytes(int(values["store_fetched_bytes"]))
    return (
        f"{fetched} fetched from the store, {values['store_hit_rate']:.0%} of use from its cache, "
        f"{values['store_wait_seconds']:.1f} s waiting for it"
    )


def find_input_hint(timings: Mapping[str, float], data: DataSpec, tier: str) -> str | None:
    """Returns a hint on how to shorten the wait for input, or None if it took a small share of the time.

    Args:
        timings: Seconds by phase; `total` is the whole, the first call included.
        data: Data settings of the run.
        tier: Cache tier of the training images: `none`, `host` or `device`.
    """
    share = timings.get("waiting for input", 0.0) / timings["total"]
    if share < SLOW_INPUT:
        return None
    options = []
    if tier == "none" and data.cache == "none":  # `auto` would have used a cache if it fitted
        options.append("data.cache=auto")
    if tier == "none" and data.decode != "fast":
        options.append("data.decode=fast")
    options.append("more CPUs")
    return f"waiting for input took {share:.0%} of the whole time: try {' or '.join(options)}"


@contextmanager
def show_progress(run: Run, epochs: int, starting: str) -> Iterator[None]:
    """Shows the progress of a run while the block trains: a bar in a terminal, plain lines elsewhere.

    Args:
        run: Run directory to watch.
        epochs: Number of epochs of the run.
        starting: What has to start first, such as `Ray and TensorFlow`.
    """
    is_done = threading.Event()
    lines = ProgressLines(run, epochs)
    thread = threading.Thread(target=_watch, args=(run, epochs, starting, lines, is_done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _watch(run: Run, epochs: int, starting: str, lines: ProgressLines, is_done: threading.Event) -> None:
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    if not console.is_terminal:
        print_lines(
            f"starting {run.path.name}: {format_epochs(epochs)}; {starting} can take a while to start"
        )
    with open_display(console, *columns) as bar:
        task = bar.add_task("starting", total=None, speed="")
        while True:
            is_last = is_done.wait(POLL_SECONDS)  # checked before reading, so that the last epoch is included
            for line in lines.read_new():
                console.print(escape_name(line), markup=False)
            _update(bar, task, run.status().get("progress"))
            if is_last:
                return


class ProgressLines:
    """New lines of text about a run, each returned once.

    Args:
        run: Run directory to watch.
        epochs: Number of epochs of the run.
    """

    def __init__(self, run: Run, epochs: int) -> None:
        self._run = run
        self._epochs = epochs
        self._caches = 0
        self._notices = 0
        self._metrics = len(run.metrics())

    def read_new(self) -> list[str]:
        """Returns the caches, notices and epochs that have been added since the last call, in this order.

        The notice of an early stop follows the epochs.
        """
        # Before the metrics, so that the notice of an early stop never precedes the epoch that it is about.
        status = self._run.status()
        caches = [f"{split}: {tier}" for split, tier in (status.get("caches") or {}).items()]
        new = caches[self._caches :]
        self._caches = max(self._caches, len(caches))

        notices = status.get("notices", [])
        new_notices = notices[self._notices :]
        self._notices = max(self._notices, len(notices))
        new += [notice for notice in new_notices if not notice.startswith(EARLY_STOP)]

        metrics = self._run.metrics()
        first = min(self._metrics, len(metrics))  # after a restart there may be fewer
        new += [format_epoch(epoch, self._epochs) for epoch in metrics[first:]]
        self._metrics = len(metrics)
        return new + [notice for notice in new_notices if notice.startswith(EARLY_STOP)]


def _update(bar: Progress, task: Any, progress: dict[str, Any] | None) -> None:
    """Moves the bar to the images done of all epochs."""
    if not progress:
        return
    images = (progress["epoch"] - 1) * progress["rows"] + progress["images"]
    details = [f"{name} {progress[name]:.3f}" for name in ("loss", "accuracy") if name in progress]
    details.append(f"{progress['images_per_second']:.0f} images/s")
    details.append(f"{progress['input_wait']:.0%} waiting for input")
    if "memory_bytes" in progress:
        details.append(f"{progress['memory_bytes'] / 1e9:.1f} GB")
    if "store_fetched_bytes" in progress:
        details.append(format_store(progress))
    bar.update(
        task,
        completed=images,
        total=progress["epochs"] * progress["rows"],
        description=f"epoch {progress['epoch']}/{progress['epochs']}",
        speed=", ".join(details),
    )
