"""What the KubeRay operator asks for beyond the schema, and what a cluster of fixed size that trains needs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from kube_amounts import amount
from kube_pods import TOKEN_KEY, Pod, at, clusters, name_of, pods
from kube_render import Document

from pipelines.cluster import OBJECT_STORE_BYTES

CLUSTER_NAME, JOB_NAME = 53, 47  # what the operator appends must still fit into the 63 characters of a label
TOKEN_SINCE = (2, 52)
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for document, where, spec in clusters(documents):
        yield from _named(document, CLUSTER_NAME)
        yield from _token(where, spec)
        yield from _head(where, spec)
        yield from _workers(where, spec)
    secrets = {at(spec, "authOptions.secretName") or None for _, _, spec in clusters(documents)}
    for document in documents:
        if document.get("kind") == "RayJob":
            yield from _job(document, {name_of(other) for other in documents})
    for pod in pods(documents):
        if pod.role in ("head", "worker", "submitter"):
            for where, container in pod.containers():
                yield from _carries_the_token(where, container, secrets)


def _named(document: Document, most: int) -> Iterator[str]:
    name = str(document["metadata"].get("name"))
    if len(name) > most:
        yield f"{name_of(document)}: metadata.name: {len(name)} characters, at most {most}"
    if not LABEL.fullmatch(name):
        yield f"{name_of(document)}: metadata.name: starts with a letter, then small letters, digits and hyphens"


def _token(where: str, spec: Document) -> Iterator[str]:
    options = spec.get("authOptions") or {}
    if options.get("mode") != "token":
        yield f"{where}.authOptions.mode: must be token, is {options.get('mode')}: Ray's job API runs anyone's code"
    if not options.get("secretName"):
        yield f"{where}.authOptions.secretName: missing"
    version = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion") or ""))
    if not version or tuple(map(int, version.groups())) < TOKEN_SINCE:
        yield f"{where}.rayVersion: tokens need Ray {'.'.join(map(str, TOKEN_SINCE))} or newer, is {spec.get('rayVersion')}"


def _carries_the_token(where: str, container: Document, secrets: set[str | None]) -> Iterator[str]:
    variables = {variable["name"]: variable for variable in container.get("env") or []}
    if (mode := variables.get("RAY_AUTH_MODE", {}).get("value")) != "token":
        yield f"{where}.env[RAY_AUTH_MODE]: must be token, is {mode}"
    reference = at(variables.get("RAY_AUTH_TOKEN", {}), "valueFrom.secretKeyRef")
    if reference.get("name") not in secrets or reference.get("key") != TOKEN_KEY:
        yield f"{where}.env[RAY_AUTH_TOKEN].valueFrom.secretKeyRef: must be {TOKEN_KEY} of the cluster's secret, is {reference}"


def _head(where: str, spec: Document) -> Iterator[str]:
    head = spec.get("headGroupSpec") or {}
    yield from _started(f"{where}.headGroupSpec", head)
    if at(head, "rayStartParams.num-cpus") != "0":
        yield f'{where}.headGroupSpec.rayStartParams.num-cpus: must be "0": nothing is trained on the head'
    if at(head, "rayStartParams.dashboard-host") != "0.0.0.0":
        yield f"{where}.headGroupSpec.rayStartParams.dashboard-host: must be 0.0.0.0, or nobody reaches the job API"


def _workers(where: str, spec: Document) -> Iterator[str]:
    groups = spec.get("workerGroupSpecs") or []
    if not groups:
        yield f"{where}.workerGroupSpecs: empty"
    names = [group.get("groupName") for group in groups]
    for n, group in enumerate(groups):
        field = f"{where}.workerGroupSpecs[{n}]"
        yield from _started(field, group)
        if not LABEL.fullmatch(str(names[n])) or names.count(names[n]) > 1:
            yield f"{field}.groupName: must be a label and occur once, is {names[n]}"
        sizes = [group.get(key) for key in ("minReplicas", "replicas", "maxReplicas")]
        for key, size in zip(("minReplicas", "replicas", "maxReplicas"), sizes, strict=True):
            if type(size) is not int or size < 1:
                yield f"{field}.{key}: must be a number of pods, is {size!r}"
        if len(set(sizes)) > 1:
            yield f"{field}.minReplicas, replicas, maxReplicas: must be equal, are {sizes}: the group is of fixed size"


def _started(where: str, group: Document) -> Iterator[str]:
    parameters = group.get("rayStartParams")
    if not isinstance(parameters, dict):
        yield f"{where}.rayStartParams: missing"
        return
    for key, value in parameters.items():
        if not isinstance(value, str):
            yield f"{where}.rayStartParams.{key}: must be a string, is {value!r}"
        if key not in ray_start_options():
            yield f"{where}.rayStartParams.{key}: `ray start` has no such option"
    if (memory := parameters.get("object-store-memory")) is not None and not str(memory).isdigit():
        yield f"{where}.rayStartParams.object-store-memory: must be bytes in digits, is {memory!r}"


@functools.cache
def ray_start_options() -> frozenset[str]:
    """The long options of `ray start`, from the Ray that is installed."""
    from ray.scripts.scripts import start

    return frozenset(word.removeprefix("--") for parameter in start.params for word in parameter.opts)


def check_shared_memory(documents: list[Document]) -> Iterator[str]:
    """Ray keeps objects in /dev/shm, which must be memory, and refuses an object store that is larger."""
    rooms = {}
    for pod in pods(documents):
        container, where = (pod.spec.get("containers") or [{}])[0], f"{pod.owner}: {pod.path}"
        of_its_own = "glassbox" in " ".join(container.get("command") or [])
        if pod.role in ("head", "worker") or of_its_own:
            rooms[where] = yield from _room(pod, container)
        if of_its_own and 0 < rooms[where] < OBJECT_STORE_BYTES:
            yield f"{where}.volumes: a Ray of the pod's own takes {OBJECT_STORE_BYTES} bytes of /dev/shm, which has {rooms[where]:.0f}"
    for _, where, spec in clusters(documents):
        groups = [("headGroupSpec", spec.get("headGroupSpec") or {})]
        groups += [
            (f"workerGroupSpecs[{n}]", group) for n, group in enumerate(spec.get("workerGroupSpecs") or [])
        ]
        for field, group in groups:
            store, room = (
                str(at(group, "rayStartParams").get("object-store-memory", "0")),
                rooms[f"{where}.{field}.template.spec"],
            )
            if store.isdigit() and int(store) > room:
                yield f"{where}.{field}.rayStartParams.object-store-memory: {store} exceeds /dev/shm of {room:.0f}"


def _room(pod: Pod, container: Document) -> Iterator[str]:
    """Problems; returns the size of /dev/shm in bytes."""
    mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts") or []}
    volume = next((v for v in pod.spec.get("volumes") or [] if v["name"] == mounts.get("/dev/shm")), None)
    if volume is None:
        yield f"{pod.owner}: {pod.path}.containers[0].volumeMounts: nothing at /dev/shm for Ray's object store"
        return 0
    if at(volume, "emptyDir.medium") != "Memory":
        yield f"{pod.owner}: {pod.path}.volumes[{volume['name']}].emptyDir.medium: must be Memory"
    return amount(at(volume, "emptyDir.sizeLimit")) or 0


def _job(document: Document, present: set[str]) -> Iterator[str]:
    where, spec = f"{name_of(document)}: spec", document.get("spec") or {}
    yield from _named(document, JOB_NAME)
    selected = at(spec, "clusterSelector").get("ray.io/cluster")
    if f"RayCluster/{selected}" not in present:
        yield f"{where}.clusterSelector.ray.io/cluster: there is no RayCluster {selected}"
    if not spec.get("submitterPodTemplate"):
        yield f"{where}.submitterPodTemplate: missing: the operator's own is refused by the restricted standard"
    elif at(spec, "submitterPodTemplate.spec.restartPolicy") not in ("Never", "OnFailure"):
        yield f"{where}.submitterPodTemplate.spec.restartPolicy: must be Never or OnFailure"
