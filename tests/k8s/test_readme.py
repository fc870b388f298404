"""The YAML and the commands in k8s/README.md match the manifests."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import test_login
import test_store_egress
import yaml
from faults_buckets import BUCKETS
from faults_cluster import CLUSTER
from faults_fields import FIELDS
from faults_jobs import JOBS, QUEUES
from faults_logs import CONFIG, SIDECARS
from faults_pods import PODS
from image_run import TRAINING
from kube_lint import lint
from kube_pods import list_pods, name_of
from kube_render import COMPONENTS, K8S, Document, load_rayjob_example, render_overlay, run_kustomize
from lint_commands import find_argument_error
from lint_references import SECRETS

from service.cli import main

TEXT = (K8S / "README.md").read_text()
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def list_commands(text: str) -> list[str]:
    """Returns the commands of all shell blocks, with continued lines joined and comments removed."""
    commands = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition("  #")[0]
            commands.append(" ".join(command.split()))
    return commands


COMMANDS = list_commands(TEXT)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The overlay with the most documents, `gpu` with all components, and the overlay for buckets."""
    documents = render_overlay(tmp_path_factory.mktemp("k"), "gpu", COMPONENTS)
    return documents + run_kustomize(K8S / "overlays/buckets")


@pytest.mark.heavy  # the lint reads the options of `ray start` from Ray
def test_overlay_in_the_readme_renders(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "my-cluster").mkdir()
    kustomization, photos_patch, _ = YAML
    (tmp_path / "my-cluster/kustomization.yaml").write_text(kustomization + photos_patch)
    documents = run_kustomize(tmp_path / "my-cluster")
    assert lint(documents) == [  # the reader creates this claim
        "Job/shards: spec.template.spec.volumes[photos].persistentVolumeClaim.claimName: "
        "there is no PersistentVolumeClaim photos"
    ]
    claims = [document["spec"] for document in documents if document["kind"] == "PersistentVolumeClaim"]
    assert [claim["storageClassName"] for claim in claims] == ["shared"] * 3


@pytest.mark.heavy  # the lint reads the options of `ray start` from Ray
def test_overlay_for_a_bucket_in_the_readme_renders(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "my-cluster").mkdir()
    (tmp_path / "my-cluster/kustomization.yaml").write_text(YAML[2])
    documents = run_kustomize(tmp_path / "my-cluster")
    assert lint(documents) == []
    text = str(documents)
    assert "s3://my-team" in text
    assert text.count("role/my-team") == 2


def test_commands_name_existing_objects(manifests: list[Document]) -> None:
    existing = {name_of(document).lower() for document in manifests}
    existing.add("service/glassbox-head-svc")  # the operator creates it
    mentioned = set(re.findall(r"\b(?:cronjob|service|job|raycluster)/[\w-]+", " ".join(COMMANDS)))
    assert mentioned
    assert mentioned <= existing
    for namespace in re.findall(r"--namespace (\S+)", TEXT):
        assert namespace.rstrip("`.,:)") == "glassbox"
    for label, value in re.findall(r"--selector ([\w./-]+)=(\w+)", TEXT):
        is_set_by_controller = label == "job-name"
        assert is_set_by_controller or any(pod.labels.get(label) == value for pod in list_pods(manifests))


def test_training_commands_parse() -> None:
    entries = [line.partition(" -- glassbox ")[2] for line in COMMANDS if line.startswith("ray job submit")]
    assert entries
    assert [find_argument_error(tuple(shlex.split(entry))) for entry in entries] == [None] * len(entries)


def test_training_command_is_the_one_that_the_image_test_submits() -> None:
    assert f"ray job submit -- {' '.join(TRAINING)}" in COMMANDS


def test_every_secret_has_a_command() -> None:
    text = TEXT.replace("\\\n", " ")
    for name, keys in SECRETS.items():
        (command,) = re.findall(rf"kubectl create secret (?:generic|docker-registry) {name} [^`\n]*", text)
        is_registry = "docker-registry" in command
        created = (
            {".dockerconfigjson"} if is_registry else set(re.findall(r"--from-literal=([\w-]+)=", command))
        )
        assert created == keys


def test_table_of_connections_is_complete(manifests: list[Document]) -> None:
    """Every label, port and namespace of a network policy is in the table."""
    table = TEXT.partition("## Network access")[2].partition("## Components")[0]
    policies = [document["spec"] for document in manifests if document["kind"] == "NetworkPolicy"]
    ports = {
        str(port["port"])
        for spec in policies
        for direction in ("ingress", "egress")
        for rule in spec.get(direction) or []
        for port in rule.get("ports") or []
    }
    assert {port for port in ports if port not in table} == set()
    labels = {f"{key}={value}" for key, value in re.findall(r"'(glassbox/[\w-]+)': '(\w+)'", str(policies))}
    assert len(labels) == 4
    addresses = re.findall(r"169\.254\.\d+\.\d+(?=/32)", str(policies))
    assert {address for address in addresses if address not in table} == set()
    assert {label for label in labels if label not in table} == set()


def test_rayjob_example_is_mentioned() -> None:
    (job,) = load_rayjob_example()
    assert job["kind"] == "RayJob"
    assert "kubectl apply --namespace glassbox -f k8s/examples/rayjob.yaml" in TEXT


def test_submit_command_parses_and_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = (command for command in COMMANDS if command.startswith("glassbox submit"))
    words = shlex.split(command.partition(" | ")[0])[1:]
    manifests = tmp_path / "cluster.yaml"
    manifests.write_text(yaml.safe_dump_all(run_kustomize(K8S / "overlays/cpu-dev")))
    words[words.index("my-cluster")] = str(manifests)
    assert main(words) == 0
    (job,) = yaml.safe_load_all(capsys.readouterr().out)
    assert job["metadata"]["name"] == "first"
    assert job["spec"]["entrypoint"] == (
        "glassbox train --resume-if-exists --preset demo --data /shards/evidence --out /runs/first "
        "--workers 2 --cpus-per-worker 2 epochs=2"
    )


def test_delete_command_selects_everything_but_volumes_and_namespace(tmp_path: Path) -> None:
    (command,) = (command for command in COMMANDS if "kubectl delete" in command and "--selector" in command)
    selector = re.findall(r"--selector '(\S+)'", command)
    assert selector == ["app.kubernetes.io/part-of=glassbox,glassbox/keep!=true"]
    documents = render_overlay(tmp_path, "gpu", COMPONENTS) + load_rayjob_example()
    kept = set()
    for document in documents:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "glassbox"
        if labels.get("glassbox/keep") == "true":
            kept.add(document["kind"])
    assert kept == {"Namespace", "PersistentVolumeClaim"}


def test_table_of_planted_faults_is_right() -> None:
    rows = re.findall(r"^\| [^|]+ \| (\d+) \|$", TEXT.partition("## Tests")[2], re.MULTILINE)
    filters = 4  # cases of `test_fault_in_the_filter_is_noticed`
    egress = len(test_store_egress.FAULTS) + 5  # and those of its other tests
    assert [int(count) for count in rows] == [
        len(PODS),
        len(CLUSTER),
        len(FIELDS),
        len(JOBS) + len(QUEUES),
        len(BUCKETS),
        egress,
        len(SIDECARS) + len(CONFIG) + filters,
        len(test_login.FAULTS) + len(test_login.DASHBOARD_FAULTS),
    ]
