"""Checks the example of a login: nobody reaches the reports without one, and the network is closed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import lint_fields
import lint_references
import lint_resources
import lint_security
from kube_pods import get_field, list_pods, name_of
from kube_render import Document
from lint_network import DNS, EXTERNAL, HTTPS, NAME_SERVICE, OBJECT_STORE, OWN_NAMESPACE, Endpoint, _passes

PORT = 4180
# Every option of the proxy, with what its value must be
OPTIONS = {
    "http-address": re.compile(rf"0\.0\.0\.0:{PORT}"),
    "reverse-proxy": re.compile("true"),
    "provider": re.compile("oidc"),
    "oidc-issuer-url": re.compile(r"https://[\w./-]+"),
    "email-domain": re.compile(r"[\w-]+(\.[\w-]+)+"),  # `*` would admit every account of the provider
    "cookie-secure": re.compile("true"),
    "upstream": re.compile(r"http://reports\.glassbox\.svc\.cluster\.local/"),
}
KEYS = {"CLIENT_ID": "client-id", "CLIENT_SECRET": "client-secret", "COOKIE_SECRET": "cookie-secret"}
CONTROLLER = Endpoint("the ingress controller", "ingress-nginx")
REPORTS = Endpoint("the reports", "glassbox", {"app.kubernetes.io/name": "reports"})
HEAD = Endpoint("the head", "glassbox", {"ray.io/node-type": "head"})
STRANGER = Endpoint("a pod elsewhere", "default")


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    field_problems = list(lint_fields.check(documents))
    yield from field_problems
    if field_problems:
        return
    for check_all in (lint_security.check, lint_resources.check, lint_references.check):
        yield from check_all(documents)
    for document in documents:
        if document["kind"] == "Ingress":
            yield from _check_ingress(document)
        may_read = get_field(document, "metadata.labels").get("glassbox/reads-reports") == "true"
        if document["kind"] == "Namespace" and not may_read:
            yield f"{name_of(document)}: metadata.labels.glassbox/reads-reports: must be true"
    for pod in list_pods(documents):
        for where, container in pod.containers():
            yield from _check_options(where, container)
    yield from _check_network(documents)


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


def _check_options(where: str, container: Document) -> Iterator[str]:
    found = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    for name in sorted(found.keys() | OPTIONS.keys()):
        if name not in OPTIONS:
            yield f"{where}.args: --{name} is not known to the lint"
        elif not OPTIONS[name].fullmatch(found.get(name, "")):
            yield f"{where}.args: --{name} must match {OPTIONS[name].pattern}, is {found.get(name)}"
    variables = {entry["name"]: entry for entry in container.get("env") or []}
    for name, key in KEYS.items():
        reference = get_field(variables.get(f"OAUTH2_PROXY_{name}", {}), "valueFrom.secretKeyRef")
        if reference != {"name": "login", "key": key}:
            yield f"{where}.env[OAUTH2_PROXY_{name}]: must be {key} of the Secret login"


def _check_network(documents: list[Document]) -> Iterator[str]:
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    (pod,) = list_pods(documents)
    proxy = Endpoint("the proxy", OWN_NAMESPACE, pod.labels)  # the namespace that policies are evaluated in
    other = Endpoint("another pod of the namespace", OWN_NAMESPACE)
    expected = [
        ("Ingress", proxy, CONTROLLER, PORT, True),
        *(("Ingress", proxy, source, PORT, False) for source in (STRANGER, HEAD, *EXTERNAL)),
        ("Ingress", proxy, CONTROLLER, 22, False),
        *(("Egress", proxy, NAME_SERVICE, port, True) for port in DNS),
        ("Egress", proxy, REPORTS, 8080, True),
        ("Egress", proxy, OBJECT_STORE, HTTPS, True),  # stands for the identity provider
        *(("Egress", proxy, target, HTTPS, False) for target in EXTERNAL),
        *(("Egress", proxy, HEAD, port, False) for port in (8080, 8265)),
        ("Egress", other, OBJECT_STORE, HTTPS, False),
        ("Ingress", other, CONTROLLER, PORT, False),
    ]
    for direction, own, target, port, is_expected in expected:
        if _passes(policies, own, target, port, direction) != is_expected:
            verb = "must pass" if is_expected else "must be denied"
            yield f"NetworkPolicy: spec.{direction.lower()}: {own.name}, {target.name}, {port} {verb}"
