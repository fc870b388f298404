"""Mutation tests of the lint: every fault is reported by a message that names the field."""

from __future__ import annotations

import pytest
import yaml
from faults_buckets import BUCKETS
from faults_cluster import CLUSTER
from faults_fields import FIELDS
from faults_jobs import JOBS, QUEUES
from faults_pods import PODS
from kube_faults import apply_fault
from kube_lint import find_problems, lint, validate_schemas
from kube_pods import name_of
from kube_render import (
    COMPONENTS,
    K8S,
    Document,
    load_documents,
    load_rayjob_example,
    render_overlay,
    render_team,
    run_kustomize,
)
from lint_references import PART_OF

from service.kubernetes.rayjob import TrainingJob, render_rayjob

pytestmark = pytest.mark.heavy  # the lint reads the options of `ray start` from Ray

SCHEMA = ("1.37",)
FAULTS = PODS | CLUSTER | FIELDS
MISSING_DOCUMENTS = {
    "PersistentVolumeClaim/shards": "persistentVolumeClaim.claimName",
    "PriorityClass/glassbox-training": "priorityClassName",
    "NetworkPolicy/default-deny": "spec.podSelector, policyTypes",
    "LocalQueue/glassbox": "queue-name",
    "ServiceAccount/web": "serviceAccountName",
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The overlay with the most documents: `gpu` with all components and the RayJob example."""
    documents = render_overlay(tmp_path_factory.mktemp("k"), "gpu", COMPONENTS) + load_rayjob_example()
    assert find_problems(documents, SCHEMA) == []
    return documents


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported(fault: str, manifests: list[Document]) -> None:
    owner, path, value, message = FAULTS[fault]
    changed = apply_fault(manifests, owner, path, value)
    broken = [document for document in changed if document not in manifests]
    problems = lint(changed)
    if not any(message in problem for problem in problems):  # the lint is faster than the schemas
        problems += validate_schemas(broken, SCHEMA)
    assert any(message in problem for problem in problems), problems


@pytest.fixture(scope="module")
def bucket_manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The overlay without shared volumes, with its RayJob example."""
    documents = render_overlay(tmp_path_factory.mktemp("b"), "buckets", ()) + load_rayjob_example("buckets")
    assert find_problems(documents, SCHEMA) == []
    return documents


@pytest.mark.parametrize("fault", BUCKETS)
def test_fault_in_a_cluster_without_volumes_is_reported(fault: str, bucket_manifests: list[Document]) -> None:
    owner, path, value, message = BUCKETS[fault]
    problems = lint(apply_fault(bucket_manifests, owner, path, value))
    assert any(message in problem for problem in problems), problems


@pytest.fixture(scope="module")
def team_manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """A team with workers of 8 GPUs, and a training of theirs as a RayJob."""
    documents = render_team(tmp_path_factory.mktemp("t"), ["rdma", "spot", "pull-secret"])
    job = render_rayjob(documents, TrainingJob("segmentation", "demo", "/shards/evidence"))
    documents = load_documents(yaml.safe_dump_all([*documents, job]))  # equal values are separate objects
    assert find_problems(documents, SCHEMA) == []
    return documents


@pytest.mark.parametrize("fault", JOBS)
def test_fault_in_a_job_of_a_team_is_reported(fault: str, team_manifests: list[Document]) -> None:
    owner, path, value, message = JOBS[fault]
    problems = lint(apply_fault(team_manifests, owner, path, value))
    assert any(message in problem for problem in problems), problems


@pytest.fixture(scope="module")
def queues() -> list[Document]:
    """The queues that an administrator makes for two teams."""
    documents = run_kustomize(K8S / "examples/teams/queues")
    assert find_problems(documents, SCHEMA) == []
    return documents


@pytest.mark.parametrize("fault", QUEUES)
def test_fault_in_the_queues_of_two_teams_is_reported(fault: str, queues: list[Document]) -> None:
    owner, path, value, message = QUEUES[fault]
    problems = lint(apply_fault(queues, owner, path, value))
    assert any(message in problem for problem in problems), problems


def test_shared_volume_next_to_a_bucket_is_reported(
    manifests: list[Document], bucket_manifests: list[Document]
) -> None:
    claims = [document for document in manifests if document["kind"] == "PersistentVolumeClaim"]
    problems = lint([*bucket_manifests, claims[0]])
    assert any("a bucket replaces shared volumes" in problem for problem in problems), problems


@pytest.mark.parametrize("owner", MISSING_DOCUMENTS)
def test_missing_document_is_reported(owner: str, manifests: list[Document]) -> None:
    problems = lint([document for document in manifests if name_of(document) != owner])
    assert any(MISSING_DOCUMENTS[owner] in problem for problem in problems), problems


def test_duplicate_key_is_refused() -> None:
    with pytest.raises(Exception, match="duplicate keys: \\['cpu'\\]"):
        load_documents("limits:\n  cpu: 1\n  memory: 1Gi\n  cpu: 2\n")


def test_secret_and_duplicate_document_are_reported(manifests: list[Document]) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "glassbox-ray-token", "namespace": "glassbox", "labels": PART_OF},
    }
    (problem,) = lint([*manifests, secret])
    assert problem.startswith("Secret/glassbox-ray-token: kind: ")
    claim = next(document for document in manifests if name_of(document) == "PersistentVolumeClaim/runs")
    assert lint([*manifests, claim]) == [
        "PersistentVolumeClaim/runs: metadata.name: 2 documents of this kind and name"
    ]


def test_unknown_api_version_is_reported(manifests: list[Document]) -> None:
    changed = apply_fault(manifests, "RayCluster/glassbox", "apiVersion", "ray.io/v1alpha1")
    problems = validate_schemas(changed, SCHEMA)
    assert any("apiVersion: ray.io/v1alpha1 has no RayCluster" in problem for problem in problems)
