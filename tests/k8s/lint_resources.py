"""Checks quantities: valid ones, requests equal to limits, volumes within limits, GPU nodes for GPU pods."""

from __future__ import annotations

from collections.abc import Iterator

from kube_pods import Pod, get_field, list_pods, name_of
from kube_quantities import GPU, parse_quantity
from kube_render import Document

REQUIRED = ("cpu", "memory", "ephemeral-storage")


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for pod in list_pods(documents):
        for where, container in pod.containers():
            yield from _check_container(where, container)
        yield from _check_volumes(pod)
        yield from _check_scheduling(pod)
    for document in documents:
        where = name_of(document)
        if document.get("kind") == "PriorityClass" and document.get("preemptionPolicy") != "Never":
            yield f"{where}: preemptionPolicy: must be Never, or a training evicts other pods"
        if document.get("kind") == "PersistentVolumeClaim":
            size = get_field(document, "spec.resources.requests").get("storage")
            if not parse_quantity(size):
                yield f"{where}: spec.resources.requests.storage: not a quantity: {size!r}"


def _check_container(where: str, container: Document) -> Iterator[str]:
    requests = get_field(container, "resources.requests")
    limits = get_field(container, "resources.limits")
    # The operator's init container sets CPU and memory only.
    required = REQUIRED if ".containers[" in where else REQUIRED[:2]
    for kind, quantities in (("requests", requests), ("limits", limits)):
        for name in required:
            if name not in quantities:
                yield f"{where}.resources.{kind}.{name}: missing"
        for name, quantity in quantities.items():
            yield from _check_quantity(f"{where}.resources.{kind}.{name}", name, quantity)
    for name in sorted(set(requests) | set(limits)):
        request = requests.get(name)
        limit = limits.get(name)
        if parse_quantity(request) != parse_quantity(limit):
            yield f"{where}.resources.limits.{name}: must equal the request {request!r}, is {limit!r}"


def _check_quantity(where: str, name: str, quantity: object) -> Iterator[str]:
    if name not in (*REQUIRED, GPU):
        yield f"{where}: not a resource that this project uses"
    value = parse_quantity(quantity)
    if value is None:
        yield f"{where}: not a quantity: {quantity!r}"
    elif name != "cpu" and value != int(value):
        yield f"{where}: not a whole number: {quantity!r} (m means thousandths)"


def _check_volumes(pod: Pod) -> Iterator[str]:
    used = {"memory": 0.0, "ephemeral-storage": 0.0}
    for volume in pod.spec.get("volumes") or []:
        if "emptyDir" not in volume:
            continue
        directory = volume["emptyDir"] or {}
        size = parse_quantity(directory.get("sizeLimit"))
        if not size:
            where = f"{pod.owner}: {pod.path}.volumes[{volume['name']}].emptyDir.sizeLimit"
            yield f"{where}: not a quantity: {directory.get('sizeLimit')!r}"
        medium = "memory" if directory.get("medium") == "Memory" else "ephemeral-storage"
        used[medium] += size or 0
    limits = [get_field(container, "resources.limits") for container in pod.spec.get("containers") or []]
    for name, size in used.items():
        limit = sum(parse_quantity(container.get(name)) or 0 for container in limits)
        if size and size >= limit:
            yield (
                f"{pod.owner}: {pod.path}.volumes: emptyDirs of {size:.0f} bytes exceed "
                f"the {name} limit of {limit:.0f}"
            )


def _check_scheduling(pod: Pod) -> Iterator[str]:
    """A pod with GPUs must tolerate the taint of GPU nodes, and one without GPUs must not."""
    needs_gpu = any(
        parse_quantity(get_field(container, "resources.limits").get(GPU)) for _, container in pod.containers()
    )
    # A toleration without a key tolerates every taint.
    tolerates = any(toleration.get("key", GPU) == GPU for toleration in pod.spec.get("tolerations") or [])
    where = f"{pod.owner}: {pod.path}"
    if needs_gpu and not tolerates:
        yield f"{where}.tolerations: does not tolerate {GPU}, the taint of GPU nodes"
    if needs_gpu and not pod.spec.get("nodeSelector"):
        yield f"{where}.nodeSelector: missing for a pod with GPUs"
    if tolerates and not needs_gpu:
        yield f"{where}.tolerations: tolerates GPU nodes without requesting a GPU"
