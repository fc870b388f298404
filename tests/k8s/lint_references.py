"""Checks that every referenced object exists: volumes, claims, secrets, accounts, queues, selected pods."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kube_pods import Pod, get_field, iterate_clusters, list_pods, name_of
from kube_quantities import parse_quantity
from kube_render import Document

# Secrets with their keys; commands in k8s/README.md create them.
SECRETS = {
    "glassbox-ray-token": {"auth_token"},
    "registry": {".dockerconfigjson"},
    "login": {"client-id", "client-secret", "cookie-secret"},
}
BUILT_IN_CLUSTER_SCOPED = {"Namespace", "PriorityClass"}
CLUSTER_SCOPED = BUILT_IN_CLUSTER_SCOPED | {"ResourceFlavor", "ClusterQueue"}
VOLUME_SOURCES = {
    "configMap": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    "secret": ("Secret", "secretName"),
}
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PART_OF = {"app.kubernetes.io/part-of": "glassbox"}  # what the command that deletes everything selects
KEEP = {"glassbox/keep": "true"}  # what it leaves
KEPT = {"Namespace", "PersistentVolumeClaim"}
DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    counts = Counter(name_of(document) for document in documents)
    names = set(counts)
    for name, count in counts.items():
        if count > 1:
            yield f"{name}: metadata.name: {count} documents of this kind and name"
    namespace = find_namespace(documents)
    for document in documents:
        yield from _check_document(document)
        yield from _check_namespace(document, namespace)
    for pod in list_pods(documents):
        yield from _check_volumes(pod, names)
        yield from _check_pod(pod, names)
        for where, container in pod.containers():
            yield from _check_environment(where, container, names)
    yield from _check_selectors(documents)
    yield from _check_same_pull_secrets(documents)
    yield from _check_queues(documents, names)
    yield from _check_cohort(documents)
    yield from _check_quota(documents)


def find_namespace(documents: list[Document]) -> str | None:
    """Returns the namespace that all objects are in: that of the manifests, else the first one mentioned."""
    own = [document["metadata"]["name"] for document in documents if document.get("kind") == "Namespace"]
    others = [document["metadata"].get("namespace") for document in documents]
    return next(filter(None, [*own, *others]), None)


def _check_namespace(document: Document, expected: str | None) -> Iterator[str]:
    kind = document["kind"]
    namespace = document["metadata"].get("namespace")
    if kind in BUILT_IN_CLUSTER_SCOPED:
        is_right = namespace is None
    elif kind in CLUSTER_SCOPED:  # kustomize sets one on custom kinds; the API server drops it
        is_right = namespace in (None, expected)
    else:
        is_right = namespace is not None and namespace == expected
    if not is_right:
        yield f"{name_of(document)}: metadata.namespace: is {namespace}, not {expected}"


def _check_document(document: Document) -> Iterator[str]:
    where = name_of(document)
    name = str(document["metadata"].get("name"))
    kind = document["kind"]
    max_length = 52 if kind == "CronJob" else 63  # the controller appends 11 characters to a CronJob's name
    if not DNS_NAME.fullmatch(name) or len(name) > max_length:
        yield f"{where}: metadata.name: not a name, or too long: {name}"
    labels = get_field(document, "metadata.labels")
    if not PART_OF.items() <= labels.items():
        yield f"{where}: metadata.labels: must contain {PART_OF}, or it is left behind"
    if (kind in KEPT) != (KEEP.items() <= labels.items()):
        yield f"{where}: metadata.labels: {KEEP} belongs to volumes and the namespace, and only to these"
    if kind == "ConfigMap":
        yield from _check_dashboards(document)
    if kind == "ServiceAccount":
        yield from _check_pull_secrets(document)
    if kind == "PersistentVolumeClaim" and get_field(document, "spec.accessModes") != ["ReadWriteMany"]:
        yield f"{where}: spec.accessModes: must be [ReadWriteMany]: every worker mounts it"


def _check_dashboards(document: Document) -> Iterator[str]:
    where = name_of(document)
    for key, text in get_field(document, "data").items():
        if not key.endswith(".json"):
            continue
        if get_field(document, "metadata.labels").get("grafana_dashboard") != "1":
            yield f"{where}: metadata.labels.grafana_dashboard: must be 1, or Grafana ignores the dashboard"
        try:
            json.loads(text)
        except ValueError as error:
            yield f"{where}: data.{key}: {error}"


def _check_volumes(pod: Pod, names: set[str]) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes") or []}
    used = set()
    for where, container in pod.containers():
        mounts = container.get("volumeMounts") or []
        paths = Counter(mount["mountPath"] for mount in mounts)
        for mount in mounts:
            used.add(mount["name"])
            path = mount["mountPath"]
            if mount["name"] not in volumes:
                yield f"{where}.volumeMounts[{path}]: there is no volume {mount['name']}"
            if paths[path] > 1:
                yield f"{where}.volumeMounts[{path}]: mounted twice"
    for name, volume in volumes.items():
        where = f"{pod.owner}: {pod.path}.volumes[{name}]"
        if name not in used:
            yield f"{where}: not mounted by any container"
        yield from _check_source(volume, where, names)


def _check_source(volume: dict[str, Any], where: str, names: set[str]) -> Iterator[str]:
    if len(volume) != 2:
        yield f"{where}: must have one source, has {sorted(set(volume) - {'name'})}"
    for field, (kind, key) in VOLUME_SOURCES.items():
        if field not in volume:
            continue
        target = get_field(volume, field).get(key)
        is_secret = kind == "Secret" and target in SECRETS
        if f"{kind}/{target}" not in names and not is_secret:
            yield f"{where}.{field}.{key}: there is no {kind} {target}"


def _check_pull_secrets(document: Document) -> Iterator[str]:
    for secret in document.get("imagePullSecrets") or []:
        if secret.get("name") not in SECRETS:
            field = f"{name_of(document)}: imagePullSecrets"
            yield f"{field}: no documented command creates a Secret {secret.get('name')}"


def _check_same_pull_secrets(documents: list[Document]) -> Iterator[str]:
    accounts = [document for document in documents if document.get("kind") == "ServiceAccount"]
    if not any(account.get("imagePullSecrets") for account in accounts):
        return
    for account in accounts:
        if not account.get("imagePullSecrets"):
            yield f"{name_of(account)}: imagePullSecrets: missing, other accounts have it"


def _check_pod(pod: Pod, names: set[str]) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if f"ServiceAccount/{account}" not in names:
        yield f"{pod.owner}: {pod.path}.serviceAccountName: there is no ServiceAccount {account}"
    priority = pod.spec.get("priorityClassName")
    if priority and f"PriorityClass/{priority}" not in names:
        yield f"{pod.owner}: {pod.path}.priorityClassName: there is no PriorityClass {priority}"


def _check_environment(where: str, container: Document, names: set[str]) -> Iterator[str]:
    references = []
    for variable in container.get("env") or []:
        for kind, reference in get_field(variable, "valueFrom").items():
            references.append((f"env[{variable.get('name')}].valueFrom.{kind}", kind, reference))
    for source in container.get("envFrom") or []:
        for kind, reference in source.items():
            references.append((f"envFrom.{kind}", kind, reference))
    for field, kind, reference in references:
        name = reference.get("name")
        key = reference.get("key")
        if kind.startswith("configMap") and f"ConfigMap/{name}" not in names:
            yield f"{where}.{field}.name: there is no ConfigMap {name}"
        if kind.startswith("secret") and name not in SECRETS:
            yield f"{where}.{field}.name: no documented command creates a Secret {name}"
        elif kind.startswith("secret") and key is not None and key not in SECRETS[name]:
            yield f"{where}.{field}.key: the Secret {name} has no {key}"


def _check_selectors(documents: list[Document]) -> Iterator[str]:
    """Checks that selectors match pods, and that the selected pods open the referenced ports."""
    all_pods = list_pods(documents)
    for document in documents:
        kind = document["kind"]
        spec = document.get("spec") or {}
        if kind == "Service":
            labels = spec.get("selector")
        elif kind in ("PodMonitor", "Deployment"):
            labels = get_field(spec, "selector.matchLabels")
        else:
            continue
        if not labels:
            continue
        where = name_of(document)
        # A Deployment must select its own pods; Services and PodMonitors select any.
        candidates = [pod for pod in all_pods if kind != "Deployment" or pod.owner == where]
        selected = [pod for pod in candidates if labels.items() <= pod.labels.items()]
        if not selected:
            yield f"{where}: spec.selector: no pod has these labels: {labels}"
            continue
        open_ports = {
            port.get("name")
            for pod in selected
            for _, container in pod.containers()
            for port in container.get("ports") or []
        }
        ports = [port.get("targetPort") for port in spec.get("ports") or []]
        ports += [endpoint.get("port") for endpoint in spec.get("podMetricsEndpoints") or []]
        for port in ports:
            if port not in open_ports:
                yield f"{where}: spec.ports: the pods have no port {port}"


def _check_queues(documents: list[Document], names: set[str]) -> Iterator[str]:
    """Checks Kueue's references; with a wrong one the cluster is never admitted."""
    namespace = find_namespace(documents)
    has_local_queues = any(document["kind"] == "LocalQueue" for document in documents)
    has_cluster_queues = any(document["kind"] == "ClusterQueue" for document in documents)
    for document in documents:
        where = name_of(document)
        kind = document["kind"]
        yield from _check_flavors(document, names)
        selector = get_field(document, "spec.namespaceSelector.matchLabels")
        expected = {"kubernetes.io/metadata.name": namespace}
        if kind == "ClusterQueue" and has_local_queues and selector != expected:
            field = f"{where}: spec.namespaceSelector.matchLabels"
            yield f"{field}: must be {expected}, or the cluster is never admitted"
        queue = get_field(document, "metadata.labels").get(QUEUE_LABEL)
        if queue and f"LocalQueue/{queue}" not in names:
            yield f"{where}: metadata.labels.{QUEUE_LABEL}: there is no LocalQueue {queue}"
        cluster_queue = get_field(document, "spec.clusterQueue")
        # Without any, they are the administrator's.
        is_missing = has_cluster_queues and f"ClusterQueue/{cluster_queue}" not in names
        if kind == "LocalQueue" and is_missing:
            yield f"{where}: spec.clusterQueue: there is no ClusterQueue {cluster_queue}"


def _check_cohort(documents: list[Document]) -> Iterator[str]:
    """Checks that the queues of several teams lend to each other, and that an owner gets its quota back."""
    queues = [document for document in documents if document.get("kind") == "ClusterQueue"]
    if len(queues) < 2:
        return
    cohorts = {get_field(queue, "spec.cohortName") or None for queue in queues}
    selected = []
    for queue in queues:
        where = f"{name_of(queue)}: spec"
        spec = queue["spec"]
        if not spec.get("cohortName"):
            yield f"{where}.cohortName: missing: what one team does not use stays idle"
        elif len(cohorts - {None}) > 1:
            yield f"{where}.cohortName: must be the same for all teams"
        if get_field(spec, "preemption").get("reclaimWithinCohort") != "Any":
            yield f"{where}.preemption.reclaimWithinCohort: must be Any, or a team waits for its own quota"
        weight = get_field(spec, "fairSharing").get("weight")
        if parse_quantity(weight) is None:
            yield f"{where}.fairSharing.weight: not a quantity: {weight!r}"
        namespace = get_field(spec, "namespaceSelector.matchLabels").get("kubernetes.io/metadata.name")
        if namespace is None:
            yield f"{where}.namespaceSelector: must name one namespace"
        elif namespace in selected:
            yield f"{where}.namespaceSelector: {namespace} has two queues"
        selected.append(namespace)


def _check_flavors(document: Document, names: set[str]) -> Iterator[str]:
    where = f"{name_of(document)}: spec.resourceGroups"
    for group in get_field(document, "spec.resourceGroups") or []:
        for flavor in group["flavors"]:
            if f"ResourceFlavor/{flavor['name']}" not in names:
                yield f"{where}.flavors: there is no ResourceFlavor {flavor['name']}"
            if [resource["name"] for resource in flavor["resources"]] != group["coveredResources"]:
                yield f"{where}.coveredResources: must list the resources of every flavor, in their order"


def _check_quota(documents: list[Document]) -> Iterator[str]:
    """Checks that the quota covers what the queued clusters request, or they wait forever."""
    quotas = {}
    for document in documents:
        for group in get_field(document, "spec.resourceGroups") or []:
            for flavor in group["flavors"]:
                for resource in flavor["resources"]:
                    quotas[resource["name"]] = parse_quantity(resource["nominalQuota"]) or 0
    if not quotas:
        return
    for name, requested in _sum_queued_requests(documents).items():
        quota = quotas.get(name, 0)
        if requested > quota:
            yield (
                f"ClusterQueue: spec.resourceGroups: the cluster requests {requested:g} {name}, "
                f"the quota is {quota:g}"
            )


def _sum_queued_requests(documents: list[Document]) -> Counter[str]:
    """Sums the resource requests of the pods of all queued clusters and jobs."""
    total: Counter[str] = Counter()
    for document in documents:
        if QUEUE_LABEL not in get_field(document, "metadata.labels"):
            continue
        for _, _, spec in iterate_clusters([document]):
            sizes = [group.get("replicas", 0) for group in spec.get("workerGroupSpecs") or []]
            for pod in list_pods([document]):
                is_worker = pod.role == "worker"
                replicas = sizes[int(re.findall(r"\[(\d+)]", pod.path)[0])] if is_worker else 1
                for container in [*(pod.spec.get("containers") or []), *_list_sidecars(pod)]:
                    for name, quantity in get_field(container, "resources.requests").items():
                        total[name] += replicas * (parse_quantity(quantity) or 0)  # type: ignore[assignment]
    return total


def _list_sidecars(pod: Pod) -> list[Document]:
    """Returns the init containers that run as long as the pod; others end before the containers start."""
    containers = pod.spec.get("initContainers") or []
    return [container for container in containers if container.get("restartPolicy") == "Always"]
