"""Fingerprints: digests of a report's inputs, so that it is rendered again only if one of them changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.errors import DataError
from pipelines.remote.files import resolve_location
from pipelines.remote.store import stat
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.shards.manifest import FILE_NAME, load_manifest
from pipelines.storage import hash_json
from service.report.options import PageOptions, ReportOptions
from service.report.publish import VERSION
from service.report.reported import ReportedRun
from service.runs import Run
from service.version import read_version


def compute_fingerprint(
    reported: ReportedRun | Run,
    shards: Location,
    options: ReportOptions,
    page_options: PageOptions,
    mix: Iterable[str] = (),
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Computes the digests of a report's inputs: model, checkpoints, metrics, data and options.

    Args:
        reported: Run with a saved model.
        shards: Path or URI of its shard set.
        options: Content of the report.
        page_options: Format of the page.
        mix: Paths or URIs of the sets that the run was trained on, if it is a mix of several.
        inputs: Content of `ReportedRun.hash_inputs`, if it has been read already.

    Raises:
        DataError: There is no shard set.
        OSError: A file of the run is missing.
        StoreError: The store denies access or does not respond.
    """
    if isinstance(reported, Run):
        reported = ReportedRun.from_run(reported)
    parameters = {"options": options.model_dump(mode="json"), "single_file": page_options.single_file}
    fingerprint = {
        "version": f"{VERSION} of {read_version()}",
        **(reported.hash_inputs() if inputs is None else inputs),
        "data": str(resolve_location(shards)),
        "shards": hash_shards(shards),
        "parameters": hash_json(parameters),
    }
    mixed_sets = {name: hash_shards(parse_location(name)) for name in mix}
    if mixed_sets:
        fingerprint["mix"] = mixed_sets
    return fingerprint


def hash_shards(shards: Location) -> str:
    """Returns the digest of a shard set's manifest, or its version in a store.

    Raises:
        DataError: There is no shard set.
        StoreError: The store denies access or does not respond.
    """
    if not isinstance(shards, Uri):
        return load_manifest(shards).digest()
    info = stat(shards / FILE_NAME)
    if info is None:
        raise DataError(
            "the shard set the model was trained on",
            f"shards={shards} (no {FILE_NAME} in it)",
            "restore it, or name its new place with --data",
        )
    return info.etag


def is_up_to_date(
    reported: ReportedRun | Run, fingerprint: dict[str, Any], published: dict[str, Any] | None = None
) -> bool:
    """Tells whether the report of a run is complete and was rendered from the same inputs.

    Args:
        reported: Run whose report is checked.
        fingerprint: Digests of the current inputs, see `compute_fingerprint`.
        published: Content of `ReportedRun.read_published`, if it has been read already.
    """
    if isinstance(reported, Run):
        reported = ReportedRun.from_run(reported)
    try:
        if published is None:
            published = reported.read_published()
        return bool(published["made_of"] == fingerprint) and reported.has_page(published)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def find_published_shards(published: dict[str, Any]) -> tuple[Location, list[str]]:
    """Returns the shard set that a report was made with, and the sets of its mix.

    With them, a job finds out that nothing has changed without the configurations of the runs, whose digests
    it compares: it takes longer to parse a configuration than to do all the rest.

    Args:
        published: Summary of the report, see `ReportedRun.read_published`.

    Raises:
        KeyError: The summary has no record of it.
    """
    made_of = published["made_of"]
    return resolve_location(made_of["data"]), list(made_of.get("mix", ()))
