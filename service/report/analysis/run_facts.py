"""What the page tells of a run beside its pictures: how it was trained, on what, and what the data left out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.shards.manifest import Manifest
from service.runs import Run

REJECTED = "rejected.jsonl"
SHOWN = 50  # rejected images that are listed


@dataclass(frozen=True)
class About:
    """One run, or one model made elsewhere.

    Attributes:
        name: Of the run directory or the model file.
        source: What the shard set was built from, such as `folder:photos`.
        preset: The preset it was trained with; empty for a model made elsewhere.
        model: The registered model; empty for one made elsewhere.
        state: Of the run, see `service.runs.Run.status`; empty for a model made elsewhere.
        finished: When training ended, `2026-05-01T12:00:00+00:00`; empty where that is not known.
        seconds: How long training took in all; None where that is not known.
        settings: The configuration, as names and values that a person reads.
        environment: What it ran on, likewise.
        rejected: Id and reason of source images that are not in the shard set, the first `SHOWN` of them.
        rejected_count: How many there are.
    """

    name: str
    source: str
    preset: str = ""
    model: str = ""
    state: str = ""
    finished: str = ""
    seconds: float | None = None
    settings: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    rejected: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    rejected_count: int = 0

    @property
    def title(self) -> str:
        """The run in a few words: what was trained on what."""
        if not self.preset:
            return f"{self.name} on {self.source}"
        return f"{self.name}: {self.preset} on {self.source}"


def about_run(run: Run, config: dict[str, Any], shards: Path, manifest: Manifest) -> About:
    """What is known of a run."""
    status = run.status()
    seconds = (status.get("timings") or {}).get("total")
    return About(
        name=run.path.name,
        source=manifest.source,
        preset=str(config.get("preset", "")),
        model=str(config.get("model", "")),
        state=str(status.get("state", "")),
        finished=str(status.get("finished") or ""),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        settings=tuple(flat(config)),
        environment=tuple(flat(status.get("environment") or {})),
        rejected=rejected_images(shards),
        rejected_count=manifest.rejected,
    )


def about_model(path: Path, shards: Path, manifest: Manifest) -> About:
    """What is known of a model made elsewhere."""
    return About(
        path.stem, manifest.source, rejected=rejected_images(shards), rejected_count=manifest.rejected
    )


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as names with dots and values in words, in their order."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for place, item in enumerate(value, 1):
                rows += (
                    flat(item, f"{name}.{place}.")
                    if isinstance(item, dict)
                    else [(f"{name}.{place}", in_words(item))]
                )
        else:
            rows.append((name, in_words(value)))
    return rows


def in_words(value: Any) -> str:
    """One setting as a person writes it."""
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        between = (
            " \N{MULTIPLICATION SIGN} "
            if len(value) == 2 and all(isinstance(item, int) for item in value)
            else ", "
        )
        return between.join(in_words(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def rejected_images(shards: Path) -> tuple[tuple[str, str], ...]:
    """Ids and reasons of source images that were not taken, the first `SHOWN`; none where the list is gone or damaged."""
    found: list[tuple[str, str]] = []
    try:
        with (shards / REJECTED).open(encoding="utf-8") as lines:
            for line, _ in zip(lines, range(SHOWN), strict=False):
                entry = json.loads(line)
                found.append((str(entry["id"]), str(entry["reason"])))
    except (OSError, ValueError, KeyError, TypeError):
        return tuple(found)
    return tuple(found)
