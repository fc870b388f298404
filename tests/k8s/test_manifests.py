"""Every overlay, with and without components, renders to manifests in which the lint finds no problem."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import lint_references
import pytest
from kube_lint import find_problems
from kube_pods import get_field, list_pods, name_of
from kube_render import (
    COMPONENTS,
    GPU_COMPONENTS,
    IDENTITIES,
    K8S,
    OVERLAYS,
    VOLUME_OVERLAYS,
    Document,
    load_rayjob_example,
    render_overlay,
    run_kustomize,
)
from lint_monitoring import list_gauges
from lint_network import Endpoint, is_allowed

from service.kubernetes.rayjob import TrainingJob, render_rayjob

pytestmark = pytest.mark.heavy  # the lint reads the options of `ray start` from Ray


@pytest.fixture(
    scope="module",
    params=[(overlay, components) for overlay in OVERLAYS for components in ((), COMPONENTS)],
    ids=lambda parameters: f"{parameters[0]}-{len(parameters[1])}-components",
)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    overlay, components = request.param
    documents = render_overlay(tmp_path_factory.mktemp("k"), overlay, components)
    return documents + load_rayjob_example(overlay)


def has_store(documents: list[Document]) -> bool:
    return "ConfigMap/store" in map(name_of, documents)


def test_lint_finds_no_problem(rendered: list[Document]) -> None:
    assert find_problems(rendered) == []


def test_pods_of_all_templates_are_rendered(rendered: list[Document]) -> None:
    pods = list_pods(rendered)
    roles = ["cronjob", "head", "job", "submitter", "worker"]
    if not has_store(rendered):
        roles.append("deployment")
    assert sorted(pod.role for pod in pods) == sorted(roles)
    init_containers = [
        (pod.role, container["name"]) for pod in pods for container in pod.spec.get("initContainers") or []
    ]
    waits = [("worker", "wait-gcs-ready")]
    if "ConfigMap/logs" in map(name_of, rendered):
        assert init_containers == [("head", "logs"), ("worker", "logs"), *waits]
    else:
        assert init_containers == waits


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_works_alone(component: str, tmp_path: Path) -> None:
    assert find_problems(render_overlay(tmp_path, "cpu-dev", [component])) == []


def test_overlays_differ_in_images_gpus_and_priority() -> None:
    cpu, gpu = (run_kustomize(K8S / "overlays" / name) for name in ("cpu-dev", "gpu"))
    priority = "PriorityClass/glassbox-training"
    assert priority not in map(name_of, cpu)
    priority_class = next(document for document in gpu if name_of(document) == priority)
    assert priority_class["preemptionPolicy"] == "Never"
    for documents, gpus, accelerator in ((cpu, None, "cpu"), (gpu, "4", "gpu")):
        pods = [pod for pod in list_pods(documents) if pod.role in ("head", "worker")]
        containers = [pod.spec["containers"][0] for pod in pods]
        assert {container["image"].rpartition("-")[2] for container in containers} == {accelerator}
        limits = [container["resources"]["limits"].get("nvidia.com/gpu") for container in containers]
        assert limits == [None, gpus]
    worker = next(pod for pod in list_pods(gpu) if pod.role == "worker").spec
    assert worker["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert worker["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert worker["priorityClassName"] == "glassbox-training"


def test_compiled_kernels_outlive_the_pods_of_gpu_workers() -> None:
    cpu, gpu = (run_kustomize(K8S / "overlays" / name) for name in ("cpu-dev", "gpu"))
    claim = "PersistentVolumeClaim/cuda-cache"
    assert claim in map(name_of, gpu)
    assert claim not in map(name_of, cpu)
    for pod in list_pods(gpu):
        mounts = {
            mount["mountPath"]: mount["name"]
            for container in pod.spec["containers"]
            for mount in container.get("volumeMounts") or []
        }
        assert ("/cuda-cache" in mounts) == (pod.role == "worker")
    worker = next(pod for pod in list_pods(gpu) if pod.role == "worker").spec
    volumes = {volume["name"]: volume for volume in worker["volumes"]}
    assert volumes["cuda-cache"]["persistentVolumeClaim"] == {"claimName": "cuda-cache"}
    values = {variable["name"]: variable.get("value") for variable in worker["containers"][0]["env"]}
    assert values["CUDA_CACHE_PATH"] == "/cuda-cache/$(NODE_NAME)"  # two nodes never share a folder
    assert values["CUDA_CACHE_MAXSIZE"] == str(4 * 2**30)
    assert list(values).index("NODE_NAME") < list(values).index("CUDA_CACHE_PATH")


def test_cron_job_reports_all_runs_and_mounts_shards_read_only(rendered: list[Document]) -> None:
    job = next(document for document in rendered if name_of(document) == "CronJob/report")
    (container,) = get_field(job, "spec.jobTemplate.spec.template.spec.containers")
    is_store = has_store(rendered)
    runs = "$(STORE)/runs" if is_store else "/runs"
    assert container["command"] + container["args"] == ["glassbox", "report", "--all", runs]
    read_only = [mount["name"] for mount in container["volumeMounts"] if mount.get("readOnly")]
    assert read_only == ([] if is_store else ["shards"])


def test_shards_job_keeps_an_existing_shard_set(rendered: list[Document], tmp_path: Path) -> None:
    (container,) = next(pod for pod in list_pods(rendered) if pod.owner == "Job/shards").spec["containers"]
    out = tmp_path / "a set"
    glassbox = tmp_path / "glassbox"
    # `shards info` finds a set in the bucket; in a volume, the file is enough.
    info = 'if [ "$2" = info ]; then test -f "$3/manifest.json"; exit; fi'
    glassbox.write_text(f'#!/bin/bash\n{info}\nprintf "%s|" "$@"\nexit 3\n')
    glassbox.chmod(0o755)
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(out)}

    def run_job() -> tuple[int, str]:
        command = [*container["command"], *container["args"], "--store-size", "256"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return result.returncode, result.stdout

    assert run_job() == (3, f"shards|build|{environment['SOURCE']}|{out}|--store-size|256|")
    out.mkdir()
    (out / "manifest.json").touch()
    assert run_job() == (0, "")


@pytest.mark.parametrize("overlay", VOLUME_OVERLAYS)
@pytest.mark.parametrize("identity", IDENTITIES)
def test_cluster_with_a_bucket_has_no_shared_volume_and_an_identity(
    overlay: str, identity: str, tmp_path: Path
) -> None:
    documents = render_overlay(tmp_path, overlay, ["buckets", identity])
    # The cache for kernels of the overlay `gpu` is still a volume; the overlay `buckets` has none.
    claims = [document for document in documents if document["kind"] == "PersistentVolumeClaim"]
    assert [claim["metadata"]["name"] for claim in claims] == ["cuda-cache"] * overlay.startswith("gpu")
    others = [document for document in documents if document not in claims]
    assert [problem for problem in find_problems(others) if "cuda-cache" not in problem] == []
    settings = next(document["data"] for document in documents if name_of(document) == "ConfigMap/store")
    accounts = {
        document["metadata"]["name"]: document["metadata"].get("annotations")
        for document in documents
        if document["kind"] == "ServiceAccount"
    }
    assert set(accounts) == {"ray", "jobs"}
    assert all(accounts.values())
    assert not re.search("SECRET|ACCESS_KEY|PASSWORD", str(settings) + str(accounts))


def test_overlay_for_buckets_has_no_volume_that_outlives_its_pods() -> None:
    documents = run_kustomize(K8S / "overlays/buckets")
    assert [document for document in documents if document["kind"] == "PersistentVolumeClaim"] == []
    sources = {key for pod in list_pods(documents) for volume in pod.spec["volumes"] for key in volume}
    assert sources == {"name", "emptyDir"}


def test_web_server_mounts_runs_read_only(rendered: list[Document]) -> None:
    if has_store(rendered):
        assert "Deployment/reports" not in map(name_of, rendered)
        return
    web = next(pod for pod in list_pods(rendered) if pod.role == "deployment").spec
    (container,) = web["containers"]
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp"}
    claims = [volume.get("persistentVolumeClaim") for volume in web["volumes"]]
    assert list(filter(None, claims)) == [{"claimName": "runs", "readOnly": True}]


def test_dashboard_queries_exactly_the_gauges_of_training() -> None:
    dashboard = json.loads((K8S / "components/monitoring/dashboard.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    assert set(re.findall(r"ray_glassbox_\w+", queries)) == list_gauges()
    for panel in dashboard["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def build_policy(**spec: object) -> Document:
    return {"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": spec}


def test_policies_are_evaluated_as_kubernetes_does() -> None:
    web = Endpoint("web", labels={"app": "web"})
    other = Endpoint("other")
    elsewhere = Endpoint("away", "elsewhere", {"app": "web"})
    assert is_allowed([], other, web, 80)  # without any policy everything passes
    closed = build_policy(podSelector={}, policyTypes=["Ingress"])
    assert not is_allowed([closed], other, web, 80)
    assert is_allowed([closed], web, elsewhere, 80)  # egress is open, and so is the other namespace
    opened = build_policy(
        podSelector={"matchLabels": {"app": "web"}},
        policyTypes=["Ingress"],
        ingress=[{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}],
    )
    assert is_allowed([closed, opened], other, web, 80)
    assert not is_allowed([closed, opened], other, web, 81)
    assert not is_allowed([closed, opened], elsewhere, web, 80)  # a pod selector alone means this namespace
    assert not is_allowed([closed, opened], web, other, 80)
    anyone = build_policy(podSelector={}, policyTypes=["Ingress"], ingress=[{}])
    assert is_allowed([closed, anyone], elsewhere, web, 80)  # policies are additive


def test_ip_blocks_exclude_their_exceptions() -> None:
    pod = Endpoint("pod")
    block = {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}
    policy = build_policy(podSelector={}, policyTypes=["Egress"], egress=[{"to": [{"ipBlock": block}]}])
    assert not is_allowed([policy], pod, Endpoint("private", None, address="10.1.2.3"), 443)
    assert is_allowed([policy], pod, Endpoint("public", None, address="11.1.2.3"), 443)


def render_teams(directory: Path) -> dict[str, list[Document]]:
    """Renders both teams of the example, and a training with the same name for each."""
    teams = {}
    for team in ("audio", "vision"):
        documents = run_kustomize(K8S / "examples/teams" / team)
        job = render_rayjob(documents, TrainingJob("first", "demo", "/shards/evidence"))
        teams[team] = [*documents, job]
    return teams


def test_two_teams_share_a_cluster_without_collisions(tmp_path: Path) -> None:
    teams = render_teams(tmp_path)
    queues = run_kustomize(K8S / "examples/teams/queues")
    identities = []
    for team, documents in teams.items():
        assert find_problems(documents) == []
        for document in documents:
            namespace = document["metadata"].get("namespace")
            identities.append((document["kind"], namespace, document["metadata"]["name"]))
            assert namespace in (None, f"team-{team}")
        queue = next(document for document in documents if document["kind"] == "LocalQueue")
        (cluster_queue,) = (
            document for document in queues if document["metadata"]["name"] == queue["spec"]["clusterQueue"]
        )
        selector = cluster_queue["spec"]["namespaceSelector"]["matchLabels"]
        assert selector == {"kubernetes.io/metadata.name": f"team-{team}"}
        job = documents[-1]
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == f"{team}-glassbox"
        standing = next(document for document in documents if document["kind"] == "RayCluster")
        assert standing["spec"]["suspend"] is True
        assert "kueue.x-k8s.io/queue-name" not in standing["metadata"]["labels"]
    assert len(set(identities)) == len(identities)


def test_names_and_namespace_apply_to_all_kinds_of_components(tmp_path: Path) -> None:
    """With a prefix and another namespace, all objects still refer to those of their own."""
    k8s = os.path.relpath(K8S, tmp_path)
    kustomization = {
        "namespace": "elsewhere",
        "namePrefix": "our-",
        "resources": [f"{k8s}/overlays/buckets"],
        "components": [f"{k8s}/components/{name}" for name in COMPONENTS],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    documents = run_kustomize(tmp_path)
    assert find_problems(documents) == []
    names = [document["metadata"]["name"] for document in documents if document["kind"] != "Namespace"]
    assert [name for name in names if not name.startswith("our-")] == []


def test_quota_of_each_team_covers_its_training(tmp_path: Path) -> None:
    queues = run_kustomize(K8S / "examples/teams/queues")
    for team, documents in render_teams(tmp_path).items():
        own = [document for document in queues if document["metadata"]["name"] != f"team-{team}"]
        others = [document for document in queues if document not in own]
        assert list(lint_references._check_quota([*documents, *others])) == []


def test_example_has_the_submitter_of_rendered_jobs() -> None:
    documents = run_kustomize(K8S / "overlays/cpu-dev")
    job = render_rayjob(documents, TrainingJob("first", "demo", "/shards/evidence"))
    (example,) = load_rayjob_example()
    assert example["spec"]["submitterPodTemplate"] == job["spec"]["submitterPodTemplate"]


def test_pod_of_a_job_is_the_one_of_the_standing_cluster(tmp_path: Path) -> None:
    """Apart from its label and the number of workers, nothing is decided twice."""
    documents = run_kustomize(K8S / "overlays/gpu")
    job = render_rayjob(documents, TrainingJob("first", "demo", "/s", workers=3, gpus_per_worker=2))
    spec = job["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [3, 3, 3]
    standing = next(document for document in documents if document["kind"] == "RayCluster")["spec"]
    (expected,) = standing["workerGroupSpecs"]
    for template in (group["template"], spec["headGroupSpec"]["template"]):
        assert template["metadata"].pop("labels") == {"glassbox/run": "first"}
    for quantities in group["template"]["spec"]["containers"][0]["resources"].values():
        assert quantities["nvidia.com/gpu"] == "2"
        quantities["nvidia.com/gpu"] = "4"
    assert group["template"] == expected["template"]
    assert spec["headGroupSpec"] == standing["headGroupSpec"]
    assert set(standing) - set(spec) == {"upgradeStrategy"}


@pytest.mark.parametrize("components", [(), GPU_COMPONENTS])
@pytest.mark.parametrize("overlay", ["gpu", "gpu-8", "gpu-8-buckets"])
def test_nodes_with_gpus_with_and_without_rdma(
    overlay: str, components: tuple[str, ...], tmp_path: Path
) -> None:
    documents = render_overlay(tmp_path, overlay, components)
    assert find_problems(documents) == []
    (container,) = next(pod for pod in list_pods(documents) if pod.role == "worker").spec["containers"]
    variables = {variable["name"] for variable in container["env"]}
    assert ("NCCL_IB_HCA" in variables) == bool(components)
    assert ("rdma/hca" in container["resources"]["limits"]) == bool(components)


def test_one_line_sets_the_registry_of_all_images(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    render_overlay(tmp_path / "all", "gpu", COMPONENTS)
    name = "registry.example:5000/team/glassbox"
    kustomization = {"resources": ["all"], "images": [{"name": "glassbox", "newName": name}]}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    documents = run_kustomize(tmp_path)
    images = {container["image"] for pod in list_pods(documents) for _, container in pod.containers()}
    own = {image for image in images if not image.startswith("fluent-bit:")}
    assert {image.rpartition(":")[0] for image in own} == {name}
    assert find_problems(documents) == []
