"""Renders the pods that the controllers and the KubeRay operator create from the manifests."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from kube_quantities import GPU, parse_quantity
from kube_render import Document

TEMPLATES = {
    "Job": "spec.template",
    "CronJob": "spec.jobTemplate.spec.template",
    "Deployment": "spec.template",
}
CLUSTER_SPECS = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec"}
SUFFIX = "-x1y2z"  # of the cluster of a RayJob, which the operator chooses
TOKEN_KEY = "auth_token"
GCS_PORT = 6379
AGENT_PORT = 52365
SHELL = ("/bin/bash", "-c", "--")
COPIED_TO_INIT_CONTAINER = ("image", "securityContext", "env", "volumeMounts")


@dataclass(frozen=True)
class Pod:
    """A pod as the API server receives it.

    Attributes:
        owner: Kind and name of the document that the pod is created from.
        role: `head`, `worker`, `submitter`, or the owner's kind in lower case.
        path: Dotted path of the pod spec in the owner.
        labels: Labels after the operator added its own.
        spec: Pod spec after the operator added environment, commands and init containers.
        template_metadata: Metadata of the pod template, as in the owner.
    """

    owner: str
    role: str
    path: str
    labels: dict[str, str]
    spec: Document
    template_metadata: Document = field(default_factory=dict)

    def containers(self) -> Iterator[tuple[str, Document]]:
        """Yields all containers, init containers first, each with its location for messages."""
        for kind in ("initContainers", "containers"):
            for container in self.spec.get(kind) or []:
                yield f"{self.owner}: {self.path}.{kind}[{container.get('name')}]", container

    def manifest(self) -> Document:
        """Returns the pod as a document of kind Pod."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod", "labels": self.labels},
            "spec": self.spec,
        }


def name_of(document: Document) -> str:
    """Returns kind and name of a document as `Kind/name`."""
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


def get_field(document: Document, path: str) -> Any:
    """Returns the value at a dotted path, or an empty mapping if the path does not exist."""
    value: Any = document
    for key in path.split("."):
        value = value.get(key) or {} if isinstance(value, dict) else {}
    return value


def list_pods(documents: list[Document]) -> list[Pod]:
    """Returns the pods of all documents."""
    return [pod for document in documents for pod in _render_pods(document, documents)]


def iterate_clusters(documents: list[Document]) -> Iterator[tuple[Document, str, Document]]:
    """Yields every cluster, also those of RayJobs: its document, the location of its spec, and its spec."""
    for document in documents:
        path = CLUSTER_SPECS.get(str(document.get("kind")))
        spec = get_field(document, path) if path else None
        if spec or document.get("kind") == "RayCluster":
            yield document, f"{name_of(document)}: {path}", spec or {}


def _find_token_secret(job: Document, documents: list[Document]) -> Any:
    """Returns the secret of the cluster that a RayJob creates or uses."""
    selected = get_field(job, "spec.clusterSelector").get("ray.io/cluster")
    for document, _, spec in iterate_clusters(documents):
        if document is job or document["metadata"].get("name") == selected:
            return get_field(spec, "authOptions.secretName") or None
    return None


def _render_pods(document: Document, documents: list[Document]) -> Iterator[Pod]:
    owner = name_of(document)
    kind = document.get("kind")
    if kind in TEMPLATES:
        path = TEMPLATES[kind]
        yield _render_template(owner, kind.lower(), path, get_field(document, path))
    if kind == "RayJob" and (template := get_field(document, "spec.submitterPodTemplate")):
        submitter = _render_template(owner, "submitter", "spec.submitterPodTemplate", template)
        submitter = replace(submitter, spec=copy.deepcopy(submitter.spec))
        for container in (submitter.spec.get("containers") or [])[:1]:
            _add_token(container, _find_token_secret(document, documents))
        yield submitter
    for _, where, spec in iterate_clusters([document]):
        prefix = where.removeprefix(f"{owner}: ")
        template = get_field(spec, "headGroupSpec.template")
        head = _render_template(owner, "head", f"{prefix}.headGroupSpec.template", template)
        yield _apply_operator(head, document, spec, "headgroup")
        for index, group in enumerate(spec.get("workerGroupSpecs") or []):
            path = f"{prefix}.workerGroupSpecs[{index}].template"
            worker = _render_template(owner, "worker", path, group.get("template") or {})
            yield _apply_operator(worker, document, spec, str(group.get("groupName")))


def _render_template(owner: str, role: str, path: str, template: Document) -> Pod:
    labels = dict(get_field(template, "metadata.labels"))
    metadata = template.get("metadata") or {}
    return Pod(owner, role, f"{path}.spec", labels, template.get("spec") or {}, metadata)


def _apply_operator(pod: Pod, document: Document, spec: Document, group: str) -> Pod:
    """Adds what the operator adds: labels, token, `ray start` and the workers' init container."""
    cluster = document.get("metadata", {}).get("name")
    if document.get("kind") == "RayJob":
        cluster = f"{cluster}{SUFFIX}"
    pod = replace(pod, spec=copy.deepcopy(pod.spec))
    pod.labels.update(
        {
            "ray.io/cluster": cluster,
            "ray.io/node-type": pod.role,
            "ray.io/group": group,
            "ray.io/is-ray-node": "yes",
        }
    )
    containers = pod.spec.get("containers") or []
    if not containers:
        return pod
    ray = containers[0]
    if get_field(spec, "authOptions.mode") == "token":
        _add_token(ray, get_field(spec, "authOptions.secretName") or cluster)
    head = f"{cluster}-head-svc.{document['metadata'].get('namespace')}.svc.cluster.local:{GCS_PORT}"
    if pod.role == "worker":
        init_containers = pod.spec.get("initContainers") or []
        pod.spec["initContainers"] = [*init_containers, _build_wait_container(ray, head)]
        parameters = _find_worker_parameters(spec, group)
    else:
        parameters = get_field(spec, "headGroupSpec.rayStartParams")
    ray["command"] = list(SHELL)
    ray["args"] = [_build_ray_start(pod.role, parameters, get_field(ray, "resources.limits"), head)]
    return pod


def _add_token(container: Document, secret: Any) -> None:
    """Adds the token's variables; the operator keeps variables that the container already sets."""
    reference = {"name": secret, "key": TOKEN_KEY}
    token_variables = [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": reference}},
    ]
    own_variables = container.get("env") or []
    own_names = {variable["name"] for variable in own_variables}
    added = [variable for variable in token_variables if variable["name"] not in own_names]
    container["env"] = [*own_variables, *added]


def _build_wait_container(ray: Document, head: str) -> Document:
    """Builds the init container in which a worker waits for the head."""
    container = {key: copy.deepcopy(ray[key]) for key in COPIED_TO_INIT_CONTAINER if key in ray}
    resources = {"cpu": "200m", "memory": "256Mi"}  # the operator's defaults
    return container | {
        "name": "wait-gcs-ready",
        "command": list(SHELL),
        "args": [f"until ray health-check --address {head}; do sleep 5; done"],
        "resources": {"requests": resources, "limits": resources},
    }


def _find_worker_parameters(spec: Document, group: str) -> Document:
    for worker_group in spec.get("workerGroupSpecs") or []:
        if worker_group.get("groupName") == group:
            return worker_group.get("rayStartParams") or {}
    return {}


def _build_ray_start(role: str, parameters: Document, limits: Document, head: str) -> str:
    """Builds the operator's `ray start` command: its defaults, overridden by `rayStartParams`."""
    options = {
        "block": "true",
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": str(AGENT_PORT),
        "num-cpus": limits.get("cpu"),
        "num-gpus": limits.get(GPU),
        "memory": parse_quantity(limits.get("memory")),
    }
    if role != "head":
        options["address"] = head
    options |= parameters
    words = ["ulimit -n 65536; ray start"]
    if role == "head":
        words.append("--head")
    for name, value in sorted(options.items()):
        if value is None:
            continue
        text = value if isinstance(value, str) else f"{value:.0f}"
        words.append(f"--{name}" if text == "true" else f"--{name}={text}")
    return " ".join(words)
