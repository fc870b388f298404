"""The pods that come of the manifests, as the controllers and the KubeRay operator make them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from kube_amounts import GPU, amount
from kube_render import Document

TEMPLATES = {
    "Job": "spec.template",
    "CronJob": "spec.jobTemplate.spec.template",
    "Deployment": "spec.template",
}
TOKEN_KEY = "auth_token"
GCS_PORT, AGENT_PORT = 6379, 52365


@dataclass(frozen=True)
class Pod:
    """A pod.

    Attributes:
        owner: Kind and name of the document it comes of.
        role: Of it there: head, worker, submitter, or the kind in lower case.
        path: Of the pod's spec in the document.
        labels: That it will carry.
        spec: As the API server will see it.
    """

    owner: str
    role: str
    path: str
    labels: dict[str, str]
    spec: Document

    def containers(self) -> Iterator[tuple[str, Document]]:
        """Its containers, those that run first included, each with its place in the document."""
        for field in ("initContainers", "containers"):
            for container in self.spec.get(field) or []:
                yield f"{self.owner}: {self.path}.{field}[{container.get('name')}]", container

    def manifest(self) -> Document:
        """As a document of its own."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod", "labels": self.labels},
            "spec": self.spec,
        }


def name_of(document: Document) -> str:
    """Kind and name."""
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


def at(document: Document, path: str) -> Any:
    """What stands at a dotted path; an empty mapping where nothing does."""
    value: Any = document
    for key in path.split("."):
        value = value.get(key) or {} if isinstance(value, dict) else {}
    return value


def pods(documents: list[Document]) -> list[Pod]:
    """All pods of all documents."""
    return [pod for document in documents for pod in _pods(document)]


def clusters(documents: list[Document]) -> Iterator[tuple[Document, str, Document]]:
    """Ray clusters: the document, how messages call its spec, and the spec."""
    for document in documents:
        if document.get("kind") == "RayCluster":
            yield document, f"{name_of(document)}: spec", document.get("spec") or {}


def _pods(document: Document) -> Iterator[Pod]:
    owner, kind = name_of(document), document.get("kind")
    if kind in TEMPLATES:
        yield _pod(owner, kind.lower(), TEMPLATES[kind], at(document, TEMPLATES[kind]))
    if kind == "RayJob" and (template := at(document, "spec.submitterPodTemplate")):
        yield _pod(owner, "submitter", "spec.submitterPodTemplate", template)
    for _, _, spec in clusters([document]):
        yield _ray(
            _pod(owner, "head", "spec.headGroupSpec.template", at(spec, "headGroupSpec.template")),
            document,
            spec,
            "headgroup",
        )
        for n, group in enumerate(spec.get("workerGroupSpecs") or []):
            template = f"spec.workerGroupSpecs[{n}].template"
            yield _ray(
                _pod(owner, "worker", template, group.get("template") or {}),
                document,
                spec,
                str(group.get("groupName")),
            )


def _pod(owner: str, role: str, path: str, template: Document) -> Pod:
    return Pod(owner, role, f"{path}.spec", dict(at(template, "metadata.labels")), template.get("spec") or {})


def _ray(pod: Pod, document: Document, spec: Document, group: str) -> Pod:
    """Adds what the operator adds: labels, the token, the command, and to workers a container that waits for the head."""
    cluster = document.get("metadata", {}).get("name")
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
    if at(spec, "authOptions.mode") == "token":
        secret = {"name": at(spec, "authOptions.secretName") or cluster, "key": TOKEN_KEY}
        added = [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}},
        ]
        names = [
            variable["name"] for variable in ray.get("env") or []
        ]  # what is there already, the operator leaves
        ray["env"] = [
            *(ray.get("env") or []),
            *(variable for variable in added if variable["name"] not in names),
        ]
    head = f"{cluster}-head-svc.{document['metadata'].get('namespace')}.svc.cluster.local:{GCS_PORT}"
    if pod.role == "worker":
        waiting = {
            key: copy.deepcopy(ray[key])
            for key in ("image", "securityContext", "env", "volumeMounts")
            if key in ray
        }
        amounts = {"cpu": "200m", "memory": "256Mi"}  # the operator's
        waiting |= {
            "name": "wait-gcs-ready",
            "command": ["/bin/bash", "-c", "--"],
            "resources": {"requests": amounts, "limits": amounts},
        }
        waiting["args"] = [f"until ray health-check --address {head}; do sleep 5; done"]
        pod.spec["initContainers"] = [*(pod.spec.get("initContainers") or []), waiting]
    own = at(spec, "headGroupSpec.rayStartParams") if pod.role == "head" else _parameters(spec, group)
    ray["command"], ray["args"] = (
        ["/bin/bash", "-c", "--"],
        [_start(pod.role, dict(own), at(ray, "resources.limits"), head)],
    )
    return pod


def _parameters(spec: Document, group: str) -> Document:
    return next(
        (
            found.get("rayStartParams") or {}
            for found in spec.get("workerGroupSpecs") or []
            if found.get("groupName") == group
        ),
        {},
    )


def _start(role: str, parameters: dict[str, Any], limits: Document, head: str) -> str:
    """The operator's `ray start`."""
    defaults = {
        "block": "true",
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": str(AGENT_PORT),
        "num-cpus": limits.get("cpu"),
    }
    defaults |= {"num-gpus": limits.get(GPU), "memory": amount(limits.get("memory"))} | (
        {} if role == "head" else {"address": head}
    )
    whole = {
        name: value if isinstance(value, str) else f"{value:.0f}"
        for name, value in (defaults | parameters).items()
        if value is not None
    }
    words = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in sorted(whole.items())]
    return " ".join(["ulimit -n 65536; ray start", *(["--head"] if role == "head" else []), *words])
