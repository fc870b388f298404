"""Checks quantities: valid ones, requests equal to limits, volumes within limits, GPU nodes for GPU pods."""

from __future__ import annotations

from collections.abc import Iterator

from kube_pods import Pod, get_field, list_pods, name_of
from kube_quantities import GPU, parse_quantity
from kube_render import Document

REQUIRED = ("cpu", "memory", "ephemeral-storage")
RDMA = "rdma/hca"
OBJECT_STORE = 2e9  # of Ray, see the base
# NCCL's buffers: 32 channels of 10 MiB for each of 2 neighbours
SHARED_MEMORY_PER_GPU = 2 * 32 * 10 * 2**20


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for pod in list_pods(documents):
        for where, container in pod.containers():
            yield from _check_container(where, container)
        yield from _check_volumes(pod)
        yield from _check_scheduling(pod)
        yield from _check_affinity(pod)
        yield from _check_network(pod)
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
    if name not in (*REQUIRED, GPU, RDMA):
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
    for index, toleration in enumerate(pod.spec.get("tolerations") or []):
        if not toleration.get("key"):
            yield f"{pod.owner}: {pod.path}.tolerations[{index}].key: missing: tolerates every taint"
    tolerates = any(toleration.get("key", GPU) == GPU for toleration in pod.spec.get("tolerations") or [])
    where = f"{pod.owner}: {pod.path}"
    if needs_gpu and not tolerates:
        yield f"{where}.tolerations: does not tolerate {GPU}, the taint of GPU nodes"
    if needs_gpu and not pod.spec.get("nodeSelector"):
        yield f"{where}.nodeSelector: missing for a pod with GPUs"
    if tolerates and not needs_gpu:
        yield f"{where}.tolerations: tolerates GPU nodes without requesting a GPU"


def _check_affinity(pod: Pod) -> Iterator[str]:
    """Workers that prefer to be near pods must mean the other workers of their own cluster."""
    terms = get_field(pod.spec, "affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution")
    for entry in terms or []:
        where = f"{pod.owner}: {pod.path}.affinity.podAffinityTerm"
        term = entry.get("podAffinityTerm") or {}
        selected = get_field(term, "labelSelector.matchLabels")
        if term.get("matchLabelKeys") != ["ray.io/cluster"]:
            yield f"{where}.matchLabelKeys: must be [ray.io/cluster]"
        if not selected or not selected.items() <= pod.labels.items():
            yield f"{where}.labelSelector: does not select the pod itself: {selected}"


def _check_network(pod: Pod) -> Iterator[str]:
    """NCCL that must use RDMA needs the adapters, and shared memory must hold its buffers."""
    for where, container in pod.containers():
        limits = get_field(container, "resources.limits")
        variables = {variable["name"]: variable.get("value") for variable in container.get("env") or []}
        is_main = ".containers[" in where
        if is_main and variables.get("NCCL_NET") == "IB" and RDMA not in limits:
            yield f"{where}.env[NCCL_NET]: needs the resource {RDMA}"
        gpus = parse_quantity(limits.get(GPU)) or 0
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts") or []}
        sizes = {
            volume["name"]: parse_quantity(get_field(volume, "emptyDir.sizeLimit"))
            for volume in pod.spec.get("volumes") or []
        }
        size = sizes.get(mounts.get("/dev/shm", "")) or 0
        needed = OBJECT_STORE + gpus * SHARED_MEMORY_PER_GPU
        if gpus and size < needed:
            yield f"{pod.owner}: {pod.path}.volumes: /dev/shm needs {needed:.0f} bytes for {gpus:g} GPUs"
