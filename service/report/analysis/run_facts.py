"""Collects facts about a run for its page: settings, environment, data, and rejected source images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.remote.uri import Location
from pipelines.shards.manifest import Manifest
from pipelines.shards.rejections import read_rejected_images
from pipelines.text import keep_together
from service.runs import Run

# Largest number of rejected images listed on the page.
MAX_REJECTED = 50


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run, or about a model without one.

    Attributes:
        name: Name of the run directory or the model file.
        source: Source of the shard set, such as `folder:photos`.
        preset: Preset of the run; empty for a model without a run.
        model: Name of the registered model; empty for a model without a run.
        state: State of the run, see `service.runs.Run.status`; empty for a model without a run.
        finished: Time at which training ended, `2026-05-01T12:00:00+00:00`; empty if unknown.
        seconds: Total duration of training in seconds; None if unknown.
        early_stop: Sentence about the early stop of a finished run; empty if it trained all epochs.
        settings: The configuration, as names and formatted values.
        environment: Versions and hardware of the run, as names and formatted values.
        rejected: Ids and reasons of source images that are not in the shard set, the first `MAX_REJECTED`.
        rejected_count: Number of all rejected images.
    """

    name: str
    source: str
    preset: str = ""
    model: str = ""
    state: str = ""
    finished: str = ""
    seconds: float | None = None
    early_stop: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    rejected: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    rejected_count: int = 0

    @property
    def title(self) -> str:
        """Title of the page: the preset, or the name of a model without a run, and the data."""
        return f"{self.preset or self.name} on {shorten_source(self.source)}"


def collect_run_facts(run: Run, config: dict[str, Any], shards: Location, manifest: Manifest) -> RunFacts:
    """Collects the facts about a run.

    Args:
        run: Run whose status is read.
        config: Configuration of the run.
        shards: Path or URI of the shard set.
        manifest: Manifest of the shard set.
    """
    status = run.status()
    seconds = (status.get("timings") or {}).get("total")
    return RunFacts(
        name=run.path.name,
        source=manifest.source,
        preset=str(config.get("preset", "")),
        model=str(config.get("model", "")),
        state=str(status.get("state", "")),
        finished=str(status.get("finished") or ""),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        early_stop=str(status.get("reason") or "") if status.get("state") == "finished" else "",
        settings=tuple(flatten_settings(config)),
        environment=tuple(flatten_settings(status.get("environment") or {})),
        rejected=read_rejected_images(shards, MAX_REJECTED),
        rejected_count=manifest.rejected,
    )


def collect_model_facts(path: Path, shards: Location, manifest: Manifest) -> RunFacts:
    """Collects the facts about a model without a run.

    Args:
        path: The model file.
        shards: Path or URI of the shard set.
        manifest: Manifest of the shard set.
    """
    return RunFacts(
        name=path.stem,
        source=manifest.source,
        rejected=read_rejected_images(shards, MAX_REJECTED),
        rejected_count=manifest.rejected,
    )


def shorten_source(source: str) -> str:
    """Shortens the source of a shard set to its name, such as `photos` for `folder:/data/photos`.

    Args:
        source: Source as recorded in a manifest: a kind, and a path, a URI or a name.
    """
    name = source.rstrip("/").rpartition("/")[2]
    kind, _, rest = name.partition(":")
    return rest if kind in ("folder", "archive") else name


def flatten_settings(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flattens nested settings to dotted names and formatted values, in their order.

    Args:
        settings: Settings, with dictionaries and lists of dictionaries in them.
        prefix: First part of every name, ending in a dot.
    """
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += flatten_settings(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for number, item in enumerate(value, 1):
                if isinstance(item, dict):
                    rows += flatten_settings(item, f"{name}.{number}.")
                else:
                    rows.append((f"{name}.{number}", format_setting(item)))
        else:
            rows.append((name, format_setting(value)))
    return rows


def format_setting(value: Any) -> str:
    """Formats one setting for readers: `none`, `yes`, `96 x 96` with a multiplication sign, `a, b`."""
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        is_size = len(value) == 2 and all(isinstance(item, int) for item in value)
        separator = keep_together(" \N{MULTIPLICATION SIGN} ") if is_size else ", "
        return separator.join(format_setting(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
