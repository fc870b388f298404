"""Breaks manifests in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from kube_pods import name_of
from kube_render import Document

GONE = object()
HEAD, WORKER = "spec.headGroupSpec.template.spec", "spec.workerGroupSpecs.0.template.spec"
CRON, REPORT = "spec.jobTemplate.spec", "spec.jobTemplate.spec.template.spec"
RAY, JOB, TRAINING, WEB, WAIT = (
    "RayCluster/glassbox",
    "Job/shards",
    "RayJob/first",
    "Deployment/reports",
    "initContainers[wait-gcs-ready]",
)
C = "containers.0"


def change(documents: list[Document], owner: str, path: str, value: Any) -> list[Document]:
    """The documents with one place replaced, or removed."""
    changed = copy.deepcopy(documents)
    place: Any = next(document for document in changed if name_of(document) == owner)
    *way, last = [int(key) if key.isdigit() else key.replace("~", ".") for key in path.split(".")]
    for key in way:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value(place[last]) if callable(value) else value
    return changed


def more(**entries: Any) -> Callable[[Document], Document]:
    return lambda old: old | entries


def also(entry: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda old: [*old, entry]
