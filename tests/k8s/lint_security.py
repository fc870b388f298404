"""The restricted Pod Security Standard, and what is asked for here beyond it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kube_pods import Pod, at, name_of, pods
from kube_render import Document

VOLUMES = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
HOST = ("hostNetwork", "hostPID", "hostIPC")
SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY")


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for document in documents:
        kind = document.get("kind")
        if kind == "Secret":
            yield f"{name_of(document)}: kind: secrets are made by a command, never kept in files"
        if kind == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
            yield f"{name_of(document)}: automountServiceAccountToken: must be false"
        if kind == "Namespace":
            level = at(document, "metadata.labels").get("pod-security.kubernetes.io/enforce")
            if level != "restricted":
                yield f"{name_of(document)}: metadata.labels.pod-security.kubernetes.io/enforce: must be restricted, is {level}"
        if kind == "Service" and at(document, "spec.type") not in ({}, "ClusterIP"):
            yield f"{name_of(document)}: spec.type: must be ClusterIP, is {at(document, 'spec.type')}"
    for pod in pods(documents):
        yield from _pod(pod)
        for where, container in pod.containers():
            yield from _context(where, pod, container.get("securityContext") or {})
            yield from _container(where, pod, container)


def _pod(pod: Pod) -> Iterator[str]:
    where = f"{pod.owner}: {pod.path}"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield f"{where}.automountServiceAccountToken: must be false"
    for field in HOST:
        if pod.spec.get(field):
            yield f"{where}.{field}: must not be set"
    for n, sysctl in enumerate(at(pod.spec, "securityContext.sysctls") or []):
        yield f"{where}.securityContext.sysctls[{n}]: must not be set: {sysctl}"
    for volume in pod.spec.get("volumes") or []:
        for kind in sorted(set(volume) - VOLUMES - {"name"}):
            yield f"{where}.volumes[{volume['name']}].{kind}: a volume of this kind is refused"


def _context(where: str, pod: Pod, context: Document) -> Iterator[str]:
    """What holds for a container is what stands in it, or else in its pod."""
    outer = pod.spec.get("securityContext") or {}

    def holds(field: str) -> Any:
        return context.get(field, outer.get(field))

    if holds("runAsNonRoot") is not True:
        yield f"{where}.securityContext.runAsNonRoot: must be true"
    if holds("runAsUser") != 1000:
        yield f"{where}.securityContext.runAsUser: must be 1000, the image's user, is {holds('runAsUser')}"
    if at({"profile": holds("seccompProfile")}, "profile.type") != "RuntimeDefault":
        yield f"{where}.securityContext.seccompProfile.type: must be RuntimeDefault"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{where}.securityContext.allowPrivilegeEscalation: must be false"
    if context.get("privileged"):
        yield f"{where}.securityContext.privileged: must not be set"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{where}.securityContext.readOnlyRootFilesystem: must be true"
    if "ALL" not in (at(context, "capabilities.drop") or []):
        yield f"{where}.securityContext.capabilities.drop: must have ALL"
    if at(context, "capabilities.add"):
        yield f"{where}.securityContext.capabilities.add: must not be set"
    if context.get("procMount", "Default") != "Default":
        yield f"{where}.securityContext.procMount: must not be set"


def _container(where: str, pod: Pod, container: Document) -> Iterator[str]:
    for port in container.get("ports") or []:
        if "hostPort" in port:
            yield f"{where}.ports[{port.get('name')}].hostPort: must not be set"
    for variable in container.get("env") or []:
        if SECRET_NAME.search(variable.get("name", "")) and "value" in variable:
            yield f"{where}.env[{variable['name']}].value: a secret in plain sight; take it from one with secretKeyRef"
    temporary = {volume["name"] for volume in pod.spec.get("volumes") or [] if "emptyDir" in volume}
    if not any(mount["mountPath"] == "/tmp" and mount["name"] in temporary for mount in container.get("volumeMounts") or []):
        yield f"{where}.volumeMounts: no emptyDir at /tmp, the only place the image writes to"
