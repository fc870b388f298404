"""Checks rendered pods against the restricted Pod Security Standard and stricter rules of this project.

Fields that would grant further rights are refused by `lint_fields`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kube_pods import Pod, get_field, list_pods, name_of
from kube_render import Document

LEVEL = "pod-security.kubernetes.io/"
MODES = {"enforce", "audit", "warn"}
SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY")
USER = 1000  # the image's


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for document in documents:
        kind = document.get("kind")
        if kind == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
            yield f"{name_of(document)}: automountServiceAccountToken: must be false"
        if kind == "Namespace":
            yield from _check_namespace(document)
    for pod in list_pods(documents):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: {pod.path}.automountServiceAccountToken: must be false"
        for where, container in pod.containers():
            yield from _check_security_context(where, pod, container.get("securityContext") or {})
            yield from _check_container(where, pod, container)


def _check_namespace(document: Document) -> Iterator[str]:
    labels = get_field(document, "metadata.labels")
    levels = {key.removeprefix(LEVEL): value for key, value in labels.items() if key.startswith(LEVEL)}
    # Other modes are refused too: `enforce-version` would pin an old, weaker standard.
    for mode in sorted(MODES | set(levels)):
        if levels.get(mode) != "restricted":
            where = f"{name_of(document)}: metadata.labels.{LEVEL}{mode}"
            yield f"{where}: must be restricted, is {levels.get(mode)}"


def _check_security_context(where: str, pod: Pod, context: Document) -> Iterator[str]:
    """Checks the effective security context: the container's, with the pod's as the default."""
    pod_context = pod.spec.get("securityContext") or {}

    def effective(field: str) -> Any:
        return context.get(field, pod_context.get(field))

    where = f"{where}.securityContext"
    if effective("runAsNonRoot") is not True:
        yield f"{where}.runAsNonRoot: must be true"
    for field in ("runAsUser", "runAsGroup"):
        if effective(field) != USER:
            yield f"{where}.{field}: must be {USER}, as in the image, is {effective(field)}"
    profile = effective("seccompProfile") or {}
    if profile.get("type") != "RuntimeDefault":
        yield f"{where}.seccompProfile.type: must be RuntimeDefault"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{where}.allowPrivilegeEscalation: must be false"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{where}.readOnlyRootFilesystem: must be true"
    if "ALL" not in (get_field(context, "capabilities.drop") or []):
        yield f"{where}.capabilities.drop: must contain ALL"


def _check_container(where: str, pod: Pod, container: Document) -> Iterator[str]:
    for variable in container.get("env") or []:
        if SECRET_NAME.search(variable.get("name", "")) and "value" in variable:
            yield f"{where}.env[{variable['name']}].value: a secret in plain text; use secretKeyRef"
    empty_dirs = {volume["name"] for volume in pod.spec.get("volumes") or [] if "emptyDir" in volume}
    mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts") or []}
    if mounts.get("/tmp") not in empty_dirs:
        yield f"{where}.volumeMounts: no emptyDir at /tmp, the only path that the image writes to"
