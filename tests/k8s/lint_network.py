"""Checks which pods can connect to which.

The network policies are evaluated as a network plugin does, for every pod of the manifests, for pods and
addresses that must not connect, and for every port in use.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from kube_pods import get_field, list_pods, name_of
from kube_render import Document
from lint_logs import find_sidecar
from lint_store import find_identity, uses_store

OWN_NAMESPACE = "glassbox"
GCS = 6379
JOB_API = 8265
WORKER_PORT = 20000  # stands for the ports that Ray picks at run time
METRICS = 8080
SCHEDULER_METRICS = 44217
DASHBOARD_METRICS = 44227
RAY_METRICS = (METRICS, SCHEDULER_METRICS, DASHBOARD_METRICS)
WEB = 8080
LOG_STORE_PORT = 3100
HTTP = 80
HTTPS = 443
DNS = (53, ("UDP", 53))
OPERATOR = ("ray-system", {"app.kubernetes.io/component": "kuberay-operator"})
DASHBOARD_POLICY = "dashboard"  # the component's
PROMETHEUS = ("monitoring", {"app.kubernetes.io/name": "prometheus"})
CLIENT_LABELS = {"glassbox/ray-client": "true"}  # users may set them on pods of their own

Port = int | tuple[str, int]  # a TCP port, or a protocol and a port

GKE_METADATA = 988
# Where pods with an identity receive their credentials, other than at public addresses, by the annotation of
# their service account
IDENTITY_ENDPOINTS: dict[str, set[tuple[str, Port]]] = {
    "eks.amazonaws.com/role-arn": {("169.254.170.23", HTTP)},
    "iam.gke.io/gcp-service-account": {("169.254.169.254", HTTP), ("169.254.169.252", GKE_METADATA)},
    "azure.workload.identity/client-id": set(),
}
EXTERNAL_ADDRESSES = (
    "169.254.169.254",  # the metadata service of cloud providers
    "169.254.169.252",  # the same on GKE
    "169.254.170.23",  # the agent of EKS Pod Identity
    "10.1.2.3",
    "172.16.0.9",
    "192.168.1.2",
    "100.64.0.5",
    "2001:db8::7",
    "fd00:ec2::254",
)


@dataclass(frozen=True)
class Endpoint:
    """One end of a connection: a pod, or an address outside the cluster.

    Attributes:
        name: Name of the endpoint in messages.
        namespace: Namespace of the pod; None for an external address.
        labels: Labels of the pod.
        namespace_labels: Labels of the namespace in addition to its name.
        address: IP address of an external endpoint.
        role: Role of a pod of the manifests, as in `kube_pods.Pod`.
        uses_store: True for a pod that has the settings of the object store.
        sends_logs: True for a pod with the sidecar that sends logs.
        identity: Annotation of its service account that gives it an identity; empty for none.
    """

    name: str
    namespace: str | None = OWN_NAMESPACE
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str = ""
    role: str = ""
    uses_store: bool = False
    sends_logs: bool = False
    identity: str = ""


class Expectation(NamedTuple):
    """Whether a connection has to be possible.

    Attributes:
        source: Endpoint that opens the connection.
        target: Endpoint that accepts it.
        port: Port at the target.
        is_allowed: True if the policies have to allow it, False if they have to deny it.
    """

    source: Endpoint
    target: Endpoint
    port: Port
    is_allowed: bool


NAME_SERVICE = Endpoint("the name service", "kube-system", {"k8s-app": "kube-dns"})
OTHER_SYSTEM_POD = Endpoint("another pod in kube-system", "kube-system")
LOG_STORE = Endpoint("the log store", "monitoring", {"app.kubernetes.io/name": "loki"})
OTHER_MONITORING_POD = Endpoint("another pod next to the log store", "monitoring")
OBJECT_STORE = Endpoint("an object store", None, address="203.0.113.7")
OTHER_PUBLIC = Endpoint("another public address", None, address="198.18.0.9")
PLACEHOLDERS = [ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
SMALLEST_PREFIX = 16  # of a policy that names the store's addresses
EVERYWHERE = "0.0.0.0/0"
EXTERNAL = [Endpoint(f"the address {address}", None, address=address) for address in EXTERNAL_ADDRESSES]
CLIENT = Endpoint("a client with the label", labels=CLIENT_LABELS)
KUBERAY = Endpoint("the operator", *OPERATOR)
MONITORING = Endpoint("Prometheus", *PROMETHEUS)
REPORT_READER = Endpoint("a namespace that reads reports", "ingress", {}, {"glassbox/reads-reports": "true"})
LOGIN = {"app.kubernetes.io/name": "login"}
DASHBOARD_READER = Endpoint("the dashboard's login", "away", LOGIN, {"glassbox/reads-dashboard": "true"})
STRANGERS = [
    Endpoint("a pod of the namespace"),
    Endpoint("a pod elsewhere", "default", CLIENT_LABELS | OPERATOR[1]),
    Endpoint("another pod in the operator's namespace", OPERATOR[0]),
    Endpoint("another pod in Prometheus' namespace", PROMETHEUS[0]),
    Endpoint("another pod next to the login", "away", {}, {"glassbox/reads-dashboard": "true"}),
    Endpoint("a login in another namespace", "elsewhere", LOGIN),
    *EXTERNAL,
]


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the policy or the field that causes it."""
    policies = [document for document in documents if document.get("kind") == "NetworkPolicy"]
    if not policies and not list_pods(documents):  # the queues of an administrator
        return
    malformed = [problem for policy in policies for problem in _check_policy(policy, documents)]
    if malformed:
        yield from malformed
        return
    if not any(_denies_all(policy) for policy in policies):
        yield "NetworkPolicy: spec.podSelector, policyTypes: no policy denies everything by default"
    endpoints = [
        Endpoint(
            f"{pod.owner} {pod.role}",
            labels=pod.labels,
            role=pod.role,
            uses_store=uses_store(pod, documents),
            sends_logs=find_sidecar(pod) is not None,
            identity=find_identity(pod, documents),
        )
        for pod in list_pods(documents)
    ]
    optional = _list_optional_sources(documents)
    blocks = _list_store_blocks(policies)
    yield from _check_store_blocks(blocks)
    stores = _list_stores(blocks)
    for expectation in _list_expectations(endpoints, optional, stores):
        yield from _check_expectation(policies, expectation)


def _list_store_blocks(policies: list[Document]) -> list[str]:
    """Returns the addresses that the policy of the store allows; none where other means restrict it."""
    rules = [
        rule
        for policy in policies
        if name_of(policy).endswith("store")
        for rule in policy["spec"].get("egress") or []
    ]
    peers = [peer for rule in rules for peer in rule.get("to") or []]
    return [peer["ipBlock"].get("cidr", EVERYWHERE) for peer in peers if "ipBlock" in peer]


def _check_store_blocks(blocks: list[str]) -> Iterator[str]:
    where = "NetworkPolicy/store: spec.egress.to.ipBlock.cidr"
    for text in blocks:
        network = ipaddress.ip_network(text)
        if network in PLACEHOLDERS:
            yield f"{where}: {text} is a placeholder; set the addresses of your store"
        elif text != EVERYWHERE and network.prefixlen < SMALLEST_PREFIX:
            yield f"{where}: {text} is more than a store; use /{SMALLEST_PREFIX} or smaller"


def _list_stores(blocks: list[str]) -> list[Endpoint]:
    """Returns an address of each range of the store, or one that stands for all public addresses."""
    if EVERYWHERE in blocks:
        return [OBJECT_STORE]
    networks = [ipaddress.ip_network(text) for text in blocks]
    return [Endpoint(f"the store at {network}", None, address=str(network[0])) for network in networks]


def _list_optional_sources(documents: list[Document]) -> list[Endpoint]:
    """Returns the endpoints that components admit to Ray's pods: they are denied without them."""
    sources = []
    if any(document.get("kind") == "PodMonitor" for document in documents):
        sources.append(MONITORING)
    policies = (name_of(document) for document in documents if document.get("kind") == "NetworkPolicy")
    if any(name.endswith(DASHBOARD_POLICY) for name in policies):
        sources.append(DASHBOARD_READER)
    return sources


def _check_expectation(policies: list[Document], expectation: Expectation) -> Iterator[str]:
    source, target, port, is_expected = expectation
    egress = _passes(policies, source, target, port, "Egress")
    ingress = _passes(policies, target, source, port, "Ingress")
    if is_expected:
        if not (egress and ingress):
            where = "NetworkPolicy: spec.ingress, spec.egress"
            yield f"{where}: {source.name} does not reach {target.name} at port {port}"
        return
    # Each end in the namespace has to deny the connection by itself, whatever the other end does.
    for endpoint, passes, direction in ((source, egress, "egress"), (target, ingress, "ingress")):
        if endpoint.namespace == OWN_NAMESPACE and passes:
            where = f"NetworkPolicy: spec.{direction}"
            yield f"{where}: {source.name} reaches {target.name} at port {port}"


def is_allowed(policies: list[Document], source: Endpoint, target: Endpoint, port: Port) -> bool:
    """Returns whether the policies of both endpoints allow a connection."""
    egress = _passes(policies, source, target, port, "Egress")
    return egress and _passes(policies, target, source, port, "Ingress")


def _passes(policies: list[Document], own: Endpoint, other: Endpoint, port: Port, direction: str) -> bool:
    """Returns whether the policies that select `own` allow one direction; without any, everything passes."""
    if own.namespace != OWN_NAMESPACE:
        return True
    specs = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"].get("policyTypes", ["Ingress"])
        and _matches(policy["spec"].get("podSelector"), own.labels)
    ]
    if not specs:
        return True
    key = "to" if direction == "Egress" else "from"
    rules = [rule for spec in specs for rule in spec.get(direction.lower()) or []]
    return any(_rule_allows(rule, other, port, key) for rule in rules)


def _rule_allows(rule: Document, other: Endpoint, port: Port, key: str) -> bool:
    """A rule without peers or ports applies to all of them."""
    peers = rule.get(key) or []
    ports = rule.get("ports") or []
    if peers and not any(_peer_matches(peer, other) for peer in peers):
        return False
    protocol, number = port if isinstance(port, tuple) else ("TCP", port)
    return not ports or any(
        entry.get("protocol", "TCP") == protocol and entry.get("port") in (number, None) for entry in ports
    )


def _peer_matches(peer: Document, other: Endpoint) -> bool:
    if block := peer.get("ipBlock"):
        return bool(other.address) and _block_contains(block, other.address)
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        labels = other.namespace_labels | {"kubernetes.io/metadata.name": other.namespace}
        is_in_namespace = _matches(peer["namespaceSelector"], labels)
    else:
        is_in_namespace = other.namespace == OWN_NAMESPACE
    return is_in_namespace and _matches(peer.get("podSelector"), other.labels)


def _block_contains(block: Document, text: str) -> bool:
    address = ipaddress.ip_address(text)
    if address not in ipaddress.ip_network(block["cidr"]):
        return False
    return not any(address in ipaddress.ip_network(excluded) for excluded in block.get("except") or [])


def _matches(selector: Document | None, labels: dict[str, str]) -> bool:
    return ((selector or {}).get("matchLabels") or {}).items() <= labels.items()


def _denies_all(policy: Document) -> bool:
    spec = policy["spec"]
    has_rules = spec.get("ingress") or spec.get("egress")
    covers_both = set(spec.get("policyTypes") or ()) == {"Ingress", "Egress"}
    return covers_both and not has_rules and not spec.get("podSelector")


def _check_policy(policy: Document, documents: list[Document]) -> Iterator[str]:
    """Finds policies that a network plugin reads differently from what their author meant."""
    where = name_of(policy)
    spec = policy["spec"]
    labels = get_field(policy, "spec.podSelector.matchLabels")
    is_for_users = labels == CLIENT_LABELS
    selects_pods = any(labels.items() <= pod.labels.items() for pod in list_pods(documents))
    if labels and not is_for_users and not selects_pods:
        yield f"{where}: spec.podSelector: no pod has these labels: {labels}"
    if "matchExpressions" in str(spec):
        yield f"{where}: spec.podSelector.matchExpressions: not supported by the lint; use matchLabels"
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        rules = spec.get(direction) or []
        policy_types = spec.get("policyTypes") or []
        if rules and direction.title() not in policy_types:
            yield f"{where}: spec.{direction}: has no effect, since policyTypes is {spec.get('policyTypes')}"
        for rule in rules:
            for entry in rule.get("ports") or []:
                if type(entry.get("port")) is not int or "endPort" in entry:
                    yield f"{where}: spec.{direction}.ports: must be one number, is {entry}"
            for peer in rule.get(peers) or []:
                for problem in _check_block(peer.get("ipBlock") or {}):
                    yield f"{where}: spec.{direction}.{peers}.ipBlock.{problem}"


def _check_block(block: Document) -> Iterator[str]:
    try:
        network = ipaddress.ip_network(block.get("cidr", "0.0.0.0/0"))
        excluded = [ipaddress.ip_network(text) for text in block.get("except") or []]
    except ValueError as error:
        yield f"cidr: {error}"
        return
    for part in excluded:
        if part.version != network.version or not part.subnet_of(network):  # type: ignore[arg-type]
            yield f"except: {part} is not within {network}"


def _expect(
    sources: Iterable[Endpoint], targets: Iterable[Endpoint], ports: Iterable[Port], is_allowed: bool
) -> Iterator[Expectation]:
    for source, target, port in product(sources, targets, ports):
        yield Expectation(source, target, port, is_allowed)


def _list_expectations(
    endpoints: list[Endpoint], optional: list[Endpoint], stores: list[Endpoint]
) -> Iterator[Expectation]:
    ray_nodes = [endpoint for endpoint in endpoints if endpoint.role in ("head", "worker")]
    other_pods = [endpoint for endpoint in endpoints if endpoint.role not in ("head", "worker")]
    web_servers = [endpoint for endpoint in endpoints if endpoint.role == "deployment"]
    private_pods = [endpoint for endpoint in other_pods if endpoint not in web_servers]
    for node in ray_nodes:
        yield from _list_ray_expectations(node, ray_nodes, other_pods, optional)
    yield from _expect([REPORT_READER], web_servers, [WEB], True)
    yield from _expect([REPORT_READER], web_servers, [HTTPS], False)
    yield from _expect(
        [*STRANGERS, *ray_nodes, CLIENT, KUBERAY, MONITORING, DASHBOARD_READER], web_servers, [WEB], False
    )
    for endpoint in [*endpoints, CLIENT]:
        yield from _list_egress_expectations(endpoint, stores)
    yield from _expect([*STRANGERS, REPORT_READER], private_pods, [WEB, HTTPS], False)


def _list_ray_expectations(
    node: Endpoint, ray_nodes: list[Endpoint], other_pods: list[Endpoint], optional: list[Endpoint]
) -> Iterator[Expectation]:
    submitters = [endpoint for endpoint in other_pods if endpoint.role == "submitter"]
    clients = [CLIENT, KUBERAY, *submitters]
    yield from _expect(ray_nodes, [node], [GCS, JOB_API, WORKER_PORT], True)
    yield from _expect(clients, [node], [JOB_API], node.role == "head")
    yield from _expect(clients, [node], [GCS, WORKER_PORT, *RAY_METRICS], False)
    yield from _expect([MONITORING], [node], RAY_METRICS, MONITORING in optional)
    yield from _expect([MONITORING], [node], [GCS, JOB_API, WORKER_PORT], False)
    is_admitted = DASHBOARD_READER in optional and node.role == "head"
    yield from _expect([DASHBOARD_READER], [node], [JOB_API], is_admitted)
    yield from _expect([DASHBOARD_READER], [node], [GCS, WORKER_PORT, *RAY_METRICS], False)
    outsiders = [*STRANGERS, *(pod for pod in other_pods if pod not in submitters), REPORT_READER]
    yield from _expect(outsiders, [node], [GCS, JOB_API, WORKER_PORT, *RAY_METRICS], False)


def _list_egress_expectations(endpoint: Endpoint, stores: list[Endpoint]) -> Iterator[Expectation]:
    sources = [endpoint]
    yield from _expect(sources, [NAME_SERVICE], DNS, True)
    yield from _expect(sources, [OTHER_SYSTEM_POD, OBJECT_STORE, *EXTERNAL], DNS, False)
    yield from _expect(sources, [NAME_SERVICE, OTHER_SYSTEM_POD], [HTTPS, JOB_API], False)
    yield from _expect(sources, [LOG_STORE], [LOG_STORE_PORT], endpoint.sends_logs)
    yield from _expect(sources, [LOG_STORE], [HTTPS], False)
    yield from _expect(sources, [OTHER_MONITORING_POD], [LOG_STORE_PORT], False)
    allowed = IDENTITY_ENDPOINTS.get(endpoint.identity, set()) if endpoint.uses_store else set()
    for target, port in product(EXTERNAL, (HTTP, HTTPS, JOB_API, GKE_METADATA)):
        yield Expectation(endpoint, target, port, (target.address, port) in allowed)
    yield from _expect(sources, [OBJECT_STORE, *stores], [HTTP], False)
    yield from _expect(sources, stores, [HTTPS], endpoint.uses_store)
    if OBJECT_STORE not in stores:
        yield from _expect(sources, [OBJECT_STORE, OTHER_PUBLIC], [HTTPS], False)
