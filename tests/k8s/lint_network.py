"""Who reaches whom: the policies are evaluated as a network plugin does, for every pod, stranger and port that matter."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from kube_pods import at, name_of, pods
from kube_render import Document

HERE = "glassbox"
GCS, JOBS, METRICS, SCHEDULER_METRICS, DASHBOARD_METRICS, WEB, HTTPS = 6379, 8265, 8080, 44217, 44227, 8080, 443
DNS = (53, ("UDP", 53))
Port = int | tuple[str, int]  # of TCP where no protocol stands beside it
RAY_METRICS = (METRICS, SCHEDULER_METRICS, DASHBOARD_METRICS)
OPERATORS = ("ray-system", {"app.kubernetes.io/component": "kuberay-operator"})
PROMETHEUS = ("monitoring", {"app.kubernetes.io/name": "prometheus"})


@dataclass(frozen=True)
class End:
    """One end of a connection.

    Attributes:
        name: For messages.
        namespace: It is in; None for an address outside the cluster.
        labels: Of the pod.
        namespace_labels: Beside its name.
        address: Outside the cluster.
    """

    name: str
    namespace: str | None = HERE
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the policy or the field it lies in."""
    policies = [document for document in documents if document.get("kind") == "NetworkPolicy"]
    if not any(_denies_all(policy) for policy in policies):
        yield "NetworkPolicy: spec.podSelector, policyTypes: none denies everything that no other allows"
    for policy in policies:
        yield from _chosen(policy, documents)
    ends = [End(f"{pod.owner} {pod.role}", labels=pod.labels) for pod in pods(documents)]
    for source, target, port, wanted in _wishes(documents, ends):
        comes_in = _passes(policies, target, source, port, "Ingress")  # what must not come in must not hang on the other end's policy
        if (comes_in if target.namespace == HERE and not wanted else allowed(policies, source, target, port)) != wanted:
            verb = "does not reach" if wanted else "reaches"
            yield f"NetworkPolicy: spec.ingress, spec.egress: {source.name} {verb} {target.name} at port {port}"


def allowed(policies: list[Document], source: End, target: End, port: Port) -> bool:
    """Whether a connection is let through, by the policies of both its ends."""
    return _passes(policies, source, target, port, "Egress") and _passes(policies, target, source, port, "Ingress")


def _passes(policies: list[Document], own: End, other: End, port: Port, direction: str) -> bool:
    if own.namespace != HERE:
        return True
    mine = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"].get("policyTypes", ["Ingress"]) and _selected(policy["spec"].get("podSelector"), own.labels)
    ]
    rules = [rule for spec in mine for rule in spec.get(direction.lower()) or []]
    return not mine or any(_rule(rule, other, port, "to" if direction == "Egress" else "from") for rule in rules)


def _rule(rule: Document, other: End, port: Port, key: str) -> bool:
    """A rule without peers or ports means all of them."""
    peers, ports = rule.get(key) or [], rule.get("ports") or []
    protocol, number = port if isinstance(port, tuple) else ("TCP", port)
    through = [entry for entry in ports if entry.get("protocol", "TCP") == protocol and entry.get("port") in (number, None)]
    return (not peers or any(_peer(peer, other) for peer in peers)) and (not ports or bool(through))


def _peer(peer: Document, other: End) -> bool:
    if block := peer.get("ipBlock"):
        inside = bool(other.address) and ipaddress.ip_address(other.address) in ipaddress.ip_network(block["cidr"])
        return inside and not any(ipaddress.ip_address(other.address) in ipaddress.ip_network(cut) for cut in block.get("except") or [])
    if other.namespace is None:
        return False
    names = other.namespace_labels | {"kubernetes.io/metadata.name": other.namespace}
    near = _selected(peer["namespaceSelector"], names) if "namespaceSelector" in peer else other.namespace == HERE
    return near and _selected(peer.get("podSelector"), other.labels)


def _selected(selector: Document | None, labels: dict[str, str]) -> bool:
    return ((selector or {}).get("matchLabels") or {}).items() <= labels.items()


def _denies_all(policy: Document) -> bool:
    spec = policy["spec"]
    return (
        not spec.get("podSelector")
        and set(spec.get("policyTypes") or ()) == {"Ingress", "Egress"}
        and not spec.get("ingress")
        and not spec.get("egress")
    )


def _chosen(policy: Document, documents: list[Document]) -> Iterator[str]:
    labels = at(policy, "spec.podSelector.matchLabels")
    clients = {"glassbox/ray-client": "true"}  # pods that users bring
    if labels and labels != clients and not any(labels.items() <= pod.labels.items() for pod in pods(documents)):
        yield f"{name_of(policy)}: spec.podSelector: no pod has these labels: {labels}"
    if at(policy, "spec.podSelector.matchExpressions"):
        yield f"{name_of(policy)}: spec.podSelector.matchExpressions: not understood here; use matchLabels"


def _wishes(documents: list[Document], ends: list[End]) -> Iterator[tuple[End, End, Port, bool]]:
    """Source, target, port and whether it shall get through."""
    ray = [end for end in ends if end.labels.get("ray.io/is-ray-node")]
    web = [end for end in ends if end.labels.get("app.kubernetes.io/name") == "reports"]
    others = [end for end in ends if end not in ray]
    monitored = any(document.get("kind") == "PodMonitor" for document in documents)
    client = End("a client with the label", labels={"glassbox/ray-client": "true"})
    operator, prometheus = End("the operator", *OPERATORS), End("Prometheus", *PROMETHEUS)
    reader = End("a namespace that reads reports", "ingress", {}, {"glassbox/reads-reports": "true"})
    strangers = [
        End("a pod of the namespace"),
        End("a pod elsewhere", "default", {"glassbox/ray-client": "true", **OPERATORS[1]}),
        End("another pod beside the operator", OPERATORS[0]),
        End("another pod beside Prometheus", PROMETHEUS[0]),
    ]
    names = End("the name service", "kube-system", {"k8s-app": "kube-dns"})
    outside, store, metadata = (
        End("the internet", None, address="203.0.113.7"),
        End("a store", None, address="203.0.113.7"),
        End("the cloud's metadata", None, address="169.254.169.254"),
    )
    for node in ray:
        yield from ((other, node, port, True) for other in ray for port in (GCS, JOBS, 20000))
        for source in (client, operator):
            yield source, node, JOBS, "head" in node.name
            yield source, node, GCS, False
        yield from ((prometheus, node, port, monitored) for port in RAY_METRICS)
        yield from (
            (source, node, port, False) for source in [*strangers, *web, reader, prometheus, outside] for port in (GCS, JOBS, 20000)
        )
        yield from ((source, node, port, False) for source in [*strangers, client] for port in RAY_METRICS)
    for server in web:
        yield reader, server, WEB, True
        yield from ((source, server, WEB, False) for source in [*strangers, client, outside])
    for end in [*ends, client]:
        yield from ((end, names, port, True) for port in DNS)
        yield end, names, HTTPS, False
        yield end, outside, 80, False
        yield end, metadata, HTTPS, False
        yield end, store, HTTPS, end.labels.get("glassbox/s3-client") == "true"
    yield from ((source, other, port, False) for source in strangers for other in others if other not in web for port in (WEB, HTTPS))
