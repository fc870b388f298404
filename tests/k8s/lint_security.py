"""What the restricted Pod Security Standard asks for, and we beyond it, in the pods as they will be; `lint_fields` refuses the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kube_pods import Pod, at, name_of, pods
from kube_render import Document

LEVEL = "pod-security.kubernetes.io/"
SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY")


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for document in documents:
        kind = document.get("kind")
        if kind == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
            yield f"{name_of(document)}: automountServiceAccountToken: must be false"
        if kind == "Namespace":
            levels = {
                key.removeprefix(LEVEL): value
                for key, value in at(document, "metadata.labels").items()
                if key.startswith(LEVEL)
            }
            for mode in sorted(
                {"enforce", "audit", "warn"} | set(levels)
            ):  # a version would pin an old, weaker standard
                if levels.get(mode) != "restricted":
                    yield f"{name_of(document)}: metadata.labels.{LEVEL}{mode}: must be restricted, is {levels.get(mode)}"
    for pod in pods(documents):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: {pod.path}.automountServiceAccountToken: must be false"
        for where, container in pod.containers():
            yield from _context(where, pod, container.get("securityContext") or {})
            yield from _container(where, pod, container)


def _context(where: str, pod: Pod, context: Document) -> Iterator[str]:
    """What holds for a container is what stands in it, or else in its pod."""
    outer = pod.spec.get("securityContext") or {}

    def holds(field: str) -> Any:
        return context.get(field, outer.get(field))

    if holds("runAsNonRoot") is not True:
        yield f"{where}.securityContext.runAsNonRoot: must be true"
    for field in ("runAsUser", "runAsGroup"):
        if holds(field) != 1000:
            yield f"{where}.securityContext.{field}: must be 1000, the image's, is {holds(field)}"
    if at({"profile": holds("seccompProfile")}, "profile.type") != "RuntimeDefault":
        yield f"{where}.securityContext.seccompProfile.type: must be RuntimeDefault"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{where}.securityContext.allowPrivilegeEscalation: must be false"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{where}.securityContext.readOnlyRootFilesystem: must be true"
    if "ALL" not in (at(context, "capabilities.drop") or []):
        yield f"{where}.securityContext.capabilities.drop: must have ALL"


def _container(where: str, pod: Pod, container: Document) -> Iterator[str]:
    for variable in container.get("env") or []:
        if SECRET_NAME.search(variable.get("name", "")) and "value" in variable:
            yield f"{where}.env[{variable['name']}].value: a secret in plain sight; take it from one with secretKeyRef"
    temporary = {volume["name"] for volume in pod.spec.get("volumes") or [] if "emptyDir" in volume}
    if not any(
        mount["mountPath"] == "/tmp" and mount["name"] in temporary
        for mount in container.get("volumeMounts") or []
    ):
        yield f"{where}.volumeMounts: no emptyDir at /tmp, the only place the image writes to"
