"""Every overlay, with and without the components, renders to manifests with which nothing is wrong."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from kube_lint import problems
from kube_pods import at, name_of, pods
from kube_render import COMPONENTS, K8S, OVERLAYS, ROOT, Document, composed, kustomize, load
from lint_network import End, allowed


@pytest.fixture(
    scope="module",
    params=[(o, c) for o in OVERLAYS for c in ((), COMPONENTS)],
    ids=lambda p: f"{p[0]}-{len(p[1])}-components",
)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    overlay, components = request.param
    return composed(tmp_path_factory.mktemp("k"), overlay, components) + load(
        (K8S / "examples/rayjob.yaml").read_text()
    )


def test_nothing_is_wrong(rendered: list[Document]) -> None:
    assert problems(rendered) == []


def test_pods_of_all_templates_are_looked_at(rendered: list[Document]) -> None:
    roles = [pod.role for pod in pods(rendered)]
    extra = ["job", "cronjob"] if "CronJob/runs-to-s3" in map(name_of, rendered) else []
    assert sorted(roles) == sorted(["head", "worker", "job", "cronjob", "deployment", "submitter", *extra])
    waiting = [place for pod in pods(rendered) for place, _ in pod.containers() if "initContainers" in place]
    assert waiting == [
        "RayCluster/glassbox: spec.workerGroupSpecs[0].template.spec.initContainers[wait-gcs-ready]"
    ]


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_stands_alone(component: str, tmp_path: Path) -> None:
    assert problems(composed(tmp_path, "cpu-dev", [component])) == []


def test_overlays_differ_where_they_should() -> None:
    small, large = ({name_of(d): d for d in kustomize(K8S / "overlays" / name)} for name in OVERLAYS)
    assert "PriorityClass/glassbox-training" not in small
    assert large["PriorityClass/glassbox-training"]["preemptionPolicy"] == "Never"
    for documents, gpus, accelerator in ((small, None, "cpu"), (large, "4", "gpu")):
        ray = [pod for pod in pods(list(documents.values())) if pod.role in ("head", "worker")]
        assert {pod.spec["containers"][0]["image"].rpartition("-")[2] for pod in ray} == {accelerator}
        assert [pod.spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in ray] == [
            None,
            gpus,
        ]
    worker = next(pod for pod in pods(list(large.values())) if pod.role == "worker").spec
    assert worker["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert worker["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert worker["priorityClassName"] == "glassbox-training"


def test_the_cron_job_renders_all_runs_read_only_where_it_can(rendered: list[Document]) -> None:
    job = next(document for document in rendered if name_of(document) == "CronJob/report")
    (container,) = at(job, "spec.jobTemplate.spec.template.spec.containers")
    assert container["command"] + container["args"] == ["glassbox", "report", "--all", "/runs"]
    assert [mount["name"] for mount in container["volumeMounts"] if mount.get("readOnly")] == ["shards"]


def test_the_shards_job_leaves_a_set_that_is_there_alone(rendered: list[Document], tmp_path: Path) -> None:
    (container,) = next(pod for pod in pods(rendered) if pod.owner == "Job/shards").spec["containers"]
    glassbox, out = tmp_path / "glassbox", tmp_path / "a set"
    glassbox.write_text('#!/bin/bash\nprintf "%s|" "$@"\nexit 3\n')
    glassbox.chmod(0o755)
    environment = {variable["name"]: variable["value"] for variable in container["env"]} | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}"
    }

    def run() -> tuple[int, str]:
        words = [*container["command"], *container["args"], "--store-size", "256"]
        done = subprocess.run(
            words, env=environment | {"OUT": str(out)}, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    assert run() == (3, f"shards|build|{environment['SOURCE']}|{out}|--store-size|256|")
    out.mkdir()
    (out / "manifest.json").touch()
    assert run() == (0, "")


def test_the_web_server_cannot_write(rendered: list[Document]) -> None:
    web = next(pod for pod in pods(rendered) if pod.role == "deployment").spec
    writable = {m["mountPath"] for c in web["containers"] for m in c["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/tmp"}
    assert [
        volume["persistentVolumeClaim"] for volume in web["volumes"] if "persistentVolumeClaim" in volume
    ] == [{"claimName": "runs", "readOnly": True}]


def test_the_dashboard_asks_for_gauges_that_training_sets() -> None:
    tree = ast.parse((ROOT / "service/training/telemetry.py").read_text())
    assignment = next(
        node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "GAUGES"
    )
    gauges = {f"ray_glassbox_{name}" for name in ast.literal_eval(assignment.value)}
    dashboard = json.loads((K8S / "components/monitoring/dashboard.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    assert set(re.findall(r"ray_glassbox_\w+", asked)) == gauges
    for panel in dashboard["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def policy(**spec: object) -> Document:
    return {"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": spec}


def test_policies_are_evaluated_as_kubernetes_does() -> None:
    web, other, away = (
        End("web", labels={"app": "web"}),
        End("other"),
        End("away", "elsewhere", {"app": "web"}),
    )
    assert allowed([], other, web, 80)  # without any policy everything passes
    closed = policy(podSelector={}, policyTypes=["Ingress"])
    assert not allowed([closed], other, web, 80)
    assert allowed([closed], web, away, 80)  # goes out, and comes in where no policy is
    opened = policy(
        podSelector={"matchLabels": {"app": "web"}},
        policyTypes=["Ingress"],
        ingress=[{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}],
    )
    assert allowed([closed, opened], other, web, 80)
    assert not allowed([closed, opened], other, web, 81)
    assert not allowed([closed, opened], away, web, 80)  # a pod selector alone means this namespace
    assert not allowed([closed, opened], web, other, 80)
    anyone = policy(podSelector={}, policyTypes=["Ingress"], ingress=[{}])
    assert allowed([closed, anyone], away, web, 80)  # policies add up
    address = End("address", None, address="10.1.2.3")
    block = {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}
    out = policy(podSelector={}, policyTypes=["Egress"], egress=[{"to": [{"ipBlock": block}]}])
    assert not allowed([out], other, address, 443)
    assert allowed([out], other, End("address", None, address="11.1.2.3"), 443)


def test_one_line_takes_the_images_from_a_registry(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    composed(tmp_path / "all", "gpu", COMPONENTS)
    name = "registry.example:5000/team/glassbox"
    lines = {"resources": ["all"], "images": [{"name": "glassbox", "newName": name}]}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(lines))
    documents = kustomize(tmp_path)
    assert {
        container["image"].rpartition(":")[0] for pod in pods(documents) for _, container in pod.containers()
    } == {name}
    assert problems(documents) == []
