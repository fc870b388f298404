"""Faults that the schemas accept, but an API server, the operator or a network plugin mishandles."""

from __future__ import annotations

import copy

from kube_faults import (
    CRON,
    HEAD,
    JOB,
    RAY,
    REMOVED,
    REPORT,
    TRAINING,
    WEB,
    WORKER,
    C,
    Fault,
    with_entries,
    with_item,
)

POD = "spec.template.spec"
SUBMITTER = "spec.submitterPodTemplate.spec"
CRON_JOB = "CronJob/report"
CLIENT = "glassbox/ray-client"
API = "NetworkPolicy/ray-api"

RULES = "PrometheusRule/training"
RULE = "spec.groups.0.rules.0"

FIELDS: dict[str, Fault] = {
    # Fields that the operator acts on.
    "the head on a load balancer": (
        RAY,
        "spec.headGroupSpec.serviceType",
        "LoadBalancer",
        "headGroupSpec.serviceType",
    ),
    "the head behind an ingress": (
        RAY,
        "spec.headGroupSpec.enableIngress",
        True,
        "headGroupSpec.enableIngress",
    ),
    "authentication disabled in a container": (
        RAY,
        f"{WORKER}.{C}.env",
        [{"name": "RAY_AUTH_MODE", "value": "disabled"}],
        "containers[ray-worker].env[RAY_AUTH_MODE]: must be token, is disabled",
    ),
    "Kubernetes tokens for authentication": (
        RAY,
        "spec.authOptions.enableK8sTokenAuth",
        True,
        "spec.authOptions.enableK8sTokenAuth",
    ),
    "an annotation that overrides Ray's command": (
        RAY,
        "metadata.annotations",
        {"ray.io/overwrite-container-cmd": "true"},
        "metadata.annotations",
    ),
    "a command that runs before Ray and never ends": (
        RAY,
        f"{HEAD}.{C}.command",
        ["sleep", "infinity"],
        "containers[ray-head].command",
    ),
    "another container before Ray's": (
        RAY,
        f"{HEAD}.containers",
        lambda old: [copy.deepcopy(old[0]) | {"name": "side"}, *old],
        "containers[ray-head].env[RAY_AUTH_MODE]",
    ),
    "metrics at a port that nobody scrapes": (
        RAY,
        "spec.workerGroupSpecs.0.rayStartParams.metrics-export-port",
        "9090",
        "rayStartParams.metrics-export-port",
    ),
    "a string instead of a mapping": (
        RAY,
        "spec.authOptions",
        "token",
        "spec.authOptions: must be a mapping",
    ),
    "a suspended group": (RAY, "spec.workerGroupSpecs.0.suspend", True, "workerGroupSpecs[0].suspend"),
    "several hosts per replica": (
        RAY,
        "spec.workerGroupSpecs.0.numOfHosts",
        2,
        "workerGroupSpecs[0].numOfHosts",
    ),
    "a missing Redis": (
        RAY,
        f"{HEAD}.{C}.env",
        [{"name": "RAY_REDIS_ADDRESS", "value": "r:6379"}],
        "env[RAY_REDIS_ADDRESS]",
    ),
    "a RayJob that retries": (TRAINING, "spec.backoffLimit", 2, "spec.backoffLimit"),
    "a training that does not fit the cluster": (
        TRAINING,
        "spec.entrypoint",
        "glassbox train --preset demo --data /shards/a --out /runs/a --workers 2 --gpus-per-worker 8",
        "spec.entrypoint: there is no room",
    ),
    "a training with an unknown setting": (
        TRAINING,
        "spec.entrypoint",
        "glassbox train --preset demo --data /shards/a --out /runs/a epoch=2",
        "spec.entrypoint: Expected a known key",
    ),
    "a submitter without authentication": (
        TRAINING,
        f"{SUBMITTER}.{C}.env",
        [{"name": "RAY_AUTH_MODE", "value": "disabled"}],
        "containers[ray-job-submitter].env[RAY_AUTH_MODE]",
    ),
    "a submitter that the policies block": (
        TRAINING,
        "spec.submitterPodTemplate.metadata.labels",
        {},
        "RayJob/first submitter does not reach",
    ),
    # Fields that the API server or a kubelet rejects or misreads.
    "a probe at a closed port": (
        WEB,
        f"{POD}.{C}.readinessProbe.tcpSocket.port",
        "web",
        "containers[web].readinessProbe.tcpSocket.port",
    ),
    "a probe at an unknown path of Ray's agent": (
        RAY,
        f"{HEAD}.{C}.livenessProbe.httpGet.path",
        "/healthz",
        "livenessProbe.httpGet: must query",
    ),
    "a probe with a zero timeout": (
        RAY,
        f"{WORKER}.{C}.livenessProbe.timeoutSeconds",
        0,
        "livenessProbe.timeoutSeconds",
    ),
    "a probe with two handlers": (
        WEB,
        f"{POD}.{C}.livenessProbe.httpGet",
        {"path": "/", "port": "http"},
        "containers[web].livenessProbe: must have one handler",
    ),
    "a port name that is too long": (
        RAY,
        f"{HEAD}.{C}.ports.4.name",
        "dashboard-metrics",
        "ports[dashboard-metrics].name",
    ),
    "a port number out of range": (
        WEB,
        f"{POD}.{C}.ports.0.containerPort",
        70000,
        "ports[http].containerPort",
    ),
    "duplicate port names": (RAY, f"{HEAD}.{C}.ports.1.name", "metrics", "ports[metrics]: occurs twice"),
    "duplicate volume names": (
        JOB,
        f"{POD}.volumes",
        with_item({"name": "tmp", "emptyDir": {"sizeLimit": "1Mi"}}),
        "volumes[tmp]: occurs twice",
    ),
    "a volume with two sources": (
        JOB,
        f"{POD}.volumes.1",
        with_entries(configMap={"name": "s3"}),
        "volumes[tmp]: must have one source",
    ),
    "a mount path with ..": (
        JOB,
        f"{POD}.{C}.volumeMounts.1.mountPath",
        "/shards/../etc",
        "volumeMounts[/shards/../etc].mountPath",
    ),
    "a label value with a space": (JOB, "spec.template.metadata.labels.team", "a b", "metadata.labels.team"),
    "a misspelled toleration effect": (
        RAY,
        f"{WORKER}.tolerations.0.effect",
        "NoSchedul",
        "tolerations[0].effect",
    ),
    "an unknown resource": (JOB, f"{POD}.{C}.resources.limits.gpu", "1", "resources.limits.gpu"),
    "a system priority": (
        "PriorityClass/glassbox-training",
        "value",
        2 * 10**9,
        "PriorityClass/glassbox-training: value",
    ),
    "a preempting priority": (
        "PriorityClass/glassbox-training",
        "preemptionPolicy",
        REMOVED,
        "preemptionPolicy",
    ),
    "a global default priority": ("PriorityClass/glassbox-training", "globalDefault", True, "globalDefault"),
    "a Deployment that selects pods of others": (
        WEB,
        "spec.selector.matchLabels",
        {"app.kubernetes.io/name": "shards"},
        "spec.selector",
    ),
    "a shards Job with parallelism 2": (JOB, "spec.parallelism", 2, "Job/shards: spec.parallelism"),
    "a local time zone": (CRON_JOB, "spec.timeZone", "America/New_York", "spec.timeZone: must be Etc/UTC"),
    "reports into a read-only mount": (
        CRON_JOB,
        f"{REPORT}.{C}.volumeMounts.1.readOnly",
        True,
        "containers[report].args: /runs is mounted",
    ),
    "reports into a read-only claim": (
        CRON_JOB,
        f"{REPORT}.volumes.1.persistentVolumeClaim.readOnly",
        True,
        "containers[report].args: /runs is mounted read-only",
    ),
    "a local Ray with /dev/shm on disk": (
        CRON_JOB,
        f"{REPORT}.volumes.3.emptyDir.medium",
        REMOVED,
        "volumes[shared-mem].emptyDir.medium",
    ),
    "a local Ray with a small /dev/shm": (
        CRON_JOB,
        f"{REPORT}.volumes.3.emptyDir.sizeLimit",
        "128Mi",
        "CronJob/report: spec.jobTemplate.spec.template.spec.volumes: the pod's local Ray needs",
    ),
    "a grace period too short to save": (
        RAY,
        f"{WORKER}.terminationGracePeriodSeconds",
        1,
        "terminationGracePeriodSeconds",
    ),
    "covered resources in another order": (
        "ClusterQueue/glassbox",
        "spec.resourceGroups.0.coveredResources",
        ["cpu"],
        "coveredResources",
    ),
    "a queue without its namespace": (
        "ClusterQueue/glassbox",
        "spec.namespaceSelector",
        REMOVED,
        "spec.namespaceSelector",
    ),
    "a dashboard without Grafana's label": (
        "ConfigMap/training-dashboard",
        "metadata.labels",
        {},
        "metadata.labels.grafana_dashboard",
    ),
    # Pod Security, and what the restricted standard does not cover.
    "an SELinux type": (
        RAY,
        f"{HEAD}.securityContext.seLinuxOptions",
        {"type": "spc_t"},
        "securityContext.seLinuxOptions",
    ),
    "an unconfined AppArmor profile": (
        RAY,
        f"{HEAD}.{C}.securityContext.appArmorProfile",
        {"type": "Unconfined"},
        "securityContext.appArmorProfile",
    ),
    "the root group": (RAY, f"{WORKER}.securityContext.runAsGroup", 0, "securityContext.runAsGroup"),
    "root as a supplemental group": (
        RAY,
        f"{WORKER}.securityContext.supplementalGroups",
        [0],
        "securityContext.supplementalGroups",
    ),
    "a projected service account token": (
        JOB,
        f"{POD}.volumes",
        with_item({"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}),
        "volumes[t].projected",
    ),
    "a pinned old Pod Security version": (
        "Namespace/glassbox",
        "metadata.labels.pod-security~kubernetes~io/enforce-version",
        "v1.20",
        "pod-security.kubernetes.io/enforce-version",
    ),
    "external IPs": ("Service/reports", "spec.externalIPs", ["203.0.113.9"], "spec.externalIPs"),
    # Network policies that a plugin reads differently.
    "a port range": (API, "spec.ingress.0.ports.0.endPort", 65535, "ports[0].endPort"),
    "all UDP ports": (API, "spec.ingress.0.ports", with_item({"protocol": "UDP"}), "spec.ingress.ports"),
    "two peers instead of one with both selectors": (
        API,
        "spec.ingress.0.from",
        lambda old: [old[0], *({key: value} for key, value in old[1].items())],
        "another pod in the operator's namespace reaches RayCluster/glassbox head at port 8265",
    ),
    "an expression that excludes the operator": (
        API,
        "spec.ingress.0.from.1.podSelector.matchExpressions",
        [{"key": "app.kubernetes.io/component", "operator": "DoesNotExist"}],
        "podSelector.matchExpressions",
    ),
    "DNS at any address": (
        "NetworkPolicy/names",
        "spec.egress.0.to",
        REMOVED,
        "reaches the address 10.1.2.3 at port 53",
    ),
    "a default-deny policy in another namespace": (
        "NetworkPolicy/default-deny",
        "metadata.namespace",
        "default",
        "metadata.namespace",
    ),
    "a report job with the client label": (
        CRON_JOB,
        f"{CRON}.template.metadata.labels.{CLIENT}",
        "true",
        "CronJob/report cronjob reaches RayCluster",
    ),
    "a report job with the cluster's label": (
        CRON_JOB,
        f"{CRON}.template.metadata.labels.ray~io/is-ray-node",
        "yes",
        "CronJob/report cronjob reaches RayCluster/glassbox head at port 6379",
    ),
    "unrestricted egress for clients": (
        "NetworkPolicy/ray-client",
        "spec.egress.0.to",
        REMOVED,
        "a client with the label reaches",
    ),
    "egress rules in an ingress policy": (
        "NetworkPolicy/reports",
        "spec.egress",
        [{}],
        "NetworkPolicy/reports: spec.egress: has no effect",
    ),
    # The login in front of Ray's dashboard.
    "a dashboard for all pods next to the login": (
        "NetworkPolicy/dashboard",
        "spec.ingress.0.from.0.podSelector",
        REMOVED,
        "another pod next to the login reaches RayCluster/glassbox head at port 8265",
    ),
    "a dashboard for logins of all namespaces": (
        "NetworkPolicy/dashboard",
        "spec.ingress.0.from.0.namespaceSelector",
        {},
        "a login in another namespace reaches RayCluster/glassbox head at port 8265",
    ),
    "a dashboard's login that reaches all ports": (
        "NetworkPolicy/dashboard",
        "spec.ingress.0.ports",
        REMOVED,
        "the dashboard's login reaches RayCluster/glassbox head at port 6379",
    ),
    "a dashboard's login that reaches workers": (
        "NetworkPolicy/dashboard",
        "spec.podSelector.matchLabels.ray~io/node-type",
        REMOVED,
        "the dashboard's login reaches RayCluster/glassbox worker at port 8265",
    ),
    "a dashboard's login that is not admitted": (
        "NetworkPolicy/dashboard",
        "spec.ingress.0.ports.0.port",
        8266,
        "the dashboard's login does not reach RayCluster/glassbox head",
    ),
    # Alerts and dashboards.
    "an alert on a gauge that is not exported": (
        RULES,
        f"{RULE}.expr",
        "ray_glassbox_input_stall > 0.3",
        "no metric ray_glassbox_input_stall is exported",
    ),
    "an alert on no metric": (RULES, f"{RULE}.expr", "vector(1)", "expr: queries no metric"),
    "an alert without a severity": (RULES, f"{RULE}.labels", REMOVED, "labels.severity: missing"),
    "an alert that says nothing": (RULES, f"{RULE}.annotations.summary", REMOVED, "annotations.summary"),
    "an alert that does not say what to do": (
        RULES,
        f"{RULE}.annotations.description",
        REMOVED,
        "annotations.description",
    ),
    "an alert without a unit of time": (RULES, f"{RULE}.for", 900, "rules[0].for: must match"),
    "an unknown severity": (RULES, f"{RULE}.labels.severity", "bad", "labels.severity: must be"),
    "a dashboard of a gauge that is gone": (
        "ConfigMap/training-dashboard",
        "data.glassbox-training~json",
        lambda old: old.replace("ray_glassbox_val_accuracy", "ray_glassbox_validation_accuracy"),
        "no metric ray_glassbox_validation_accuracy is exported",
    ),
    "a dashboard of an unknown GPU metric": (
        "ConfigMap/training-dashboard",
        "data.glassbox-training~json",
        lambda old: old.replace("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_USAGE"),
        "no metric DCGM_FI_DEV_FB_USAGE is exported",
    ),
}
