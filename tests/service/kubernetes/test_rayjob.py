"""A training as a RayJob: what is taken from the manifests, and what is refused."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.errors import ConfigError
from service.cli import main
from service.kubernetes.rayjob import TrainingJob, render_rayjob

JOB = TrainingJob("first", "demo", "/shards/a")
QUEUE = {"kind": "LocalQueue", "metadata": {"name": "ours"}}
STORE = {"kind": "ConfigMap", "metadata": {"name": "store"}, "data": {"STORE": "s3://team"}}


def build_cluster(gpus: int = 4) -> dict[str, Any]:
    """A RayCluster with what a RayJob takes from it."""
    resources = {"cpu": "32", "memory": "64Gi", "nvidia.com/gpu": str(gpus)}
    container = {
        "image": "registry/glassbox:1",
        "securityContext": {"readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    pod = {
        "serviceAccountName": "ray",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsUser": 1000, "fsGroup": 1000},
        "containers": [container],
    }
    group = {"groupName": "workers", "replicas": 2, "minReplicas": 2, "maxReplicas": 2}
    return {
        "kind": "RayCluster",
        "metadata": {"name": "glassbox", "namespace": "team", "labels": {"team": "a"}},
        "spec": {
            "suspend": True,
            "upgradeStrategy": {"type": "Recreate"},
            "headGroupSpec": {"template": {"spec": copy.deepcopy(pod)}},
            "workerGroupSpecs": [group | {"template": {"spec": copy.deepcopy(pod)}}],
        },
    }


def test_a_job_has_the_cluster_of_the_manifests_and_tears_it_down() -> None:
    cluster = build_cluster()
    before = copy.deepcopy(cluster)
    job = render_rayjob([cluster], JOB)
    assert cluster == before
    assert job["metadata"]["namespace"] == "team"
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["entrypoint"].split() == [
        *("glassbox", "train", "--resume-if-exists", "--preset", "demo", "--data", "/shards/a"),
        *("--out", "/runs/first", "--workers", "2", "--cpus-per-worker", "32", "--gpus-per-worker", "4"),
    ]
    assert not {"suspend", "upgradeStrategy"} & set(spec["rayClusterSpec"])
    submitter = spec["submitterPodTemplate"]["spec"]
    assert submitter["securityContext"] == {"runAsUser": 1000}
    assert submitter["containers"][0]["image"] == "registry/glassbox:1"


def test_run_and_queue_come_from_the_manifests_unless_they_are_named() -> None:
    job = render_rayjob([build_cluster(), QUEUE, STORE], JOB)
    assert "--out s3://team/runs/first " in job["spec"]["entrypoint"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ours"
    named = TrainingJob("first", "demo", "/s", out="/runs/other", queue="theirs", overrides=("a=b c",))
    job = render_rayjob([build_cluster(), QUEUE, QUEUE, STORE], named)
    assert "--out /runs/other " in job["spec"]["entrypoint"]
    assert job["spec"]["entrypoint"].endswith("'a=b c'")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "theirs"


@pytest.mark.parametrize(
    ("documents", "changes", "message"),
    [
        ([], {}, "RayCluster: 0"),
        ([build_cluster(), build_cluster()], {}, "RayCluster: 2"),
        ([build_cluster()], {"name": "First"}, "name=First"),
        ([build_cluster()], {"name": "f" * 48}, "at most 47"),
        ([build_cluster()], {"gpus_per_worker": 8}, "Expected 1 to 4 GPUs"),
        ([build_cluster(), QUEUE, QUEUE], {}, "Expected --queue"),
    ],
)
def test_what_does_not_fit_is_refused(
    documents: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    settings = {"name": "first", "preset": "demo", "data": "/s"} | changes
    with pytest.raises(ConfigError, match=message):
        render_rayjob(documents, TrainingJob(**settings))


def test_manifests_without_a_place_for_runs_need_one() -> None:
    cluster = build_cluster()
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"] = []
    with pytest.raises(ConfigError, match="Expected --out"):
        render_rayjob([cluster], JOB)


def test_command_checks_the_batch_and_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["submit", "first", "--k8s", "-", "--preset", "demo", "--data", "/shards/a"]
    for settings, code in (([], 0), (["global_batch=12"], 2), (["--workers", "7"], 2), (["epoch=1"], 2)):
        monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(build_cluster())))
        assert main([*words, *settings]) == code, settings
    output = capsys.readouterr().out
    assert yaml.safe_load(output)["kind"] == "RayJob"
    assert "&id" not in output
    assert main([*words[:3], str(tmp_path / "none.yaml"), *words[4:]]) == 2
