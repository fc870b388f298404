"""Who reaches whom: the policies are evaluated as a network plugin does, for every pod, stranger and port that matter."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from kube_pods import Pod, at, name_of, pods
from kube_render import Document

HERE = "glassbox"
GCS, JOBS, METRICS, SCHEDULER_METRICS, DASHBOARD_METRICS, WEB, HTTPS = (
    6379,
    8265,
    8080,
    44217,
    44227,
    8080,
    443,
)
DNS = (53, ("UDP", 53))
Port = int | tuple[str, int]  # of TCP where no protocol stands beside it
RAY_METRICS = (METRICS, SCHEDULER_METRICS, DASHBOARD_METRICS)
OPERATORS = ("ray-system", {"app.kubernetes.io/component": "kuberay-operator"})
CLIENT = {"glassbox/ray-client": "true"}  # of pods that users bring, too
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
        role: Of the pod, where it is one of the manifests.
        secrets: That it gets.
    """

    name: str
    namespace: str | None = HERE
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str = ""
    role: str = ""
    secrets: frozenset[str] = frozenset()


NAMES = End("the name service", "kube-system", {"k8s-app": "kube-dns"})
NOT_NAMES = End("another pod beside the name service", "kube-system")
STORE = End("a store", None, address="203.0.113.7")
OUTSIDE = [
    End(f"the address {address}", None, address=address)
    for address in (
        "169.254.169.254",
        "10.1.2.3",
        "172.16.0.9",
        "192.168.1.2",
        "100.64.0.5",
        "2001:db8::7",
        "fd00:ec2::254",
    )
]


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the policy or the field it lies in."""
    policies = [document for document in documents if document.get("kind") == "NetworkPolicy"]
    if malformed := [problem for policy in policies for problem in _form(policy, documents)]:
        yield from malformed
        return
    if not any(_denies_all(policy) for policy in policies):
        yield "NetworkPolicy: spec.podSelector, policyTypes: none denies everything that no other allows"
    ends = [
        End(f"{pod.owner} {pod.role}", labels=pod.labels, role=pod.role, secrets=_secrets(pod))
        for pod in pods(documents)
    ]
    monitored = any(document.get("kind") == "PodMonitor" for document in documents)
    for source, target, port, wanted in _wishes(ends, monitored):
        goes_out, comes_in = (
            _passes(policies, source, target, port, "Egress"),
            _passes(policies, target, source, port, "Ingress"),
        )
        if wanted and not (goes_out and comes_in):
            yield f"NetworkPolicy: spec.ingress, spec.egress: {source.name} does not reach {target.name} at port {port}"
        if not wanted:  # each end that is here closes by itself, whatever the other does
            for here, opens, field_ in ((source, goes_out, "egress"), (target, comes_in, "ingress")):
                if here.namespace == HERE and opens:
                    yield f"NetworkPolicy: spec.{field_}: {source.name} reaches {target.name} at port {port}"


def allowed(policies: list[Document], source: End, target: End, port: Port) -> bool:
    """Whether a connection is let through, by the policies of both its ends."""
    return _passes(policies, source, target, port, "Egress") and _passes(
        policies, target, source, port, "Ingress"
    )


def _passes(policies: list[Document], own: End, other: End, port: Port, direction: str) -> bool:
    if own.namespace != HERE:
        return True
    mine = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"].get("policyTypes", ["Ingress"])
        and _selected(policy["spec"].get("podSelector"), own.labels)
    ]
    rules = [rule for spec in mine for rule in spec.get(direction.lower()) or []]
    return not mine or any(
        _rule(rule, other, port, "to" if direction == "Egress" else "from") for rule in rules
    )


def _rule(rule: Document, other: End, port: Port, key: str) -> bool:
    """A rule without peers or ports means all of them."""
    peers, ports = rule.get(key) or [], rule.get("ports") or []
    protocol, number = port if isinstance(port, tuple) else ("TCP", port)
    through = [
        entry
        for entry in ports
        if entry.get("protocol", "TCP") == protocol and entry.get("port") in (number, None)
    ]
    return (not peers or any(_peer(peer, other) for peer in peers)) and (not ports or bool(through))


def _peer(peer: Document, other: End) -> bool:
    if block := peer.get("ipBlock"):
        inside = bool(other.address) and ipaddress.ip_address(other.address) in ipaddress.ip_network(
            block["cidr"]
        )
        return inside and not any(
            ipaddress.ip_address(other.address) in ipaddress.ip_network(cut)
            for cut in block.get("except") or []
        )
    if other.namespace is None:
        return False
    names = other.namespace_labels | {"kubernetes.io/metadata.name": other.namespace}
    near = (
        _selected(peer["namespaceSelector"], names)
        if "namespaceSelector" in peer
        else other.namespace == HERE
    )
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


def _form(policy: Document, documents: list[Document]) -> Iterator[str]:
    """What is read otherwise than it was meant."""
    where, spec = name_of(policy), policy["spec"]
    labels = at(policy, "spec.podSelector.matchLabels")
    if (
        labels
        and labels != CLIENT
        and not any(labels.items() <= pod.labels.items() for pod in pods(documents))
    ):
        yield f"{where}: spec.podSelector: no pod has these labels: {labels}"
    if "matchExpressions" in str(spec):
        yield f"{where}: spec.podSelector.matchExpressions: not understood here; use matchLabels"
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        if spec.get(direction) and direction.title() not in (spec.get("policyTypes") or []):
            yield f"{where}: spec.{direction}: of no effect, since policyTypes is {spec.get('policyTypes')}"
        for rule in spec.get(direction) or []:
            for entry in rule.get("ports") or []:
                if type(entry.get("port")) is not int or "endPort" in entry:
                    yield f"{where}: spec.{direction}.ports: must be one number, is {entry}"
            for peer in rule.get(peers) or []:
                yield from (
                    f"{where}: spec.{direction}.{peers}.ipBlock.{problem}"
                    for problem in _block(peer.get("ipBlock") or {})
                )


def _block(block: Document) -> Iterator[str]:
    try:
        whole = ipaddress.ip_network(block.get("cidr", "0.0.0.0/0"))
        cuts = [ipaddress.ip_network(cut) for cut in block.get("except") or []]
    except ValueError as error:
        yield f"cidr: {error}"
        return
    for cut in cuts:
        if cut.version != whole.version or not cut.subnet_of(whole):  # type: ignore[arg-type]
            yield f"except: {cut} is not within {whole}"


def _secrets(pod: Pod) -> frozenset[str]:
    sources = [
        at(source, "secretRef").get("name")
        for _, container in pod.containers()
        for source in container.get("envFrom") or []
    ]
    return frozenset(filter(None, sources))


def _wishes(ends: list[End], monitored: bool) -> Iterator[tuple[End, End, Port, bool]]:
    """Source, target, port and whether it shall get through."""
    ray, others = (
        [end for end in ends if (end.role in ("head", "worker")) is inside] for inside in (True, False)
    )
    web = [end for end in ends if end.role == "deployment"]
    submitters = [end for end in ends if end.role == "submitter"]
    client = End("a client with the label", labels=CLIENT)
    operator, prometheus = End("the operator", *OPERATORS), End("Prometheus", *PROMETHEUS)
    reader = End("a namespace that reads reports", "ingress", {}, {"glassbox/reads-reports": "true"})
    strangers = [
        End("a pod of the namespace"),
        End("a pod elsewhere", "default", CLIENT | OPERATORS[1]),
        End("another pod beside the operator", OPERATORS[0]),
        End("another pod beside Prometheus", PROMETHEUS[0]),
        *OUTSIDE,
    ]
    for node in ray:
        yield from ((other, node, port, True) for other in ray for port in (GCS, JOBS, 20000))
        yield from ((source, node, JOBS, node.role == "head") for source in (client, operator, *submitters))
        yield from (
            (source, node, port, False)
            for source in (client, operator, *submitters)
            for port in (GCS, 20000, *RAY_METRICS)
        )
        yield from ((prometheus, node, port, monitored) for port in RAY_METRICS)
        closed = [*strangers, *(end for end in others if end not in submitters), reader]
        yield from (
            (source, node, port, False) for source in closed for port in (GCS, JOBS, 20000, *RAY_METRICS)
        )
        yield from ((prometheus, node, port, False) for port in (GCS, JOBS, 20000))
    for server in web:
        yield reader, server, WEB, True
        yield reader, server, HTTPS, False
        yield from (
            (source, server, WEB, False) for source in [*strangers, *ray, client, operator, prometheus]
        )
    for end in [*ends, client]:
        yield from ((end, NAMES, port, True) for port in DNS)
        yield from ((end, target, port, False) for target in (NOT_NAMES, STORE, *OUTSIDE) for port in DNS)
        yield from ((end, target, port, False) for target in (NAMES, NOT_NAMES) for port in (HTTPS, JOBS))
        yield from ((end, target, port, False) for target in OUTSIDE for port in (80, HTTPS, JOBS))
        yield end, STORE, 80, False
        yield end, STORE, HTTPS, "s3-credentials" in end.secrets
    yield from (
        (source, end, port, False)
        for source in [*strangers, reader]
        for end in others
        if end not in web
        for port in (WEB, HTTPS)
    )
