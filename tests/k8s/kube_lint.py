"""All checks in one: what schemas say, and what they miss."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

import kubernetes_validate
import lint_commands
import lint_fields
import lint_jobs
import lint_network
import lint_probes
import lint_ray
import lint_references
import lint_resources
import lint_security
import lint_versions
from kube_pods import name_of, pods
from kube_render import Document

VERSIONS = (
    "1.31",
    "1.37",
)  # of Kubernetes: the oldest that KubeRay's newest operators are tested on, and the newest known here
OWN_GROUPS = {"v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "scheduling.k8s.io/v1"}
OTHER_GROUPS = {
    "ray.io/v1": {"RayCluster", "RayJob"},
    "kueue.x-k8s.io/v1beta2": {"ResourceFlavor", "ClusterQueue", "LocalQueue"},
    "monitoring.coreos.com/v1": {"PodMonitor"},
}
CHECKS = (
    lint_ray.check,
    lint_ray.check_shared_memory,
    lint_probes.check,
    lint_resources.check,
    lint_security.check,
    lint_references.check,
    lint_jobs.check,
    lint_commands.check,
    lint_versions.check,
    lint_network.check,
)


def problems(documents: list[Document], versions: tuple[str, ...] = VERSIONS) -> list[str]:
    """Everything wrong with the manifests of one cluster: `Kind/name: field: what`."""
    return [*against_schemas(documents, versions), *lint(documents)]


def lint(documents: list[Document]) -> list[str]:
    """What schemas miss."""
    fields = list(lint_fields.check(documents))
    if any(f": {lint_fields.MISSHAPEN} " in problem for problem in fields):
        return fields
    return fields + [problem for check in CHECKS for problem in check(documents)]


def against_schemas(documents: list[Document], versions: tuple[str, ...]) -> Iterator[str]:
    """What the schemas of some versions of Kubernetes say, of the documents and of the pods that come of them."""
    for document in documents:
        group, kind = document.get("apiVersion"), document.get("kind")
        if group in OWN_GROUPS:
            yield from _validated(name_of(document), "", document, versions)
        elif kind not in OTHER_GROUPS.get(str(group), ()):
            yield f"{name_of(document)}: apiVersion: {group} has no {kind}, or is not known here"
    for pod in pods(documents):
        yield from _validated(pod.owner, f"{pod.path.removesuffix('.spec')}.", pod.manifest(), versions)


def _validated(owner: str, prefix: str, document: Document, versions: tuple[str, ...]) -> Iterator[str]:
    for version in versions:
        if found := _refused(json.dumps(document, sort_keys=True), version):
            yield f"{owner}: {prefix}{found} (Kubernetes {version})"


@functools.cache  # reading a schema takes longer than comparing with it
def _refused(document: str, version: str) -> str | None:
    try:
        kubernetes_validate.validate(json.loads(document), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None
