"""Allow-list of manifest fields: a field that no schema below contains is refused.

Most of what exposes a pod or a cluster is one additional field, so an allow-list catches more than a list of
forbidden fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kube_pods import name_of
from kube_render import Document

WRONG_TYPE = "must be a"  # begins messages after which the other checks cannot run


@dataclass(frozen=True)
class MapOf:
    """Schema of a mapping with arbitrary keys, such as labels.

    Attributes:
        key: Pattern that every key must match.
        value: Pattern that every value must match.
    """

    key: re.Pattern[str]
    value: re.Pattern[str]


# A mapping of allowed fields; a list whose items have one schema; a tuple of allowed values; a range of
# numbers; a pattern; None where only the Kubernetes schemas and the other checks apply.
Schema = dict[str, "Schema"] | list["Schema"] | tuple[Any, ...] | range | re.Pattern[str] | MapOf | None

NAME = re.compile(r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
VARIABLE = re.compile(r"[A-Za-z_]\w*")
# The operator keeps variables that a Ray container sets, such as RAY_AUTH_MODE=disabled.
RAY_VARIABLE = re.compile(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S|(?!RAY_|REDIS_)[A-Za-z_]\w*")
MOUNT_PATH = re.compile(r"(/(?!\.\.?(/|$))[^/:]+)+")
LABEL_KEY = re.compile(r"([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?(?=.{1,63}$)[A-Za-z0-9]([-.\w]*[A-Za-z0-9])?")
LABELS = MapOf(LABEL_KEY, re.compile(r"(?=.{0,63}$)([A-Za-z0-9]([-.\w]*[A-Za-z0-9])?)?"))
SELECTOR: Schema = {"matchLabels": LABELS}
PORT = range(1, 65536)
SECONDS = range(1, 601)
THRESHOLD = range(1, 1001)
INTERVAL = re.compile(r"[1-9]\d*[sm]")

PROBE: Schema = {
    "httpGet": {"path": re.compile(r"/.*"), "port": None},
    "tcpSocket": {"port": None},
    "periodSeconds": SECONDS,
    "timeoutSeconds": SECONDS,
    "failureThreshold": THRESHOLD,
}
CONTAINER: dict[str, Schema] = {
    "name": NAME,
    "image": None,
    "imagePullPolicy": ("Always", "IfNotPresent"),
    "env": [{"name": VARIABLE, "value": None, "valueFrom": {"secretKeyRef": {"name": None, "key": None}}}],
    "envFrom": [{"configMapRef": {"name": None}}],
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
    "volumeMounts": [{"name": NAME, "mountPath": MOUNT_PATH, "readOnly": (True, False)}],
}
COMMAND: dict[str, Schema] = {"command": None, "args": None}
# Ray containers have no command: the operator sets it.
NODE_NAME: Schema = {"fieldRef": {"fieldPath": ("spec.nodeName",)}}
RAY_CONTAINER = CONTAINER | {
    "lifecycle": {"preStop": {"exec": {"command": None}}},
    "env": [{"name": RAY_VARIABLE, "value": None, "valueFrom": NODE_NAME}],
}
OWN_FIELD: Schema = {
    "fieldRef": {"fieldPath": re.compile(r"metadata\.(name|namespace|labels\['glassbox/run'])")}
}
SIDECAR: dict[str, Schema] = CONTAINER | {
    **COMMAND,
    "name": ("logs",),
    "restartPolicy": ("Always",),
    "env": [{"name": VARIABLE, "valueFrom": OWN_FIELD}],
}
POD: dict[str, Schema] = {
    "serviceAccountName": None,
    "automountServiceAccountToken": (False,),
    "enableServiceLinks": (False,),
    "priorityClassName": NAME,
    "nodeSelector": LABELS,
    "tolerations": [{"key": LABEL_KEY, "operator": ("Exists",), "effect": ("NoSchedule",)}],
    "affinity": {
        "podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": range(1, 101),
                    "podAffinityTerm": {
                        "topologyKey": LABEL_KEY,
                        "labelSelector": SELECTOR,
                        "matchLabelKeys": [("ray.io/cluster",)],
                    },
                }
            ]
        }
    },
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
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {
                        "accessModes": [("ReadWriteOnce",)],
                        "storageClassName": NAME,
                        "resources": {"requests": {"storage": None}},
                    }
                }
            },
        }
    ],
}


POD_ANNOTATIONS: Schema = {"cluster-autoscaler.kubernetes.io/safe-to-evict": ("false",)}


def pod_template(container: dict[str, Schema], **pod_fields: Schema) -> Schema:
    """Returns the schema of a pod template.

    Args:
        container: Schema of every container.
        **pod_fields: Fields that the pod spec allows in addition.
    """
    metadata: Schema = {"labels": LABELS, "annotations": POD_ANNOTATIONS}
    return {"metadata": metadata, "spec": POD | {"containers": [container]} | pod_fields}


HEAD_GROUP: Schema = {
    "rayStartParams": {"num-cpus": None, "dashboard-host": None, "object-store-memory": None},
    "template": pod_template(RAY_CONTAINER, initContainers=[SIDECAR]),
}
WORKER_GROUP: Schema = {
    "groupName": NAME,
    "replicas": None,
    "minReplicas": None,
    "maxReplicas": None,
    "rayStartParams": {"object-store-memory": None},
    "template": pod_template(RAY_CONTAINER, initContainers=[SIDECAR]),
}
JOB: dict[str, Schema] = {
    "backoffLimit": range(11),
    "activeDeadlineSeconds": None,
    "ttlSecondsAfterFinished": range(601),
    "template": pod_template(CONTAINER | COMMAND, restartPolicy=("Never", "OnFailure")),
}
METADATA: dict[str, Schema] = {"name": None, "namespace": NAME, "labels": LABELS}
# Identities at the cloud providers: AWS, Google Cloud, Azure.
IDENTITY_ANNOTATIONS: Schema = {
    "eks.amazonaws.com/role-arn": re.compile(r"arn:aws[\w-]*:iam::\d{12}:role/[\w+=,.@/-]+"),
    "iam.gke.io/gcp-service-account": re.compile(r"[a-z][-a-z0-9]+@[-a-z0-9.]+\.iam\.gserviceaccount\.com"),
    "azure.workload.identity/client-id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
}
PEER: Schema = {
    "podSelector": SELECTOR,
    "namespaceSelector": SELECTOR,
    "ipBlock": {"cidr": None, "except": None},
}
POLICY_PORTS: Schema = [{"protocol": ("TCP", "UDP"), "port": PORT}]
PREEMPTION: Schema = {
    "reclaimWithinCohort": ("Any", "LowerPriority", "Never"),
    "withinClusterQueue": ("LowerPriority", "LowerOrNewerEqualPriority", "Never"),
}
FLAVOR: Schema = {"name": None, "resources": [{"name": None, "nominalQuota": None}]}
ALERT: Schema = {
    "alert": re.compile(r"Glassbox[A-Z]\w+"),
    "expr": None,
    "for": INTERVAL,
    "labels": {"severity": ("warning", "critical")},
    "annotations": {"summary": None, "description": None},
}
CLUSTER: dict[str, Schema] = {
    "rayVersion": None,
    "authOptions": {"mode": ("token",), "secretName": None},
    "headGroupSpec": HEAD_GROUP,
    "workerGroupSpecs": [WORKER_GROUP],
}
SPECS: dict[str, Schema] = {
    "PersistentVolumeClaim": {
        "accessModes": None,
        "resources": {"requests": {"storage": None}},
        "storageClassName": NAME,
    },
    "Service": {
        "selector": LABELS,
        "ports": [{"name": PORT_NAME, "port": PORT, "targetPort": None, "protocol": ("TCP",)}],
    },
    "Deployment": {
        "replicas": range(1, 10),
        "selector": SELECTOR,
        "template": pod_template(CONTAINER | COMMAND),
    },
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
        "ingress": [{"from": [PEER], "ports": POLICY_PORTS}],
        "egress": [{"to": [PEER], "ports": POLICY_PORTS}],
    },
    "CiliumNetworkPolicy": {
        "endpointSelector": SELECTOR,
        "egress": [
            {
                "toEndpoints": [{"matchLabels": None}],
                "toFQDNs": [{"matchName": re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")}],
                "toPorts": [
                    {
                        "ports": [{"port": ("53", "443"), "protocol": ("TCP", "ANY")}],
                        "rules": {"dns": [{"matchPattern": ("*",)}]},
                    }
                ],
            }
        ],
    },
    "Ingress": {
        "ingressClassName": NAME,
        "tls": [{"hosts": None, "secretName": NAME}],
        "rules": [
            {
                "host": re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+"),
                "http": {
                    "paths": [
                        {
                            "path": ("/",),
                            "pathType": ("Prefix",),
                            "backend": {"service": {"name": NAME, "port": {"name": PORT_NAME}}},
                        }
                    ]
                },
            }
        ],
    },
    "PodDisruptionBudget": {
        "minAvailable": None,
        "unhealthyPodEvictionPolicy": ("AlwaysAllow",),
        "selector": SELECTOR,
    },
    "RayCluster": CLUSTER
    | {"suspend": (True, False), "upgradeStrategy": {"type": ("Recreate",)}},  # of a standing cluster
    "RayJob": {
        "entrypoint": None,
        "clusterSelector": {"ray.io/cluster": None},
        "rayClusterSpec": CLUSTER | {"suspend": None, "upgradeStrategy": None},
        "shutdownAfterJobFinishes": None,
        "ttlSecondsAfterFinished": None,
        "activeDeadlineSeconds": None,
        "backoffLimit": range(11),
        "suspend": None,
        "submissionMode": ("K8sJobMode",),
        "submitterConfig": {"backoffLimit": range(4)},
        "submitterPodTemplate": pod_template(CONTAINER, restartPolicy=("Never",)),
    },
    "PrometheusRule": {"groups": [{"name": NAME, "rules": [ALERT]}]},
    "PodMonitor": {"selector": SELECTOR, "podMetricsEndpoints": [{"port": PORT_NAME, "interval": INTERVAL}]},
    "ResourceFlavor": None,
    "ClusterQueue": {
        "namespaceSelector": SELECTOR,
        "cohortName": NAME,
        "fairSharing": {"weight": None},
        "preemption": PREEMPTION,
        "resourceGroups": [{"coveredResources": None, "flavors": [FLAVOR]}],
    },
    "LocalQueue": {"clusterQueue": None},
}
DOCUMENTS: dict[str, dict[str, Schema]] = {kind: {"spec": schema} for kind, schema in SPECS.items()} | {
    "Namespace": {},
    "ServiceAccount": {
        "automountServiceAccountToken": (False,),
        "imagePullSecrets": [{"name": None}],
        "metadata": METADATA | {"annotations": IDENTITY_ANNOTATIONS},
    },
    "ConfigMap": {"data": None},
    "PriorityClass": {"value": range(1, 10**9 + 1), "preemptionPolicy": ("Never",), "description": None},
}
COMMON: dict[str, Schema] = {"apiVersion": None, "kind": None, "metadata": METADATA}


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for document in documents:
        where = name_of(document)
        kind = str(document.get("kind"))
        if kind not in DOCUMENTS:
            yield f"{where}: kind: not part of these manifests (create secrets by command, not from files)"
            continue
        for path, problem in _check_value(document, COMMON | DOCUMENTS[kind]):
            yield f"{where}: {path.removeprefix('.')}: {problem}"


def _check_value(value: Any, schema: Schema) -> Iterator[tuple[str, str]]:
    """Yields the path below `value` and the message of every problem."""
    if isinstance(schema, dict | MapOf):
        if value is not None and not isinstance(value, dict):
            yield "", f"{WRONG_TYPE} mapping, is {value!r}"
        else:
            yield from _check_mapping(value or {}, schema)
    elif isinstance(schema, list):
        if value is not None and not isinstance(value, list):
            yield "", f"{WRONG_TYPE} list, is {value!r}"
        else:
            yield from _check_list(value or [], schema[0])
    elif isinstance(schema, tuple):
        if value not in schema:
            yield "", f"must be {' or '.join(map(str, schema))}, is {value!r}"
    elif isinstance(schema, range):
        if value not in schema:
            yield "", f"must be from {schema[0]} to {schema[-1]}, is {value!r}"
    elif isinstance(schema, re.Pattern) and not schema.fullmatch(str(value)):
        yield "", f"must match {schema.pattern}, is {value!r}"


def _check_mapping(value: dict[str, Any], schema: dict[str, Schema] | MapOf) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(schema, MapOf):
            is_allowed = bool(schema.key.fullmatch(str(key)))
            inner_schema: Schema = schema.value
        else:
            is_allowed = key in schema
            inner_schema = schema.get(key)
        if is_allowed:
            yield from _check_below(f".{key}", inner, inner_schema)
        else:
            yield f".{key}", "field not allowed here"


def _check_list(items: list[Any], schema: Schema) -> Iterator[tuple[str, str]]:
    names = [_item_name(item, index) for index, item in enumerate(items)]
    for name, item in zip(names, items, strict=True):
        yield from _check_below(f"[{name}]", item, schema)
        if names.count(name) > 1:
            yield f"[{name}]", "occurs twice"


def _check_below(prefix: str, value: Any, schema: Schema) -> Iterator[tuple[str, str]]:
    for path, problem in _check_value(value, schema):
        yield prefix + path, problem


def _item_name(item: Any, index: int) -> str:
    """Returns how messages refer to a list item: by mount path, by name, or by index."""
    if not isinstance(item, dict):
        return str(index)
    return str(item.get("mountPath") or item.get("name") or index)
