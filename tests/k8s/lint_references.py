"""Everything that is named exists: volumes, claims, settings, secrets, accounts, classes, queues, and pods behind a selector."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from kube_amounts import amount
from kube_pods import Pod, at, name_of, pods
from kube_render import Document

SECRETS = {  # made by a command of k8s/README.md, with these keys
    "glassbox-ray-token": {"auth_token"},
    "s3-credentials": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
}
CLUSTER_WIDE = {"Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue"}
PLACES = {
    "configMap": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    "secret": ("Secret", "secretName"),
}
HERE = {"kubernetes.io/metadata.name": "glassbox"}
DNS = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    present = Counter(name_of(document) for document in documents)
    for name, count in present.items():
        if count > 1:
            yield f"{name}: metadata.name: {count} documents of this kind and name"
    for document in documents:
        yield from _document(document)
    for pod in pods(documents):
        yield from _volumes(pod, set(present))
        yield from _pod(pod, set(present))
        for where, container in pod.containers():
            yield from _environment(where, container, set(present))
    yield from _selectors(documents)
    yield from _queues(documents, set(present))


def _document(document: Document) -> Iterator[str]:
    name, kind = str(document["metadata"].get("name")), document["kind"]
    if not DNS.fullmatch(name) or len(name) > (52 if kind == "CronJob" else 63):
        yield f"{name_of(document)}: metadata.name: not a name, or too long: {name}"
    namespace = document["metadata"].get("namespace")
    if (namespace is None) != (kind in CLUSTER_WIDE):
        yield f"{name_of(document)}: metadata.namespace: is {namespace}"
    if kind == "ConfigMap":
        yield from _dashboards(document)
    if kind == "PersistentVolumeClaim" and at(document, "spec.accessModes") != ["ReadWriteMany"]:
        yield f"{name_of(document)}: spec.accessModes: must be [ReadWriteMany]: every worker mounts it"


def _dashboards(document: Document) -> Iterator[str]:
    for key, text in at(document, "data").items():
        if key.endswith(".json"):
            if at(document, "metadata.labels").get("grafana_dashboard") != "1":
                yield f"{name_of(document)}: metadata.labels.grafana_dashboard: must be 1, or Grafana passes it over"
            try:
                json.loads(text)
            except ValueError as error:
                yield f"{name_of(document)}: data.{key}: {error}"


def _volumes(pod: Pod, present: set[str]) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes") or []}
    used = set()
    for where, container in pod.containers():
        paths = Counter(mount["mountPath"] for mount in container.get("volumeMounts") or [])
        for mount in container.get("volumeMounts") or []:
            used.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"{where}.volumeMounts[{mount['mountPath']}]: there is no volume {mount['name']}"
            if paths[mount["mountPath"]] > 1:
                yield f"{where}.volumeMounts[{mount['mountPath']}]: mounted twice"
    for name, volume in volumes.items():
        where = f"{pod.owner}: {pod.path}.volumes[{name}]"
        if name not in used:
            yield f"{where}: mounted nowhere"
        if len(volume) != 2:
            yield f"{where}: must be of one kind, is of {sorted(set(volume) - {'name'})}"
        for field, (kind, key) in PLACES.items():
            target = at(volume, field).get(key) if field in volume else None
            if (
                field in volume
                and f"{kind}/{target}" not in present
                and target not in (SECRETS if kind == "Secret" else ())
            ):
                yield f"{where}.{field}.{key}: there is no {kind} {target}"


def _pod(pod: Pod, present: set[str]) -> Iterator[str]:
    for field, kind in (("serviceAccountName", "ServiceAccount"), ("priorityClassName", "PriorityClass")):
        name = pod.spec.get(field)
        if f"{kind}/{name}" not in present and (name or field == "serviceAccountName"):
            yield f"{pod.owner}: {pod.path}.{field}: there is no {kind} {name}"


def _environment(where: str, container: Document, present: set[str]) -> Iterator[str]:
    sources = [
        (f"env[{v.get('name')}].valueFrom", kind, r)
        for v in container.get("env") or []
        for kind, r in at(v, "valueFrom").items()
    ]
    sources += [
        ("envFrom", kind, reference)
        for source in container.get("envFrom") or []
        for kind, reference in source.items()
    ]
    for field, kind, reference in sources:
        name, key = reference.get("name"), reference.get("key")
        if kind.startswith("configMap") and f"ConfigMap/{name}" not in present:
            yield f"{where}.{field}.{kind}.name: there is no ConfigMap {name}"
        if kind.startswith("secret") and name not in SECRETS:
            yield f"{where}.{field}.{kind}.name: no command makes a Secret {name}"
        elif kind.startswith("secret") and key is not None and key not in SECRETS[name]:
            yield f"{where}.{field}.{kind}.key: the Secret {name} has no {key}"


def _selectors(documents: list[Document]) -> Iterator[str]:
    everyone = pods(documents)
    for document in documents:
        kind, spec = document["kind"], document.get("spec") or {}
        wanted = {
            "Service": spec.get("selector"),
            "PodMonitor": at(spec, "selector.matchLabels"),
            "Deployment": at(spec, "selector.matchLabels"),
        }
        if not (labels := wanted.get(kind)):
            continue
        mine = [pod for pod in everyone if kind != "Deployment" or pod.owner == name_of(document)]
        chosen = [pod for pod in mine if labels.items() <= pod.labels.items()]
        if not chosen:
            yield f"{name_of(document)}: spec.selector: no pod has these labels: {labels}"
        ports = {
            port.get("name")
            for pod in chosen
            for _, container in pod.containers()
            for port in container.get("ports") or []
        }
        named = [port.get("targetPort") for port in spec.get("ports") or []] + [
            port.get("port") for port in spec.get("podMetricsEndpoints") or []
        ]
        for port in named if chosen else []:
            if port not in ports:
                yield f"{name_of(document)}: spec.ports: the pods have no port {port}"


def _queues(documents: list[Document], present: set[str]) -> Iterator[str]:
    """Kueue would let a cluster wait for ever that asks for more than there is, or for what no queue covers."""
    covered = {}
    for document in documents:
        for group in at(document, "spec.resourceGroups") or []:
            for flavor in group["flavors"]:
                if f"ResourceFlavor/{flavor['name']}" not in present:
                    yield f"{name_of(document)}: spec.resourceGroups.flavors: there is no ResourceFlavor {flavor['name']}"
                covered |= {
                    resource["name"]: amount(resource["nominalQuota"]) or 0
                    for resource in flavor["resources"]
                }
                if [resource["name"] for resource in flavor["resources"]] != group["coveredResources"]:
                    yield f"{name_of(document)}: spec.resourceGroups.coveredResources: must name those of every flavor, in their order"
        if document["kind"] == "ClusterQueue" and at(document, "spec.namespaceSelector.matchLabels") != HERE:
            yield f"{name_of(document)}: spec.namespaceSelector.matchLabels: must be {HERE}, or the cluster is never let in"
        queue = at(document, "metadata.labels").get("kueue.x-k8s.io/queue-name")
        if queue and f"LocalQueue/{queue}" not in present:
            yield f"{name_of(document)}: metadata.labels.kueue.x-k8s.io/queue-name: there is no LocalQueue {queue}"
        if (
            document["kind"] == "LocalQueue"
            and f"ClusterQueue/{at(document, 'spec.clusterQueue')}" not in present
        ):
            yield f"{name_of(document)}: spec.clusterQueue: there is no ClusterQueue {at(document, 'spec.clusterQueue')}"
    if covered:
        for name, size in _wanted(documents).items():
            if size > covered.get(name, 0):
                yield f"ClusterQueue: spec.resourceGroups: the cluster asks for {size:g} {name}, the quota is {covered.get(name, 0):g}"


def _wanted(documents: list[Document]) -> Counter[str]:
    """What the pods of all queued clusters ask for together."""
    total: Counter[str] = Counter()
    queued = [
        document for document in documents if "kueue.x-k8s.io/queue-name" in at(document, "metadata.labels")
    ]
    for document in queued:
        sizes = [group.get("replicas", 0) for group in at(document, "spec.workerGroupSpecs") or []]
        for pod in pods([document]):
            count = sizes[int(re.findall(r"\[(\d+)]", pod.path)[0])] if pod.role == "worker" else 1
            for container in pod.spec.get("containers") or []:
                for name, quantity in at(container, "resources.requests").items():
                    total[name] += count * (amount(quantity) or 0)  # type: ignore[assignment]
    return total
