"""The example of a login has no problem, and each planted fault is reported."""

from __future__ import annotations

import pytest
from kube_faults import REMOVED, C, Fault, apply_fault, with_entries, with_item
from kube_lint import KUBERNETES_VERSIONS, validate_schemas
from kube_pods import name_of
from kube_render import K8S, Document, run_kustomize
from lint_login import check

pytestmark = pytest.mark.heavy  # the lint reads the options of `ray start` from Ray
PROXY = "Deployment/login"
POD = "spec.template.spec"
INGRESS = "Ingress/reports"
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
        "reads-reports: must be true",
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


@pytest.fixture(scope="module")
def manifests() -> list[Document]:
    return run_kustomize(K8S / "examples/login")


def test_example_has_no_problem(manifests: list[Document]) -> None:
    assert [*check(manifests), *validate_schemas(manifests, KUBERNETES_VERSIONS)] == []
    assert INGRESS in map(name_of, manifests)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported(fault: str, manifests: list[Document]) -> None:
    owner, path, value, message = FAULTS[fault]
    problems = list(check(apply_fault(manifests, owner, path, value)))
    assert any(message in problem for problem in problems), problems
