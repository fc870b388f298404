"""Introduces single faults into manifests, for the mutation tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from kube_pods import name_of
from kube_render import Document

REMOVED = object()
HEAD = "spec.headGroupSpec.template.spec"
WORKER = "spec.workerGroupSpecs.0.template.spec"
CRON = "spec.jobTemplate.spec"
REPORT = "spec.jobTemplate.spec.template.spec"
RAY = "RayCluster/glassbox"
JOB = "Job/shards"
TRAINING = "RayJob/first"
WEB = "Deployment/reports"
WAIT = "initContainers[wait-gcs-ready]"
C = "containers.0"

# Owner document, dotted path, new value (or function of the old one), substring of the expected message.
Fault = tuple[str, str, Any, str]


def apply_fault(documents: list[Document], owner: str, path: str, value: Any) -> list[Document]:
    """Returns a copy of the documents with one field replaced or removed.

    Args:
        documents: Manifests of one cluster; left unchanged.
        owner: Kind and name of the document to change.
        path: Dotted path of the field; digits index lists, `~` stands for a dot inside a key.
        value: New value, a function of the old value, or `REMOVED`.
    """
    changed = copy.deepcopy(documents)
    parent: Any = next(document for document in changed if name_of(document) == owner)
    *steps, last = [int(key) if key.isdigit() else key.replace("~", ".") for key in path.split(".")]
    for key in steps:
        parent = parent[key]
    if value is REMOVED:
        del parent[last]
    elif callable(value):
        parent[last] = value(parent[last])
    else:
        parent[last] = value
    return changed


def with_entries(**entries: Any) -> Callable[[Document], Document]:
    """Returns a function that adds entries to a mapping."""
    return lambda old: old | entries


def with_item(item: Any) -> Callable[[list[Any]], list[Any]]:
    """Returns a function that appends an item to a list."""
    return lambda old: [*old, item]
