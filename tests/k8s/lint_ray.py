"""Checks the KubeRay operator's rules beyond the schema, and what a fixed-size training cluster requires."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from kube_pods import TOKEN_KEY, Pod, get_field, iterate_clusters, list_pods, name_of
from kube_quantities import parse_quantity
from kube_render import Document
from lint_logs import SIDECAR

from pipelines.local_ray import OBJECT_STORE_BYTES

# The operator appends suffixes to these names, which must still fit into the 63 characters of a label.
MAX_CLUSTER_NAME = 53
MAX_JOB_NAME = 47
TOKEN_SINCE = (2, 52)  # first Ray version with token authentication
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_IDLE_SECONDS = 600
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
MIN_SAVE_SECONDS = 60  # a checkpoint of 4 GB at 100 MB/s, and a call of the training
KILL_SECONDS = 30  # for Ray to end its processes
MORE_PODS_THAN_ANY_CLUSTER = 10_000
SIZES = ("minReplicas", "replicas", "maxReplicas")


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for document, where, spec in iterate_clusters(documents):
        if document.get("kind") == "RayCluster":
            yield from _check_name(document, MAX_CLUSTER_NAME)
            if not spec.get("upgradeStrategy"):
                yield f"{where}.upgradeStrategy: missing: changed manifests would not reach the pods"
        yield from _check_authentication(where, spec)
        yield from _check_head_group(where, spec)
        yield from _check_worker_groups(where, spec)
    yield from _check_shutdown(documents)
    yield from _check_disruption(documents)
    names = {name_of(document) for document in documents}
    for document in documents:
        if document.get("kind") == "RayJob":
            yield from _check_ray_job(document, names)
    clusters = iterate_clusters(documents)
    secrets = {get_field(spec, "authOptions.secretName") or None for _, _, spec in clusters}
    for pod in list_pods(documents):
        if pod.role in ("head", "worker", "submitter"):
            for where, container in pod.containers():
                if container.get("name") != SIDECAR:  # it needs no token
                    yield from _check_token_variables(where, container, secrets)


def _check_name(document: Document, max_length: int) -> Iterator[str]:
    name = str(document["metadata"].get("name"))
    where = f"{name_of(document)}: metadata.name"
    if len(name) > max_length:
        yield f"{where}: {len(name)} characters, at most {max_length}"
    if not LABEL.fullmatch(name):
        yield f"{where}: must start with a letter and contain lower-case letters, digits and hyphens only"


def _check_authentication(where: str, spec: Document) -> Iterator[str]:
    options = spec.get("authOptions") or {}
    mode = options.get("mode")
    if mode != "token":
        yield f"{where}.authOptions.mode: must be token, is {mode}: Ray's job API runs arbitrary code"
    if not options.get("secretName"):
        yield f"{where}.authOptions.secretName: missing"
    version = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion") or ""))
    if not version or tuple(map(int, version.groups())) < TOKEN_SINCE:
        minimum = ".".join(map(str, TOKEN_SINCE))
        yield f"{where}.rayVersion: tokens need Ray {minimum} or newer, is {spec.get('rayVersion')}"


def _check_token_variables(where: str, container: Document, secrets: set[str | None]) -> Iterator[str]:
    variables = {variable["name"]: variable for variable in container.get("env") or []}
    mode = variables.get("RAY_AUTH_MODE", {}).get("value")
    if mode != "token":
        yield f"{where}.env[RAY_AUTH_MODE]: must be token, is {mode}"
    reference = get_field(variables.get("RAY_AUTH_TOKEN", {}), "valueFrom.secretKeyRef")
    if reference.get("name") not in secrets or reference.get("key") != TOKEN_KEY:
        field = f"{where}.env[RAY_AUTH_TOKEN].valueFrom.secretKeyRef"
        yield f"{field}: must be {TOKEN_KEY} of the cluster's secret, is {reference}"


def _check_head_group(where: str, spec: Document) -> Iterator[str]:
    head = spec.get("headGroupSpec") or {}
    where = f"{where}.headGroupSpec"
    yield from _check_start_parameters(where, head)
    if get_field(head, "rayStartParams.num-cpus") != "0":
        yield f'{where}.rayStartParams.num-cpus: must be "0": nothing is trained on the head'
    if get_field(head, "rayStartParams.dashboard-host") != "0.0.0.0":
        yield f"{where}.rayStartParams.dashboard-host: must be 0.0.0.0, or the job API is unreachable"


def _check_worker_groups(where: str, spec: Document) -> Iterator[str]:
    groups = spec.get("workerGroupSpecs") or []
    if not groups:
        yield f"{where}.workerGroupSpecs: empty"
    names = [group.get("groupName") for group in groups]
    for index, group in enumerate(groups):
        field = f"{where}.workerGroupSpecs[{index}]"
        name = group.get("groupName")
        yield from _check_start_parameters(field, group)
        if not LABEL.fullmatch(str(name)) or names.count(name) > 1:
            yield f"{field}.groupName: must be a label and unique, is {name}"
        sizes = [group.get(key) for key in SIZES]
        for key, size in zip(SIZES, sizes, strict=True):
            if type(size) is not int or size < 1:
                yield f"{field}.{key}: must be a number of pods, is {size!r}"
        if len(set(sizes)) > 1:
            yield f"{field}.{', '.join(SIZES)}: must be equal, are {sizes}: the group has a fixed size"


def _check_shutdown(documents: list[Document]) -> Iterator[str]:
    """Checks that a pod which is deleted has time to save: hook and wait fit into the grace period."""
    for pod in list_pods(documents):
        if pod.role not in ("head", "worker"):
            continue
        where = f"{pod.owner}: {pod.path}"
        grace = pod.spec.get("terminationGracePeriodSeconds") or 30
        container = (pod.spec.get("containers") or [{}])[0]
        if pod.role == "head":
            field = f"{where}.containers[0].lifecycle.preStop.exec.command"
            command = get_field(container, "lifecycle.preStop.exec.command") or []
            words = [str(word) for word in command]
            if words[:3] != ["glassbox", "drain", "--seconds"] or len(words) != 4:
                yield f"{field}: must be glassbox drain --seconds S, or trainings are killed"
                continue
            seconds = words[3]
        else:
            field = f"{where}.containers[0].env[{DRAIN_VARIABLE}]"
            variables = {variable["name"]: variable for variable in container.get("env") or []}
            seconds = str(variables.get(DRAIN_VARIABLE, {}).get("value"))
        if not seconds.isdigit() or int(seconds) < MIN_SAVE_SECONDS:
            yield f"{field}: must be at least {MIN_SAVE_SECONDS} s, is {seconds}"
        elif int(seconds) + KILL_SECONDS > grace:
            yield f"{field}: {seconds} s and {KILL_SECONDS} s to end Ray exceed the grace period of {grace} s"
        if get_field(pod.template_metadata, "annotations").get(SAFE_TO_EVICT) != "false":
            field = f"{where.removesuffix('.spec')}.metadata.annotations.{SAFE_TO_EVICT}"
            yield f"{field}: must be false, or an autoscaler removes the node of a training"


def _check_start_parameters(where: str, group: Document) -> Iterator[str]:
    parameters = group.get("rayStartParams")
    where = f"{where}.rayStartParams"
    if not isinstance(parameters, dict):
        yield f"{where}: missing"
        return
    for key, value in parameters.items():
        if not isinstance(value, str):
            yield f"{where}.{key}: must be a string, is {value!r}"
        if key not in list_ray_start_options():
            yield f"{where}.{key}: `ray start` has no such option"
    memory = parameters.get("object-store-memory")
    if memory is not None and not str(memory).isdigit():
        yield f"{where}.object-store-memory: must be bytes in digits, is {memory!r}"


@functools.cache
def list_ray_start_options() -> frozenset[str]:
    """Returns the long options of `ray start` in the installed Ray."""
    from ray.scripts.scripts import start

    return frozenset(option.removeprefix("--") for parameter in start.params for option in parameter.opts)


def check_shared_memory(documents: list[Document]) -> Iterator[str]:
    """Checks that /dev/shm is in memory and large enough: Ray refuses an object store that exceeds it."""
    sizes = {}
    for pod in list_pods(documents):
        container = (pod.spec.get("containers") or [{}])[0]
        where = f"{pod.owner}: {pod.path}"
        is_server = (container.get("args") or [])[:1] == ["serve"]
        starts_local_ray = "glassbox" in " ".join(container.get("command") or []) and not is_server
        if pod.role in ("head", "worker") or starts_local_ray:
            sizes[where] = yield from _check_shared_memory_volume(pod, container)
        if starts_local_ray and 0 < sizes[where] < OBJECT_STORE_BYTES:
            yield (
                f"{where}.volumes: the pod's local Ray needs {OBJECT_STORE_BYTES} bytes of /dev/shm, "
                f"which has {sizes[where]:.0f}"
            )
    for _, where, spec in iterate_clusters(documents):
        groups = [("headGroupSpec", spec.get("headGroupSpec") or {})]
        for index, group in enumerate(spec.get("workerGroupSpecs") or []):
            groups.append((f"workerGroupSpecs[{index}]", group))
        for field, group in groups:
            store = str(get_field(group, "rayStartParams").get("object-store-memory", "0"))
            size = sizes[f"{where}.{field}.template.spec"]
            if store.isdigit() and int(store) > size:
                parameter = f"{where}.{field}.rayStartParams.object-store-memory"
                yield f"{parameter}: {store} exceeds /dev/shm of {size:.0f}"


def _check_shared_memory_volume(pod: Pod, container: Document) -> Iterator[str]:
    """Yields problems; returns the size of /dev/shm in bytes."""
    mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts") or []}
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes") or []}
    volume = volumes.get(mounts.get("/dev/shm"))
    where = f"{pod.owner}: {pod.path}"
    if volume is None:
        yield f"{where}.containers[0].volumeMounts: nothing at /dev/shm for Ray's object store"
        return 0
    if get_field(volume, "emptyDir.medium") != "Memory":
        yield f"{where}.volumes[{volume['name']}].emptyDir.medium: must be Memory"
    return parse_quantity(get_field(volume, "emptyDir.sizeLimit")) or 0


def _check_ray_job(document: Document, names: set[str]) -> Iterator[str]:
    where = f"{name_of(document)}: spec"
    spec = document.get("spec") or {}
    yield from _check_name(document, MAX_JOB_NAME)
    if spec.get("suspend"):
        yield f"{where}.suspend: must not be set: it belongs to Kueue"
    if spec.get("rayClusterSpec"):
        yield from _check_own_cluster(where, spec)
    else:
        yield from _check_selected_cluster(where, spec, names)
    template = f"{where}.submitterPodTemplate"
    if not spec.get("submitterPodTemplate"):
        yield f"{template}: missing: the restricted standard refuses the operator's default"
    elif get_field(spec, "submitterPodTemplate.spec.restartPolicy") not in ("Never", "OnFailure"):
        yield f"{template}.spec.restartPolicy: must be Never or OnFailure"


def _check_disruption(documents: list[Document]) -> Iterator[str]:
    """Checks that a budget keeps the pods of every cluster from being evicted."""
    budgets = [document for document in documents if document.get("kind") == "PodDisruptionBudget"]
    for budget in budgets:
        least = get_field(budget, "spec").get("minAvailable")
        # For pods of a custom resource, Kubernetes computes neither percentages nor `maxUnavailable`.
        if type(least) is not int or least < MORE_PODS_THAN_ANY_CLUSTER:
            yield (
                f"{name_of(budget)}: spec.minAvailable: must be a number of at least "
                f"{MORE_PODS_THAN_ANY_CLUSTER}, is {least!r}, or pods of a training are evicted"
            )
    if not any(document.get("kind") == "Namespace" for document in documents):
        return  # a RayJob alone
    for pod in list_pods(documents):
        selectors = [get_field(budget, "spec.selector.matchLabels") for budget in budgets]
        is_covered = any(selector and selector.items() <= pod.labels.items() for selector in selectors)
        if pod.role in ("head", "worker") and not is_covered:
            yield f"PodDisruptionBudget: spec.selector: does not select {pod.owner} {pod.role}"


def _check_selected_cluster(where: str, spec: Document, names: set[str]) -> Iterator[str]:
    cluster = get_field(spec, "clusterSelector").get("ray.io/cluster")
    if f"RayCluster/{cluster}" not in names:
        yield f"{where}.clusterSelector.ray.io/cluster: there is no RayCluster {cluster}"
    if spec.get("backoffLimit"):
        yield f"{where}.backoffLimit: must be 0: a retry needs a cluster of its own"


def _check_own_cluster(where: str, spec: Document) -> Iterator[str]:
    """Checks that a job leaves no cluster behind, and that a retry continues the run."""
    if spec.get("clusterSelector"):
        yield f"{where}.clusterSelector: must not be set next to rayClusterSpec"
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield f"{where}.shutdownAfterJobFinishes: must be true, or the cluster outlives its training"
    seconds = spec.get("ttlSecondsAfterFinished")
    if type(seconds) is not int or seconds > MAX_IDLE_SECONDS:
        field = f"{where}.ttlSecondsAfterFinished"
        yield f"{field}: must be at most {MAX_IDLE_SECONDS}, is {seconds}: GPUs are idle"
    deadline = spec.get("activeDeadlineSeconds")
    if type(deadline) is not int or deadline < 60:
        yield f"{where}.activeDeadlineSeconds: must be 60 or more, is {deadline}"
    for field in ("suspend", "upgradeStrategy"):
        if field in spec["rayClusterSpec"]:
            yield f"{where}.rayClusterSpec.{field}: is for standing clusters"
    if spec.get("backoffLimit") and "--resume-if-exists" not in str(spec.get("entrypoint")).split():
        yield f"{where}.entrypoint: must contain --resume-if-exists, or a retry refuses the run"
