"""Fingerprints: digests of a report's inputs, so that it is rendered again only if one of them changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.shards.manifest import load_manifest
from pipelines.storage import hash_json
from service.report.options import PageOptions, ReportOptions
from service.report.publish import MANIFEST, PAGE, VERSION
from service.runs import Run
from service.version import read_version


def compute_fingerprint(
    run: Run, shards: Path, options: ReportOptions, page_options: PageOptions
) -> dict[str, Any]:
    """Computes the digests of a report's inputs: model, checkpoints, metrics, data and options.

    Args:
        run: Run with a saved model.
        shards: Directory of its shard set.
        options: Content of the report.
        page_options: Format of the page.

    Raises:
        DataError: There is no shard set.
        OSError: A file of the run is missing.
    """
    parameters = {"options": options.model_dump(mode="json"), "single_file": page_options.single_file}
    return {
        "version": f"{VERSION} of {read_version()}",
        **run.hash_contents(),
        "shards": load_manifest(shards).digest(),
        "parameters": hash_json(parameters),
    }


def is_up_to_date(run: Run, fingerprint: dict[str, Any]) -> bool:
    """Tells whether the report of a run is complete and was rendered from the same inputs.

    Args:
        run: Run whose report is checked.
        fingerprint: Digests of the current inputs, see `compute_fingerprint`.
    """
    try:
        manifest = json.loads((run.report / MANIFEST).read_bytes())
        files = [PAGE]
        if not manifest["single_file"]:
            files += [picture["file"] for picture in manifest["pictures"]]
        is_complete = all((run.report / file).is_file() for file in files)
        return bool(manifest["made_of"] == fingerprint) and is_complete
    except (OSError, ValueError, KeyError, TypeError):
        return False
