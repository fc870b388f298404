"""What the report of a run depends on, so that a report is made again when any of it has changed, and only then."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.shards.manifest import load_manifest
from pipelines.storage import digest, sha256
from service.report.publish import MANIFEST, PAGE, VERSION
from service.runs import Run


def shards_of(run: Run, elsewhere: Path | None = None) -> Path:
    """The shard set a run was trained on, or where it lies now."""
    return Path(elsewhere or run.config().get("shards") or "")


def fingerprint(run: Run, shards: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Digests of everything that goes into a report: the model, its checkpoints, how training went, the data, the parameters.

    Args:
        run: With a saved model.
        shards: Its shard set.
        parameters: What the page shows, ready for JSON.

    Raises:
        DataError: There is no shard set.
        OSError: A file of the run is gone.
    """
    status = run.status()
    told = {key: status.get(key) for key in ("state", "finished", "timings", "environment")}
    checkpoints = [
        [path.parent.name, sha256(path)] for path in sorted(run.checkpoints.glob("epoch-*/checkpoint.json"))
    ]
    return {
        "version": f"{VERSION} of {version('glassbox')}",
        "model": sha256(run.model_path),
        "checkpoints": digest(checkpoints),
        "config": sha256(run.config_path),
        "metrics": sha256(run.metrics_path) if run.metrics_path.is_file() else None,
        "status": digest(told),
        "shards": load_manifest(shards).digest(),
        "parameters": digest(parameters),
    }


def is_up_to_date(run: Run, made_of: dict[str, Any]) -> bool:
    """Whether the report of a run stands, whole, and was made of the same."""
    try:
        manifest = json.loads((run.report / MANIFEST).read_bytes())
        files = [] if manifest["single_file"] else [picture["file"] for picture in manifest["pictures"]]
        return bool(manifest["made_of"] == made_of) and all(
            (run.report / file).is_file() for file in (PAGE, *files)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
