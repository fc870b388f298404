"""Runs all manifest checks: the Kubernetes schemas, and the rules that schemas cannot express."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

import kubernetes_validate
import lint_commands
import lint_fields
import lint_jobs
import lint_logs
import lint_monitoring
import lint_network
import lint_probes
import lint_ray
import lint_references
import lint_resources
import lint_security
import lint_store
import lint_versions
from kube_pods import list_pods, name_of
from kube_render import Document

# The oldest version that KubeRay's newest operators are tested on, and the newest with a published schema.
KUBERNETES_VERSIONS = ("1.31", "1.37")
BUILT_IN_GROUPS = {"v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "policy/v1", "scheduling.k8s.io/v1"}
CUSTOM_GROUPS = {
    "ray.io/v1": {"RayCluster", "RayJob"},
    "cilium.io/v2": {"CiliumNetworkPolicy"},
    "kueue.x-k8s.io/v1beta2": {"ResourceFlavor", "ClusterQueue", "LocalQueue"},
    "monitoring.coreos.com/v1": {"PodMonitor", "PrometheusRule"},
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
    lint_monitoring.check,
    lint_store.check,
    lint_logs.check,
)


def find_problems(documents: list[Document], versions: tuple[str, ...] = KUBERNETES_VERSIONS) -> list[str]:
    """Returns every problem in the manifests of one cluster as `Kind/name: field: message`."""
    return [*validate_schemas(documents, versions), *lint(documents)]


def lint(documents: list[Document]) -> list[str]:
    """Returns the problems that schemas do not detect."""
    field_problems = list(lint_fields.check(documents))
    # The other checks rely on mappings and lists where the manifests must have them.
    if any(f": {lint_fields.WRONG_TYPE} " in problem for problem in field_problems):
        return field_problems
    return field_problems + [problem for check in CHECKS for problem in check(documents)]


def validate_schemas(documents: list[Document], versions: tuple[str, ...]) -> Iterator[str]:
    """Validates the documents, and the pods rendered from them, against Kubernetes' schemas."""
    for document in documents:
        group = document.get("apiVersion")
        kind = document.get("kind")
        if group in BUILT_IN_GROUPS:
            yield from _validate(name_of(document), "", document, versions)
        elif kind not in CUSTOM_GROUPS.get(str(group), ()):
            yield f"{name_of(document)}: apiVersion: {group} has no {kind}, or is not known to the lint"
    for pod in list_pods(documents):
        yield from _validate(pod.owner, f"{pod.path.removesuffix('.spec')}.", pod.manifest(), versions)


def _validate(owner: str, prefix: str, document: Document, versions: tuple[str, ...]) -> Iterator[str]:
    serialized = json.dumps(document, sort_keys=True)
    for version in versions:
        if error := _find_schema_error(serialized, version):
            yield f"{owner}: {prefix}{error} (Kubernetes {version})"


@functools.cache  # loading a schema takes longer than validating against it
def _find_schema_error(document: str, version: str) -> str | None:
    try:
        kubernetes_validate.validate(json.loads(document), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None
