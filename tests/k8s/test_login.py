"""The examples of a login have no problem, and each planted fault is reported."""

from __future__ import annotations

from itertools import product

import pytest
from kube_faults import REMOVED, C, Fault, apply_fault, with_entries, with_item
from kube_lint import KUBERNETES_VERSIONS, validate_schemas
from kube_pods import name_of
from kube_render import K8S, Document, run_kustomize
from lint_login import APPLICATIONS, check

pytestmark = pytest.mark.heavy  # the lint reads the options of `ray start` from Ray
PROXY = "Deployment/login"
POD = "spec.template.spec"
INGRESS = "Ingress/login"
POLICY = "NetworkPolicy/login"
ARGS = f"{POD}.{C}.args"


def replace_option(name: str, value: str) -> object:
    """Returns a function that changes one option of the proxy."""
    return lambda old: [f"--{name}={value}" if word.startswith(f"--{name}=") else word for word in old]


FAULTS: dict[str, Fault] = {
    "no TLS": (INGRESS, "spec.tls", REMOVED, "spec.tls: reports.example.org"),
    "TLS of another host": (INGRESS, "spec.tls.0.hosts", ["a.example.org"], "spec.tls: reports.example.org"),
    "a way around the login": (
        INGRESS,
        "spec.rules.0.http.paths.0.backend.service.name",
        "reports",
        "reports is reached without a login",
    ),
    "every account": (PROXY, ARGS, replace_option("email-domain", "*"), "--email-domain"),
    "an insecure cookie": (PROXY, ARGS, replace_option("cookie-secure", "false"), "--cookie-secure"),
    "an issuer without TLS": (
        PROXY,
        ARGS,
        replace_option("oidc-issuer-url", "http://a.org"),
        "--oidc-issuer",
    ),
    "another upstream": (
        PROXY,
        ARGS,
        replace_option("upstream", "http://glassbox-head-svc:8265"),
        "--upstream",
    ),
    "pages without a login": (PROXY, ARGS, with_item("--skip-auth-route=.*"), "--skip-auth-route"),
    "a secret in plain text": (
        PROXY,
        f"{POD}.{C}.env.1",
        {"name": "OAUTH2_PROXY_CLIENT_SECRET", "value": "abc"},
        "a secret in plain text",
    ),
    "an undocumented secret": (
        PROXY,
        f"{POD}.{C}.env.0.valueFrom.secretKeyRef.name",
        "oauth",
        "no documented command creates a Secret oauth",
    ),
    "an image without a version": (PROXY, f"{POD}.{C}.image", "oauth2-proxy:latest", "image: must match"),
    "an image of any patch": (PROXY, f"{POD}.{C}.image", "oauth2-proxy:v7.12", "image: must match"),
    "another image": (PROXY, f"{POD}.{C}.image", "nginx:v1.2.3", "image: must match"),
    "root": (PROXY, f"{POD}.securityContext.runAsUser", 0, "securityContext.runAsUser"),
    "a writable root": (
        PROXY,
        f"{POD}.{C}.securityContext.readOnlyRootFilesystem",
        False,
        "readOnlyRootFilesystem",
    ),
    "a namespace that may not read": (
        "Namespace/glassbox-login",
        "metadata.labels.glassbox/reads-reports",
        REMOVED,
        "glassbox/reads-reports: must be true",
    ),
    "entry for every pod": (POLICY, "spec.ingress.0.from", REMOVED, "a pod elsewhere, 4180 must be denied"),
    "all of the cluster's pods": (
        POLICY,
        "spec.egress.1.to.0.podSelector",
        REMOVED,
        "the head, 8080 must be denied",
    ),
    "no names": (POLICY, "spec.egress", lambda old: old[1:], "the name service, 53 must pass"),
    "no reports": (POLICY, "spec.egress.1.ports.0.port", 80, "the reports, 8080 must pass"),
    "the metadata service": (
        POLICY,
        "spec.egress.2.to.0.ipBlock.except",
        lambda old: old[:-1],
        "the address 169.254.169.254, 443 must be denied",
    ),
    "open by default": (
        "NetworkPolicy/default-deny",
        "spec.policyTypes",
        ["Ingress"],
        "another pod of the namespace, an object store, 443 must be denied",
    ),
    "a service without pods": ("Service/login", "spec.selector", {"a": "b"}, "no pod has these labels"),
    "an annotation that runs code": (
        INGRESS,
        "metadata",
        with_entries(annotations={"nginx.ingress.kubernetes.io/configuration-snippet": "x"}),
        "annotations: field not allowed",
    ),
}


DASHBOARD_FAULTS: dict[str, Fault] = {
    "the provider's token in place of Ray's": (
        PROXY,
        ARGS,
        with_item("--pass-authorization-header=true"),
        "--pass-authorization-header is not known",
    ),
    "Ray's token for everyone": (
        PROXY,
        ARGS,
        with_item("--alpha-config=/etc/a.yaml"),
        "--alpha-config is not known",
    ),
    "the reports on the same host": (
        PROXY,
        ARGS,
        replace_option("upstream", APPLICATIONS["login"].upstream),
        "--upstream must match",
    ),
    "a namespace that reads both": (
        "Namespace/glassbox-dashboard",
        "metadata.labels",
        with_entries(**{"glassbox/reads-reports": "true"}),
        "glassbox/reads-dashboard: must be true, and no other",
    ),
    "workers": (
        POLICY,
        "spec.egress.1.to.0.podSelector.matchLabels.ray~io/node-type",
        REMOVED,
        "a worker, 8265 must be denied",
    ),
    "all ports of the head": (POLICY, "spec.egress.1.ports", REMOVED, "the head, 6379 must be denied"),
    "the port of the Service of the reports": (
        POLICY,
        "spec.egress.1.ports.0.port",
        8080,
        "the head, 8265 must pass",
    ),
    "a dashboard without TLS": (INGRESS, "spec.tls", REMOVED, "spec.tls: dashboard.example.org"),
}


@pytest.fixture(scope="module", params=APPLICATIONS)
def example(request: pytest.FixtureRequest) -> str:
    return request.param


def test_example_has_no_problem(example: str) -> None:
    manifests = run_kustomize(K8S / "examples" / example)
    problems = [*check(manifests, APPLICATIONS[example]), *validate_schemas(manifests, KUBERNETES_VERSIONS)]
    assert problems == []
    assert INGRESS in map(name_of, manifests)


@pytest.mark.parametrize(
    ("example", "fault"),
    [*product(["login"], FAULTS), *product(["login-dashboard"], DASHBOARD_FAULTS)],
    indirect=["example"],
)
def test_fault_is_reported(example: str, fault: str) -> None:
    owner, path, value, message = (FAULTS | DASHBOARD_FAULTS)[fault]
    manifests = run_kustomize(K8S / "examples" / example)
    problems = list(check(apply_fault(manifests, owner, path, value), APPLICATIONS[example]))
    assert any(message in problem for problem in problems), problems


def test_both_logins_use_different_namespaces_and_hosts() -> None:
    """A page of a run must not share the origin of the dashboard, whose cookie may be able to run code."""
    rendered = [run_kustomize(K8S / "examples" / example) for example in APPLICATIONS]
    hosts = [
        document["spec"]["rules"][0]["host"]
        for documents in rendered
        for document in documents
        if document["kind"] == "Ingress"
    ]
    assert len(set(hosts)) == len(hosts) == 2
    assert not set(map(identify, rendered[0])) & set(map(identify, rendered[1]))


def identify(document: Document) -> tuple[str, str | None]:
    """Returns what tells an object from others in a cluster."""
    return name_of(document), document["metadata"].get("namespace")
