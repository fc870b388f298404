"""Checks what a cluster without shared volumes needs: a bucket, a cache on the node, and identities."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kube_pods import Pod, get_field, list_pods, name_of
from kube_quantities import parse_quantity
from kube_render import Document

STORE = re.compile(r"(s3|gs|az)://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9]")  # a bucket, without a slash at the end
# The identity that belongs to a kind of store
IDENTITIES = {
    "s3": "eks.amazonaws.com/role-arn",
    "gs": "iam.gke.io/gcp-service-account",
    "az": "azure.workload.identity/client-id",
}
AZURE_LABEL = {"azure.workload.identity/use": "true"}  # asks the webhook of AKS for a token
# Hosts of a store and of the service that issues credentials, with the settings that their names contain
HOSTS = {
    "s3": ("s3.{AWS_REGION}.amazonaws.com", "sts.{AWS_REGION}.amazonaws.com"),
    "gs": ("storage.googleapis.com",),
    "az": ("{AZURE_STORAGE_ACCOUNT_NAME}.blob.core.windows.net", "login.microsoftonline.com"),
}
STORE_CLIENT = {"glassbox/store-client": "true"}
MAX_SHARE = 0.95  # of the volume, for the cache; the rest is for what is being written


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for document in _find_settings(documents):
        settings = {key: str(value) for key, value in get_field(document, "data").items()}
        if not STORE.fullmatch(settings["STORE"]):
            yield f"{name_of(document)}: data.STORE: must be SCHEME://BUCKET, is {settings['STORE']}"
            continue
        yield from _check_pods(documents, settings)
        yield from _check_names(documents, settings)
        yield from _check_claims(documents)


def _find_settings(documents: list[Document]) -> list[Document]:
    maps = [document for document in documents if document.get("kind") == "ConfigMap"]
    return [document for document in maps if "STORE" in get_field(document, "data")]


def uses_store(pod: Pod, documents: list[Document]) -> bool:
    """Returns whether a pod has the settings of the object store."""
    names = {document["metadata"].get("name") for document in _find_settings(documents)}
    sources = [source for _, container in pod.containers() for source in container.get("envFrom") or []]
    return any(get_field(source, "configMapRef").get("name") in names for source in sources)


def find_identity(pod: Pod, documents: list[Document]) -> str:
    """Returns the annotation that gives the service account of a pod an identity, or an empty string."""
    for document in documents:
        is_account = document.get("kind") == "ServiceAccount"
        if not is_account or document["metadata"].get("name") != pod.spec.get("serviceAccountName"):
            continue
        annotations = get_field(document, "metadata.annotations")
        return next((name for name in IDENTITIES.values() if name in annotations), "")
    return ""


def _check_pods(documents: list[Document], settings: dict[str, str]) -> Iterator[str]:
    scheme = settings["STORE"].partition(":")[0]
    for pod in list_pods(documents):
        if not uses_store(pod, documents):
            continue
        where = f"{pod.owner}: {pod.path}"
        if find_identity(pod, documents) != IDENTITIES[scheme]:
            yield f"{where}.serviceAccountName: its account has no annotation {IDENTITIES[scheme]}"
        if scheme == "az" and not AZURE_LABEL.items() <= pod.labels.items():
            yield f"{where.removesuffix('.spec')}.metadata.labels: must contain {AZURE_LABEL}"
        for container in pod.spec.get("containers") or []:
            yield from _check_cache(f"{where}.containers[{container.get('name')}]", pod, container, settings)


def _check_names(documents: list[Document], settings: dict[str, str]) -> Iterator[str]:
    """Checks that a policy of names allows exactly the hosts of the store, and that no other allows more."""
    policies = [document for document in documents if document.get("kind") == "CiliumNetworkPolicy"]
    scheme = settings["STORE"].partition(":")[0]
    expected = {host.format_map(settings) for host in HOSTS[scheme]}
    for policy in policies:
        where = f"{name_of(policy)}: spec"
        if get_field(policy, "spec.endpointSelector.matchLabels") != STORE_CLIENT:
            yield f"{where}.endpointSelector: must be {STORE_CLIENT}"
        rules = get_field(policy, "spec.egress") or []
        names = {entry.get("matchName") for rule in rules for entry in rule.get("toFQDNs") or []}
        if names != expected:
            yield f"{where}.egress.toFQDNs: must be {sorted(expected)}, is {sorted(map(str, names))}"
        for rule in rules:
            ports = [entry["port"] for part in rule.get("toPorts") or [] for entry in part["ports"]]
            needed = "443" if "toFQDNs" in rule else "53"
            if ports != [needed] or not ("toFQDNs" in rule or "toEndpoints" in rule):
                yield f"{where}.egress.toPorts: must be {needed} of named targets, is {ports}"
        if not any("dns" in get_field(part, "rules") for rule in rules for part in rule.get("toPorts") or []):
            yield f"{where}.egress.toPorts.rules.dns: missing: Cilium learns no addresses"
        if any(
            name_of(document).endswith("/store") for document in documents if "Policy" in document["kind"]
        ):
            yield f"{where}: the NetworkPolicy store allows all public addresses next to it"


def _check_cache(where: str, pod: Pod, container: Document, settings: dict[str, str]) -> Iterator[str]:
    """Checks that the cache is on a volume of the node that is larger than its budget."""
    variables = {variable["name"]: variable.get("value") for variable in container.get("env") or []}
    values = settings | {name: str(value) for name, value in variables.items()}
    folder = values.get("GLASSBOX_CACHE", "")
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts") or []}
    mount = mounts.get(folder, {})
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes") or []}
    size = _find_volume_size(volumes.get(mount.get("name", ""), {}))
    if size is None or mount.get("readOnly"):
        yield f"{where}.volumeMounts: no writable emptyDir on disk at GLASSBOX_CACHE ({folder})"
        return
    budget = float(values.get("GLASSBOX_CACHE_GB", "inf")) * 1e9
    if budget > MAX_SHARE * size:
        yield (
            f"{where}.env: GLASSBOX_CACHE_GB must be at most {MAX_SHARE:.0%} of the volume at {folder}: "
            f"{budget:.0f} of {size:.0f} bytes"
        )


def _find_volume_size(volume: Document) -> float | None:
    """Returns the bytes of a volume of the pod alone, on disk; None for any other volume."""
    if "ephemeral" in volume:
        claim = get_field(volume, "ephemeral.volumeClaimTemplate.spec.resources.requests")
        return parse_quantity(claim.get("storage")) or 0.0
    directory = volume.get("emptyDir")
    if directory is None or directory.get("medium"):
        return None
    return parse_quantity(directory.get("sizeLimit")) or 0.0


def _check_claims(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if document.get("kind") == "PersistentVolumeClaim" and "ReadWriteMany" in str(document):
            yield f"PersistentVolumeClaim/{document['metadata']['name']}: a bucket replaces shared volumes"
