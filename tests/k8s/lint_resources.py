"""Amounts: written as Kubernetes reads them, requests = limits, and volumes that fit into what the pod may use."""

from __future__ import annotations

from collections.abc import Iterator

from kube_amounts import GPU, amount
from kube_pods import Pod, at, name_of, pods
from kube_render import Document

NEEDED = ("cpu", "memory", "ephemeral-storage")


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for pod in pods(documents):
        for where, container in pod.containers():
            yield from _container(where, container)
        yield from _volumes(pod)
        yield from _placed(pod)
    for document in documents:
        if document.get("kind") == "PriorityClass" and document.get("preemptionPolicy") != "Never":
            yield f"{name_of(document)}: preemptionPolicy: must be Never, or a training throws others out"
        if document.get("kind") == "PersistentVolumeClaim":
            size = at(document, "spec.resources.requests").get("storage")
            if not amount(size):
                yield f"{name_of(document)}: spec.resources.requests.storage: not an amount: {size!r}"


def _container(where: str, container: Document) -> Iterator[str]:
    requests, limits = at(container, "resources.requests"), at(container, "resources.limits")
    for kind, amounts in (("requests", requests), ("limits", limits)):
        for name in (
            NEEDED if ".containers[" in where else NEEDED[:2]
        ):  # the operator's container asks for these two
            if name not in amounts:
                yield f"{where}.resources.{kind}.{name}: missing"
        for name, quantity in amounts.items():
            value = amount(quantity)
            if name not in (*NEEDED, GPU):
                yield f"{where}.resources.{kind}.{name}: no such resource is known here"
            if value is None:
                yield f"{where}.resources.{kind}.{name}: not an amount: {quantity!r}"
            elif name != "cpu" and value != int(value):
                yield f"{where}.resources.{kind}.{name}: not a whole number: {quantity!r} (m stands for thousandths)"
    for name in sorted(set(requests) | set(limits)):
        if amount(requests.get(name)) != amount(limits.get(name)):
            yield f"{where}.resources.limits.{name}: must equal the request {requests.get(name)!r}, is {limits.get(name)!r}"


def _volumes(pod: Pod) -> Iterator[str]:
    limits = [at(container, "resources.limits") for container in pod.spec.get("containers") or []]
    used = {"memory": 0.0, "ephemeral-storage": 0.0}
    for volume in pod.spec.get("volumes") or []:
        if "emptyDir" not in volume:
            continue
        directory = volume["emptyDir"] or {}
        size = amount(directory.get("sizeLimit"))
        if not size:
            yield f"{pod.owner}: {pod.path}.volumes[{volume['name']}].emptyDir.sizeLimit: not an amount: {directory.get('sizeLimit')!r}"
        used["memory" if directory.get("medium") == "Memory" else "ephemeral-storage"] += size or 0
    for name, size in used.items():
        room = sum(amount(limit.get(name)) or 0 for limit in limits)
        if size and size >= room:
            yield f"{pod.owner}: {pod.path}.volumes: emptyDirs of {size:.0f} bytes do not fit into the limit for {name} of {room:.0f}"


def _placed(pod: Pod) -> Iterator[str]:
    """A pod with GPUs must be let onto their nodes, and one without must stay off."""
    wants = any(amount(at(container, "resources.limits").get(GPU)) for _, container in pod.containers())
    tolerated = any(
        toleration.get("key", GPU) == GPU for toleration in pod.spec.get("tolerations") or []
    )  # without a key all are
    if wants and not tolerated:
        yield f"{pod.owner}: {pod.path}.tolerations: nothing for {GPU}, whose nodes keep other pods off"
    if wants and not pod.spec.get("nodeSelector"):
        yield f"{pod.owner}: {pod.path}.nodeSelector: missing for a pod with GPUs"
    if tolerated and not wants:
        yield f"{pod.owner}: {pod.path}.tolerations: takes a place on a GPU node without asking for a GPU"
