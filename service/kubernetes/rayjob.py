"""Makes the RayJob of a training from the manifests of a cluster, of which it gets a copy."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ConfigError

Document = dict[str, Any]

GPU = "nvidia.com/gpu"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PART_OF = {"app.kubernetes.io/part-of": "glassbox"}
RUN_LABEL = "glassbox/run"
CLIENT_LABEL = {"glassbox/ray-client": "true"}
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME = 47  # the operator appends suffixes, which must still fit into a label
RUNS = "/runs"
SUBMITTER_RESOURCES = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
SUBMITTER_RETRIES = 3  # a second submitter follows the job that the first one has started
SECONDS_TO_READ_LOGS = 60  # between the end of a training and the end of its cluster


@dataclass(frozen=True)
class TrainingJob:
    """A training as a job on Kubernetes.

    Attributes:
        name: Name of the RayJob and of the run.
        preset: Name, path or URI of a preset.
        data: Path or URI of the shard set, as the pods see it.
        out: Path or URI of the run; None for `runs/NAME` on the volume or in the bucket of the manifests.
        workers: Number of worker pods; None for as many as in the manifests.
        gpus_per_worker: GPUs of each worker pod; None for as many as in the manifests.
        overrides: Settings as `key=value`.
        queue: Queue of Kueue; None for the only LocalQueue of the manifests, if there is one.
        hours: Hours after which the job is stopped, retries included.
        retries: New clusters after a loss of the head or a failed training.
    """

    name: str
    preset: str
    data: str
    out: str | None = None
    workers: int | None = None
    gpus_per_worker: int | None = None
    overrides: Sequence[str] = ()
    queue: str | None = None
    hours: float = 24.0
    retries: int = 3


def render_rayjob(documents: Sequence[Document], job: TrainingJob) -> Document:
    """Returns the RayJob of a training.

    Everything about pods comes from the RayCluster among the manifests: images, resources, volumes,
    identities, security. The entrypoint starts the run or resumes it, so that a retry continues from the
    last checkpoint.

    Args:
        documents: Manifests of a cluster, as `kubectl kustomize` renders them.
        job: What the user asked for: preset, data, settings and limits.

    Raises:
        ConfigError: The manifests have no RayCluster, or the job does not fit it.
    """
    _check_name(job.name)
    cluster = _find_one(documents, "RayCluster", "--k8s with the manifests of a cluster")
    spec = copy.deepcopy(cluster["spec"])
    for field in ("suspend", "upgradeStrategy"):  # of a standing cluster
        spec.pop(field, None)
    group = spec["workerGroupSpecs"][0]
    workers = job.workers or int(group["replicas"])
    group |= dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), workers)
    limits = _set_gpus(group, job.gpus_per_worker)
    for template in (spec["headGroupSpec"]["template"], group["template"]):
        template.setdefault("metadata", {}).setdefault("labels", {})[RUN_LABEL] = job.name
    command = [
        *("glassbox", "train", "--resume-if-exists", "--preset", job.preset, "--data", job.data),
        *("--out", job.out or _find_runs(documents, spec, job.name), "--workers", str(workers)),
        *("--cpus-per-worker", str(int(limits["cpu"]))),
        *(("--gpus-per-worker", str(limits[GPU])) if GPU in limits else ()),
        *job.overrides,
    ]
    queue = job.queue or _find_queue(documents)
    metadata = {
        "name": job.name,
        "namespace": cluster["metadata"].get("namespace"),
        "labels": PART_OF | ({QUEUE_LABEL: queue} if queue else {}),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {key: value for key, value in metadata.items() if value},
        "spec": {
            "entrypoint": shlex.join(command),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": SECONDS_TO_READ_LOGS,
            "activeDeadlineSeconds": round(job.hours * 3600),
            "backoffLimit": job.retries,
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": SUBMITTER_RETRIES},
            "submitterPodTemplate": build_submitter(spec),
            "rayClusterSpec": spec,
        },
    }


def build_submitter(spec: Document) -> Document:
    """Returns the pod template of the submitter, which follows the log of the job.

    The operator's default has no security context, so that the restricted standard refuses it.

    Args:
        spec: Specification of the RayCluster; image, account and security context are those of its head.
    """
    head = spec["headGroupSpec"]["template"]["spec"]
    container = head["containers"][0]
    pod_fields = ("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks")
    security = {key: value for key, value in head["securityContext"].items() if not key.startswith("fsGroup")}
    return {
        "metadata": {"labels": dict(CLIENT_LABEL)},
        "spec": {
            "restartPolicy": "Never",
            **{field: head[field] for field in pod_fields},
            "securityContext": security,
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": container["image"],
                    "resources": {"requests": dict(SUBMITTER_RESOURCES), "limits": dict(SUBMITTER_RESOURCES)},
                    "securityContext": copy.deepcopy(container["securityContext"]),
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "512Mi"}}],
        },
    }


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ConfigError(
            f"a name of lower-case letters, digits and hyphens, at most {MAX_NAME}",
            f"name={name}",
            "choose another name",
        )


def _find_one(documents: Sequence[Document], kind: str, expected: str) -> Document:
    found = [document for document in documents if document.get("kind") == kind]
    if len(found) != 1:
        raise ConfigError(
            expected, f"documents of kind {kind}: {len(found)}", "name a folder such as my-cluster"
        )
    return found[0]


def _set_gpus(group: Document, gpus: int | None) -> Document:
    """Sets the GPUs of the worker pods, and returns their limits."""
    container = group["template"]["spec"]["containers"][0]
    limits: Document = container["resources"]["limits"]
    if gpus is None:
        return limits
    most = int(limits.get(GPU, 0))
    if not 1 <= gpus <= most:
        raise ConfigError(
            f"1 to {most} GPUs per worker, as the manifests have",
            f"--gpus-per-worker {gpus}",
            "use the manifests of larger nodes" if most else "use the manifests of nodes with GPUs",
        )
    for quantities in container["resources"].values():
        quantities[GPU] = str(gpus)
    return limits


def _find_runs(documents: Sequence[Document], spec: Document, name: str) -> str:
    """Returns where a run goes by default: the bucket of the manifests, or the volume of its pods."""
    for document in documents:
        store = (document.get("data") or {}).get("STORE") if document.get("kind") == "ConfigMap" else None
        if store:
            return f"{store}/runs/{name}"
    mounts = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    if all(mount["mountPath"] != RUNS for mount in mounts):
        raise ConfigError(
            "--out", f"manifests without a bucket and without {RUNS}", "name the place of the run"
        )
    return f"{RUNS}/{name}"


def _find_queue(documents: Sequence[Document]) -> str | None:
    queues = [document["metadata"]["name"] for document in documents if document.get("kind") == "LocalQueue"]
    if len(queues) > 1:
        raise ConfigError("--queue", f"LocalQueues: {', '.join(queues)}", "name one of them")
    return queues[0] if queues else None
