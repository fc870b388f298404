"""What the manifests may say at all. Most of what opens a pod or a cluster is one field more: what is in no table here is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kube_pods import name_of
from kube_render import Document

MISSHAPEN = "must be a"  # after which nothing else can be looked at


@dataclass(frozen=True)
class Each:
    """A mapping with keys of one's own.

    Attributes:
        key: Of every key.
        value: Of every value.
    """

    key: re.Pattern[str]
    value: re.Pattern[str]


# A table of fields; [of every entry]; allowed values; a range of numbers; a pattern; None for what schemas and other checks judge.
Shape = dict[str, "Shape"] | list["Shape"] | tuple[Any, ...] | range | re.Pattern[str] | Each | None

NAME = re.compile(r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
VARIABLE = re.compile(r"[A-Za-z_]\w*")
NOT_RAYS = re.compile(
    r"(?!RAY_|REDIS_)[A-Za-z_]\w*"
)  # the operator keeps what it finds here, such as a switched off RAY_AUTH_MODE
FOLDER = re.compile(r"(/(?!\.\.?(/|$))[^/:]+)+")
KEY = re.compile(r"([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?(?=.{1,63}$)[A-Za-z0-9]([-.\w]*[A-Za-z0-9])?")
LABELS = Each(KEY, re.compile(r"(?=.{0,63}$)([A-Za-z0-9]([-.\w]*[A-Za-z0-9])?)?"))
SELECTOR: Shape = {"matchLabels": LABELS}
PORT, SECONDS, TIMES = range(1, 65536), range(1, 601), range(1, 1001)
INTERVAL = re.compile(r"[1-9]\d*[sm]")

PROBE: Shape = {
    "httpGet": {"path": re.compile(r"/.*"), "port": None},
    "tcpSocket": {"port": None},
    "periodSeconds": SECONDS,
    "timeoutSeconds": SECONDS,
    "failureThreshold": TIMES,
}
CONTAINER: dict[str, Shape] = {
    "name": NAME,
    "image": None,
    "imagePullPolicy": ("Always", "IfNotPresent"),
    "env": [{"name": VARIABLE, "value": None, "valueFrom": {"secretKeyRef": {"name": None, "key": None}}}],
    "envFrom": [{"configMapRef": {"name": None}, "secretRef": {"name": None}}],
    "ports": [{"name": PORT_NAME, "containerPort": PORT, "protocol": ("TCP",)}],
    "resources": {"requests": None, "limits": None},
    "securityContext": {
        "runAsNonRoot": (True,),
        "runAsUser": (1000,),
        "allowPrivilegeEscalation": (False,),
        "readOnlyRootFilesystem": (True,),
        "capabilities": {"drop": [("ALL",)]},
        "seccompProfile": {"type": ("RuntimeDefault",)},
    },
    "startupProbe": PROBE,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "volumeMounts": [{"name": NAME, "mountPath": FOLDER, "readOnly": (True, False)}],
}
COMMAND: dict[str, Shape] = {"command": None, "args": None}
RAYS = CONTAINER | {"env": [{"name": NOT_RAYS, "value": None}]}  # its command is the operator's
POD: dict[str, Shape] = {
    "serviceAccountName": None,
    "automountServiceAccountToken": (False,),
    "enableServiceLinks": (False,),
    "priorityClassName": NAME,
    "nodeSelector": LABELS,
    "tolerations": [{"key": KEY, "operator": ("Exists",), "effect": ("NoSchedule",)}],
    "terminationGracePeriodSeconds": range(30, 601),
    "securityContext": {
        "runAsNonRoot": (True,),
        "runAsUser": (1000,),
        "runAsGroup": (1000,),
        "fsGroup": (1000,),
        "fsGroupChangePolicy": ("OnRootMismatch",),
        "seccompProfile": {"type": ("RuntimeDefault",)},
    },
    "volumes": [
        {
            "name": NAME,
            "configMap": {"name": None},
            "emptyDir": {"medium": ("Memory",), "sizeLimit": None},
            "persistentVolumeClaim": {"claimName": None, "readOnly": (True, False)},
        }
    ],
}


def template(container: dict[str, Shape], **more: Shape) -> Shape:
    """Of pods with such containers."""
    return {"metadata": {"labels": LABELS}, "spec": POD | {"containers": [container]} | more}


HEAD: Shape = {
    "rayStartParams": {"num-cpus": None, "dashboard-host": None, "object-store-memory": None},
    "template": template(RAYS),
}
WORKERS: Shape = {
    "groupName": NAME,
    "replicas": None,
    "minReplicas": None,
    "maxReplicas": None,
    "rayStartParams": {"object-store-memory": None},
    "template": template(RAYS),
}
JOB: dict[str, Shape] = {
    "backoffLimit": range(11),
    "activeDeadlineSeconds": None,
    "template": template(CONTAINER | COMMAND, restartPolicy=("Never", "OnFailure")),
}
PEER: Shape = {
    "podSelector": SELECTOR,
    "namespaceSelector": SELECTOR,
    "ipBlock": {"cidr": None, "except": None},
}
THROUGH: Shape = [{"protocol": ("TCP", "UDP"), "port": PORT}]
QUOTA: Shape = {"name": None, "resources": [{"name": None, "nominalQuota": None}]}
SPECS: dict[str, Shape] = {
    "PersistentVolumeClaim": {
        "accessModes": None,
        "resources": {"requests": {"storage": None}},
        "storageClassName": NAME,
    },
    "Service": {
        "selector": LABELS,
        "ports": [{"name": PORT_NAME, "port": PORT, "targetPort": None, "protocol": ("TCP",)}],
    },
    "Deployment": {"replicas": range(1, 10), "selector": SELECTOR, "template": template(CONTAINER | COMMAND)},
    "Job": JOB,
    "CronJob": {
        "schedule": None,
        "timeZone": None,
        "concurrencyPolicy": None,
        "startingDeadlineSeconds": None,
        "successfulJobsHistoryLimit": None,
        "failedJobsHistoryLimit": None,
        "jobTemplate": {"spec": JOB},
    },
    "NetworkPolicy": {
        "podSelector": SELECTOR,
        "policyTypes": [("Ingress", "Egress")],
        "ingress": [{"from": [PEER], "ports": THROUGH}],
        "egress": [{"to": [PEER], "ports": THROUGH}],
    },
    "RayCluster": {
        "rayVersion": None,
        "authOptions": {"mode": ("token",), "secretName": None},
        "headGroupSpec": HEAD,
        "workerGroupSpecs": [WORKERS],
    },
    "RayJob": {
        "entrypoint": None,
        "clusterSelector": {"ray.io/cluster": None},
        "submissionMode": ("K8sJobMode",),
        "submitterConfig": {"backoffLimit": (0,)},  # a second submit would find the run of the first
        "submitterPodTemplate": template(CONTAINER, restartPolicy=("Never",)),
    },
    "PodMonitor": {"selector": SELECTOR, "podMetricsEndpoints": [{"port": PORT_NAME, "interval": INTERVAL}]},
    "ResourceFlavor": None,
    "ClusterQueue": {
        "namespaceSelector": SELECTOR,
        "resourceGroups": [{"coveredResources": None, "flavors": [QUOTA]}],
    },
    "LocalQueue": {"clusterQueue": None},
}
DOCUMENTS: dict[str, dict[str, Shape]] = {kind: {"spec": shape} for kind, shape in SPECS.items()} | {
    "Namespace": {},
    "ServiceAccount": {"automountServiceAccountToken": (False,)},
    "ConfigMap": {"data": None},
    "PriorityClass": {"value": range(1, 10**9 + 1), "preemptionPolicy": ("Never",), "description": None},
}
COMMON: dict[str, Shape] = {
    "apiVersion": None,
    "kind": None,
    "metadata": {"name": None, "namespace": ("glassbox",), "labels": LABELS},
}


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for document in documents:
        kind = str(document.get("kind"))
        if kind not in DOCUMENTS:
            yield f"{name_of(document)}: kind: not made here (and secrets are made by a command, never kept in files)"
        else:
            for path, problem in _walk(document, COMMON | DOCUMENTS[kind]):
                yield f"{name_of(document)}: {path.removeprefix('.')}: {problem}"


def _walk(value: Any, shape: Shape) -> Iterator[tuple[str, str]]:
    """Places below a value, and what is wrong there."""
    kind = dict if isinstance(shape, dict | Each) else list if isinstance(shape, list) else None
    if kind and value is not None and not isinstance(value, kind):
        yield "", f"{MISSHAPEN} {'mapping' if kind is dict else 'list'}, is {value!r}"
    elif isinstance(shape, dict | Each):
        for key, inner in (value or {}).items():
            known = key in shape if isinstance(shape, dict) else shape.key.fullmatch(str(key))
            if not known:
                yield f".{key}", "not used here"
            else:
                yield from _below(f".{key}", inner, shape[key] if isinstance(shape, dict) else shape.value)
    elif isinstance(shape, list):
        names = [_called(entry, n) for n, entry in enumerate(value or [])]
        for name, entry in zip(names, value or [], strict=True):
            yield from _below(f"[{name}]", entry, shape[0])
            if names.count(name) > 1:
                yield f"[{name}]", "occurs twice"
    elif isinstance(shape, tuple | range) and value not in shape:
        yield "", f"must be {_words(shape)}, is {value!r}"
    elif isinstance(shape, re.Pattern) and not shape.fullmatch(str(value)):
        yield "", f"must be like {shape.pattern}, is {value!r}"


def _below(step: str, value: Any, shape: Shape) -> Iterator[tuple[str, str]]:
    return ((step + path, problem) for path, problem in _walk(value, shape))


def _called(entry: Any, place: int) -> str:
    """The entry of a list, as messages name it."""
    return (
        str(entry.get("mountPath") or entry.get("name") or place) if isinstance(entry, dict) else str(place)
    )


def _words(shape: tuple[Any, ...] | range) -> str:
    return f"from {shape[0]} to {shape[-1]}" if isinstance(shape, range) else " or ".join(map(str, shape))
