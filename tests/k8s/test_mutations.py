"""Broken manifests, each of which is noticed by a message that names the field."""

from __future__ import annotations

import pytest
from faults_cluster import CLUSTER
from faults_fields import FIELDS
from faults_pods import PODS
from kube_faults import change
from kube_lint import against_schemas, lint, problems
from kube_pods import name_of
from kube_render import COMPONENTS, K8S, Document, composed, load

SCHEMA = ("1.37",)
FAULTS = PODS | CLUSTER | FIELDS
ABSENT = {
    "PersistentVolumeClaim/shards": "persistentVolumeClaim.claimName",
    "PriorityClass/glassbox-training": "priorityClassName",
    "NetworkPolicy/default-deny": "spec.podSelector, policyTypes",
    "LocalQueue/glassbox": "queue-name",
    "ServiceAccount/web": "serviceAccountName",
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The largest set there is."""
    documents = composed(tmp_path_factory.mktemp("k"), "gpu", COMPONENTS) + load(
        (K8S / "examples/rayjob.yaml").read_text()
    )
    assert problems(documents, SCHEMA) == []
    return documents


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_manifest_is_noticed(fault: str, manifests: list[Document]) -> None:
    owner, path, value, field = FAULTS[fault]
    changed = change(manifests, owner, path, value)
    broken = [document for document in changed if document not in manifests]
    found = [*against_schemas(broken, SCHEMA), *lint(changed)]
    assert any(field in problem for problem in found), found


@pytest.mark.parametrize("owner", ABSENT)
def test_a_missing_document_is_noticed(owner: str, manifests: list[Document]) -> None:
    found = lint([document for document in manifests if name_of(document) != owner])
    assert any(ABSENT[owner] in problem for problem in found), found


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(Exception, match="stand twice: \\['cpu'\\]"):
        load("limits:\n  cpu: 1\n  memory: 1Gi\n  cpu: 2\n")


def test_a_secret_and_a_double_are_noticed(manifests: list[Document]) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "glassbox-ray-token", "namespace": "glassbox"},
    }
    (problem,) = lint([*manifests, secret])
    assert problem.startswith("Secret/glassbox-ray-token: kind: ")
    claim = next(document for document in manifests if name_of(document) == "PersistentVolumeClaim/runs")
    assert lint([*manifests, claim]) == [
        "PersistentVolumeClaim/runs: metadata.name: 2 documents of this kind and name"
    ]


def test_a_kind_nobody_knows_is_noticed(manifests: list[Document]) -> None:
    changed = change(manifests, "RayCluster/glassbox", "apiVersion", "ray.io/v1alpha1")
    assert any(
        "apiVersion: ray.io/v1alpha1 has no RayCluster" in problem
        for problem in against_schemas(changed, SCHEMA)
    )
