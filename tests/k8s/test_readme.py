"""What k8s/README.md says to write and to type is true of the manifests."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from image_run import TRAINING
from kube_lint import lint
from kube_pods import name_of, pods
from kube_render import COMPONENTS, K8S, Document, composed, kustomize, load
from lint_commands import refused
from lint_references import SECRETS

TEXT = (K8S / "README.md").read_text()
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The largest set there is."""
    return composed(tmp_path_factory.mktemp("k"), "gpu", COMPONENTS)


def test_the_overlay_it_shows_renders(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "my-cluster").mkdir()
    kustomization, photos = YAML
    (tmp_path / "my-cluster/kustomization.yaml").write_text(kustomization + photos)
    documents = kustomize(tmp_path / "my-cluster")
    assert lint(documents) == [  # its claim is the reader's
        "Job/shards: spec.template.spec.volumes[photos].persistentVolumeClaim.claimName: there is no PersistentVolumeClaim photos"
    ]
    claims = [document["spec"] for document in documents if document["kind"] == "PersistentVolumeClaim"]
    assert [claim["storageClassName"] for claim in claims] == ["shared", "shared"]


def test_commands_name_what_is_there(everything: list[Document]) -> None:
    present = {name_of(document).lower() for document in everything} | {
        "service/glassbox-head-svc"
    }  # which the operator makes
    named = set(re.findall(r"\b(?:cronjob|service|job|raycluster)/[\w-]+", " ".join(COMMANDS)))
    assert named
    assert named <= present
    for namespace in re.findall(r"--namespace (\S+)", TEXT):
        assert namespace.rstrip("`.,:)") == "glassbox"
    for label, value in re.findall(r"--selector ([\w./-]+)=(\w+)", TEXT):
        assert any(pod.labels.get(label) == value for pod in pods(everything))


def test_trainings_parse() -> None:
    entries = [line.partition(" -- glassbox ")[2] for line in COMMANDS if line.startswith("ray job submit")]
    assert entries
    assert [refused(tuple(entry.split())) for entry in entries] == [None] * len(entries)


def test_the_training_it_shows_is_the_one_that_make_image_test_submits() -> None:
    assert f"ray job submit -- {' '.join(TRAINING)}" in COMMANDS


def test_every_secret_has_its_command() -> None:
    for name, keys in SECRETS.items():
        (command,) = re.findall(rf"kubectl create secret generic {name} [^`\n]*", TEXT)
        assert set(re.findall(r"--from-literal=(\w+)=", command)) == keys


def test_the_table_of_policies_is_whole(everything: list[Document]) -> None:
    """Every label, port and namespace of a policy stands in it."""
    table = TEXT.partition("## Who reaches whom")[2].partition("## Components")[0]
    policies = [document["spec"] for document in everything if document["kind"] == "NetworkPolicy"]
    ports = {
        str(port["port"])
        for spec in policies
        for way in ("ingress", "egress")
        for rule in spec.get(way) or []
        for port in rule.get("ports") or []
    }
    assert {port for port in ports if port not in table} == set()
    labels = {f"{key}={value}" for key, value in re.findall(r"'(glassbox/[\w-]+)': '(\w+)'", str(policies))}
    assert len(labels) == 3
    assert {label for label in labels if label not in table} == set()


def test_the_rayjob_example_is_named() -> None:
    (job,) = load((K8S / "examples/rayjob.yaml").read_text())
    assert job["kind"] == "RayJob"
    assert "kubectl apply -f k8s/examples/rayjob.yaml" in TEXT
