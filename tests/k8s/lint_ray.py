"""What the KubeRay operator asks for beyond the schema, and what a cluster of fixed size that trains needs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from kube_amounts import amount
from kube_pods import Pod, at, clusters, name_of, pods
from kube_render import Document

CLUSTER_NAME, JOB_NAME = 53, 47  # what the operator appends must still fit into the 63 characters of a label
TOKEN_SINCE = (2, 52)
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SPEC = {
    "rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling", "autoscalerOptions", "suspend",
    "managedBy", "headServiceAnnotations", "gcsFaultToleranceOptions", "upgradeStrategy",
}  # fmt: skip
HEAD = {"rayStartParams", "template", "headService", "serviceType", "enableIngress", "resources", "labels"}
WORKERS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds", "rayStartParams", "template", "suspend",
    "scaleStrategy", "resources", "labels",
}  # fmt: skip
JOB = {
    "entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "runtimeEnvYAML", "jobId", "metadata", "backoffLimit",
    "clusterSelector", "rayClusterSpec", "submissionMode", "submitterConfig", "submitterPodTemplate", "activeDeadlineSeconds", "suspend",
    "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "deletionStrategy", "managedBy", "preRunningDeadlineSeconds",
}  # fmt: skip


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for document, path, spec in clusters(documents):
        where = f"{name_of(document)}: {path}"
        yield from _named(document, CLUSTER_NAME if document["kind"] == "RayCluster" else JOB_NAME)
        yield from _unknown(where, spec, SPEC)
        yield from _token(where, spec)
        if spec.get("enableInTreeAutoscaling"):
            yield f"{where}.enableInTreeAutoscaling: the cluster is of fixed size"
        yield from _head(where, spec)
        yield from _workers(where, spec)
    for document in documents:
        if document.get("kind") == "RayJob":
            yield from _job(document, {name_of(other) for other in documents})
    for pod in pods(documents):
        if pod.role in ("head", "worker"):
            yield from _shared_memory(pod)


def _named(document: Document, most: int) -> Iterator[str]:
    name = str(document["metadata"].get("name"))
    if len(name) > most:
        yield f"{name_of(document)}: metadata.name: {len(name)} characters, at most {most}"
    if not LABEL.fullmatch(name):
        yield f"{name_of(document)}: metadata.name: starts with a letter, then small letters, digits and hyphens"


def _unknown(where: str, mapping: Document, known: set[str]) -> Iterator[str]:
    for key in sorted(set(mapping) - known):
        yield f"{where}.{key}: no such field in ray.io/v1"


def _token(where: str, spec: Document) -> Iterator[str]:
    options = spec.get("authOptions") or {}
    yield from _unknown(f"{where}.authOptions", options, {"mode", "secretName", "enableK8sTokenAuth"})
    if options.get("mode") != "token":
        yield f"{where}.authOptions.mode: must be token, is {options.get('mode')}: Ray's job API runs anyone's code"
    if not options.get("secretName"):
        yield f"{where}.authOptions.secretName: missing"
    version = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion") or ""))
    if not version or tuple(map(int, version.groups())) < TOKEN_SINCE:
        yield f"{where}.rayVersion: tokens need Ray {'.'.join(map(str, TOKEN_SINCE))} or newer, is {spec.get('rayVersion')}"


def _head(where: str, spec: Document) -> Iterator[str]:
    head = spec.get("headGroupSpec") or {}
    yield from _unknown(f"{where}.headGroupSpec", head, HEAD)
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
        yield from _unknown(field, group, WORKERS)
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


def _shared_memory(pod: Pod) -> Iterator[str]:
    where = f"{pod.owner}: {pod.path}"
    mounts = {mount["mountPath"]: mount["name"] for mount in (pod.spec.get("containers") or [{}])[0].get("volumeMounts") or []}
    volume = next((v for v in pod.spec.get("volumes") or [] if v["name"] == mounts.get("/dev/shm")), None)
    if volume is None:
        yield f"{where}.containers[0].volumeMounts: nothing at /dev/shm for Ray's object store"
    elif at(volume, "emptyDir.medium") != "Memory":
        yield f"{where}.volumes[{volume['name']}].emptyDir.medium: must be Memory"


def check_object_store(documents: list[Document]) -> Iterator[str]:
    """Ray refuses an object store that is larger than /dev/shm."""
    for document, path, spec in clusters(documents):
        groups = [("headGroupSpec", spec.get("headGroupSpec") or {})]
        groups += [(f"workerGroupSpecs[{n}]", group) for n, group in enumerate(spec.get("workerGroupSpecs") or [])]
        for field, group in groups:
            store = str(at(group, "rayStartParams").get("object-store-memory", "0"))
            shared = [v for v in at(group, "template.spec").get("volumes") or [] if at(v, "emptyDir.medium") == "Memory"]
            room = sum(amount(at(volume, "emptyDir.sizeLimit")) or 0 for volume in shared)
            if store.isdigit() and int(store) > room:
                yield f"{name_of(document)}: {path}.{field}.rayStartParams.object-store-memory: {store} exceeds /dev/shm of {room:.0f}"


def _job(document: Document, present: set[str]) -> Iterator[str]:
    where, spec = f"{name_of(document)}: spec", document.get("spec") or {}
    yield from _named(document, JOB_NAME)
    yield from _unknown(where, spec, JOB)
    selected = at(spec, "clusterSelector").get("ray.io/cluster")
    if bool(selected) == bool(spec.get("rayClusterSpec")):
        yield f"{where}.clusterSelector, rayClusterSpec: must be one of the two"
    if selected and f"RayCluster/{selected}" not in present:
        yield f"{where}.clusterSelector.ray.io/cluster: there is no RayCluster {selected}"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield f"{where}.suspend: needs shutdownAfterJobFinishes"
    if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        yield f"{where}.submissionMode: must be K8sJobMode, is {spec['submissionMode']}: the others leave no pod to look at"
    if not spec.get("submitterPodTemplate"):
        yield f"{where}.submitterPodTemplate: missing: the operator's own is refused by the restricted standard"
    elif at(spec, "submitterPodTemplate.spec.restartPolicy") not in ("Never", "OnFailure"):
        yield f"{where}.submitterPodTemplate.spec.restartPolicy: must be Never or OnFailure"
