"""Checks the examples of a login: nothing is reached without one, and the network is closed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import lint_fields
import lint_references
import lint_resources
import lint_security
import lint_versions
from kube_pods import get_field, list_pods, name_of
from kube_render import Document
from lint_network import (
    DNS,
    EXTERNAL,
    GCS,
    HTTPS,
    JOB_API,
    METRICS,
    NAME_SERVICE,
    OBJECT_STORE,
    OWN_NAMESPACE,
    Endpoint,
    _passes,
)

PORT = 4180
# Every option of the proxy, with what its value must be
OPTIONS = {
    "http-address": re.compile(rf"0\.0\.0\.0:{PORT}"),
    "reverse-proxy": re.compile("true"),
    "provider": re.compile("oidc"),
    "oidc-issuer-url": re.compile(r"https://[\w./-]+"),
    "email-domain": re.compile(r"[\w-]+(\.[\w-]+)+"),  # `*` would admit every account of the provider
    "cookie-secure": re.compile("true"),
}
KEYS = {"CLIENT_ID": "client-id", "CLIENT_SECRET": "client-secret", "COOKIE_SECRET": "cookie-secret"}
CONTROLLER = Endpoint("the ingress controller", "ingress-nginx")
REPORTS = Endpoint("the reports", "glassbox", {"app.kubernetes.io/name": "reports"})
HEAD = Endpoint("the head", "glassbox", {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"})
WORKER = Endpoint("a worker", "glassbox", {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"})
STRANGER = Endpoint("a pod elsewhere", "default")


@dataclass(frozen=True)
class Application:
    """What is behind a login.

    Attributes:
        upstream: Address that the proxy passes requests to.
        label: Label of namespaces that the policies of the cluster admit to it.
        pods: The pods that serve it.
        port: Port of these pods.
    """

    upstream: str
    label: str
    pods: Endpoint
    port: int


APPLICATIONS = {
    "login": Application(
        "http://reports.glassbox.svc.cluster.local/", "glassbox/reads-reports", REPORTS, 8080
    ),
    "login-dashboard": Application(
        "http://glassbox-head-svc.glassbox.svc.cluster.local:8265/", "glassbox/reads-dashboard", HEAD, JOB_API
    ),
}


def check(documents: list[Document], application: Application) -> Iterator[str]:
    """Yields problems, each with the field that causes it.

    Args:
        documents: Manifests of a login.
        application: What the login protects.
    """
    field_problems = list(lint_fields.check(documents))
    yield from field_problems
    if field_problems:
        return
    checks = (lint_security.check, lint_resources.check, lint_references.check, lint_versions.check_images)
    for check_all in checks:
        yield from check_all(documents)
    for document in documents:
        if document["kind"] == "Ingress":
            yield from _check_ingress(document)
        labels = get_field(document, "metadata.labels")
        admitted = {
            key for key, value in labels.items() if key.startswith("glassbox/reads-") and value == "true"
        }
        if document["kind"] == "Namespace" and admitted != {application.label}:
            yield f"{name_of(document)}: metadata.labels.{application.label}: must be true, and no other"
    for pod in list_pods(documents):
        for where, container in pod.containers():
            yield from _check_options(where, container, application)
    yield from _check_network(documents, application)


def _check_ingress(document: Document) -> Iterator[str]:
    where = f"{name_of(document)}: spec"
    encrypted = {host for entry in document["spec"].get("tls") or [] for host in entry["hosts"]}
    for rule in document["spec"]["rules"]:
        if rule.get("host") not in encrypted:
            yield f"{where}.tls: {rule.get('host')} is not encrypted"
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]["name"]
            if service != "login":
                yield f"{where}.rules: {service} is reached without a login"


def _check_options(where: str, container: Document, application: Application) -> Iterator[str]:
    options = OPTIONS | {"upstream": re.compile(re.escape(application.upstream))}
    found = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    for name in sorted(found.keys() | options.keys()):
        if name not in options:
            yield f"{where}.args: --{name} is not known to the lint"
        elif not options[name].fullmatch(found.get(name, "")):
            yield f"{where}.args: --{name} must match {options[name].pattern}, is {found.get(name)}"
    variables = {entry["name"]: entry for entry in container.get("env") or []}
    for name, key in KEYS.items():
        reference = get_field(variables.get(f"OAUTH2_PROXY_{name}", {}), "valueFrom.secretKeyRef")
        if reference != {"name": "login", "key": key}:
            yield f"{where}.env[OAUTH2_PROXY_{name}]: must be {key} of the Secret login"


def _check_network(documents: list[Document], application: Application) -> Iterator[str]:
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    (proxy_pod,) = list_pods(documents)
    proxy = Endpoint(
        "the proxy", OWN_NAMESPACE, proxy_pod.labels
    )  # the namespace that policies are evaluated in
    other = Endpoint("another pod of the namespace", OWN_NAMESPACE)
    targets = product((REPORTS, HEAD, WORKER), (METRICS, JOB_API, GCS))
    others = [
        (target, port) for target, port in targets if (target, port) != (application.pods, application.port)
    ]
    expected = [
        ("Ingress", proxy, CONTROLLER, PORT, True),
        *(("Ingress", proxy, source, PORT, False) for source in (STRANGER, HEAD, *EXTERNAL)),
        ("Ingress", proxy, CONTROLLER, 22, False),
        *(("Egress", proxy, NAME_SERVICE, port, True) for port in DNS),
        ("Egress", proxy, application.pods, application.port, True),
        ("Egress", proxy, OBJECT_STORE, HTTPS, True),  # stands for the identity provider
        *(("Egress", proxy, target, HTTPS, False) for target in EXTERNAL),
        *(("Egress", proxy, target, port, False) for target, port in others),
        ("Egress", other, OBJECT_STORE, HTTPS, False),
        ("Ingress", other, CONTROLLER, PORT, False),
    ]
    for direction, pod, target, port, is_expected in expected:
        if _passes(policies, pod, target, port, direction) != is_expected:
            verb = "must pass" if is_expected else "must be denied"
            yield f"NetworkPolicy: spec.{direction.lower()}: {pod.name}, {target.name}, {port} {verb}"
