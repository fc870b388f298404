"""Faults that schemas let pass: an API server, the operator or a network plugin refuses them, or opens something without a word."""

from __future__ import annotations

import copy
from typing import Any

from kube_faults import CRON, GONE, HEAD, JOB, RAY, REPORT, TRAINING, WEB, WORKER, C, also, more

POD, CRONJOB, CLIENT, S3, API = (
    "spec.template.spec",
    "CronJob/report",
    "glassbox/ray-client",
    "NetworkPolicy/s3",
    "NetworkPolicy/ray-api",
)
SUBMITTER = "spec.submitterPodTemplate.spec"

FIELDS: dict[str, tuple[str, str, Any, str]] = {
    # what the operator would do with it
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
    "a token switched off in a container": (
        RAY,
        f"{WORKER}.{C}.env",
        [{"name": "RAY_AUTH_MODE", "value": "disabled"}],
        "containers[ray-worker].env[RAY_AUTH_MODE]: must be token, is disabled",
    ),
    "a token beside that of Kubernetes": (
        RAY,
        "spec.authOptions.enableK8sTokenAuth",
        True,
        "spec.authOptions.enableK8sTokenAuth",
    ),
    "a command of one's own in place of Ray": (
        RAY,
        "metadata.annotations",
        {"ray.io/overwrite-container-cmd": "true"},
        "metadata.annotations",
    ),
    "a command before Ray that never ends": (
        RAY,
        f"{HEAD}.{C}.command",
        ["sleep", "infinity"],
        "containers[ray-head].command",
    ),
    "another container in the place of Ray's": (
        RAY,
        f"{HEAD}.containers",
        lambda old: [copy.deepcopy(old[0]) | {"name": "side"}, *old],
        "containers[ray-head].env[RAY_AUTH_MODE]",
    ),
    "metrics where nobody asks": (
        RAY,
        "spec.workerGroupSpecs.0.rayStartParams.metrics-export-port",
        "9090",
        "rayStartParams.metrics-export-port",
    ),
    "words where a table stands": (RAY, "spec.authOptions", "token", "spec.authOptions: must be a mapping"),
    "a group that sleeps": (RAY, "spec.workerGroupSpecs.0.suspend", True, "workerGroupSpecs[0].suspend"),
    "several hosts a replica": (
        RAY,
        "spec.workerGroupSpecs.0.numOfHosts",
        2,
        "workerGroupSpecs[0].numOfHosts",
    ),
    "a Redis that is not there": (
        RAY,
        f"{HEAD}.{C}.env",
        [{"name": "RAY_REDIS_ADDRESS", "value": "r:6379"}],
        "env[RAY_REDIS_ADDRESS]",
    ),
    "a second try of a training": (
        TRAINING,
        "spec.submitterConfig.backoffLimit",
        3,
        "spec.submitterConfig.backoffLimit",
    ),
    "another try on a standing cluster": (TRAINING, "spec.backoffLimit", 2, "spec.backoffLimit"),
    "a training wider than the cluster": (
        TRAINING,
        "spec.entrypoint",
        "glassbox train --preset demo --data /shards/a --out /runs/a --workers 2 --gpus-per-worker 8",
        "spec.entrypoint: there is no room",
    ),
    "a training of an unknown setting": (
        TRAINING,
        "spec.entrypoint",
        "glassbox train --preset demo --data /shards/a --out /runs/a epoch=2",
        "spec.entrypoint: Expected a known key",
    ),
    "a submitter without the token": (
        TRAINING,
        f"{SUBMITTER}.{C}.env",
        lambda old: old[:1],
        "containers[ray-job-submitter].env[RAY_AUTH_TOKEN]",
    ),
    "a submitter that nobody lets in": (
        TRAINING,
        "spec.submitterPodTemplate.metadata.labels",
        {},
        "RayJob/first submitter does not reach",
    ),
    # what the API server or a kubelet would do with it
    "a probe at a port nobody opens": (
        WEB,
        f"{POD}.{C}.readinessProbe.tcpSocket.port",
        "web",
        "containers[web].readinessProbe.tcpSocket.port",
    ),
    "a probe that Ray does not answer": (
        RAY,
        f"{HEAD}.{C}.livenessProbe.httpGet.path",
        "/healthz",
        "livenessProbe.httpGet: must ask",
    ),
    "a probe without time": (
        RAY,
        f"{WORKER}.{C}.livenessProbe.timeoutSeconds",
        0,
        "livenessProbe.timeoutSeconds",
    ),
    "a probe in two ways": (
        WEB,
        f"{POD}.{C}.livenessProbe.httpGet",
        {"path": "/", "port": "http"},
        "containers[web].livenessProbe: must ask",
    ),
    "a port with a long name": (
        RAY,
        f"{HEAD}.{C}.ports.4.name",
        "dashboard-metrics",
        "ports[dashboard-metrics].name",
    ),
    "a port that no machine has": (
        WEB,
        f"{POD}.{C}.ports.0.containerPort",
        70000,
        "ports[http].containerPort",
    ),
    "two ports of one name": (RAY, f"{HEAD}.{C}.ports.1.name", "metrics", "ports[metrics]: occurs twice"),
    "two volumes of one name": (
        JOB,
        f"{POD}.volumes",
        also({"name": "tmp", "emptyDir": {"sizeLimit": "1Mi"}}),
        "volumes[tmp]: occurs twice",
    ),
    "a volume of two kinds": (
        JOB,
        f"{POD}.volumes.1",
        more(configMap={"name": "s3"}),
        "volumes[tmp]: must be of one kind",
    ),
    "a path that climbs": (
        JOB,
        f"{POD}.{C}.volumeMounts.1.mountPath",
        "/shards/../etc",
        "volumeMounts[/shards/../etc].mountPath",
    ),
    "a label with blanks": (JOB, "spec.template.metadata.labels.team", "a b", "metadata.labels.team"),
    "a toleration of a misspelled effect": (
        RAY,
        f"{WORKER}.tolerations.0.effect",
        "NoSchedul",
        "tolerations[0].effect",
    ),
    "a resource of nobody's": (JOB, f"{POD}.{C}.resources.limits.gpu", "1", "resources.limits.gpu"),
    "a priority of the system's": (
        "PriorityClass/glassbox-training",
        "value",
        2 * 10**9,
        "PriorityClass/glassbox-training: value",
    ),
    "a priority that throws others out": (
        "PriorityClass/glassbox-training",
        "preemptionPolicy",
        GONE,
        "preemptionPolicy",
    ),
    "a priority for the whole cluster": (
        "PriorityClass/glassbox-training",
        "globalDefault",
        True,
        "globalDefault",
    ),
    "a server that chooses others' pods": (
        WEB,
        "spec.selector.matchLabels",
        {"app.kubernetes.io/name": "shards"},
        "spec.selector",
    ),
    "two builders of one set": (JOB, "spec.parallelism", 2, "Job/shards: spec.parallelism"),
    "hours of another place": (
        CRONJOB,
        "spec.timeZone",
        "America/New_York",
        "spec.timeZone: must be Etc/UTC",
    ),
    "reports into a read-only volume": (
        CRONJOB,
        f"{REPORT}.{C}.volumeMounts.1.readOnly",
        True,
        "containers[report].args: /runs is mounted",
    ),
    "reports into a read-only claim": (
        CRONJOB,
        f"{REPORT}.volumes.1.persistentVolumeClaim.readOnly",
        True,
        "containers[report].args: /runs is mounted read-only",
    ),
    "a Ray of the pod's own on disk": (
        CRONJOB,
        f"{REPORT}.volumes.3.emptyDir.medium",
        GONE,
        "volumes[shared-mem].emptyDir.medium",
    ),
    "a Ray of the pod's own without room": (
        CRONJOB,
        f"{REPORT}.volumes.3.emptyDir.sizeLimit",
        "128Mi",
        "CronJob/report: spec.jobTemplate.spec.template.spec.volumes: a Ray of the pod's own takes",
    ),
    "no time to save at the end": (
        RAY,
        f"{WORKER}.terminationGracePeriodSeconds",
        1,
        "terminationGracePeriodSeconds",
    ),
    "a variable nobody sets": (
        "Job/shards-from-s3",
        f"{POD}.{C}.args.0",
        "s3://$(BUCKETS)/a",
        "args: there is no variable BUCKETS",
    ),
    "a variable for a shell": (
        "Job/shards-from-s3",
        f"{POD}.{C}.args.0",
        "s3://${BUCKET}/a",
        "args: no shell reads",
    ),
    "a quota in another order": (
        "ClusterQueue/glassbox",
        "spec.resourceGroups.0.coveredResources",
        ["cpu"],
        "coveredResources",
    ),
    "a queue for another namespace": (
        "ClusterQueue/glassbox",
        "spec.namespaceSelector",
        GONE,
        "spec.namespaceSelector",
    ),
    "a dashboard that Grafana passes over": (
        "ConfigMap/training-dashboard",
        "metadata.labels",
        {},
        "metadata.labels.grafana_dashboard",
    ),
    # what the restricted standard refuses, or lets through
    "a profile of SELinux": (
        RAY,
        f"{HEAD}.securityContext.seLinuxOptions",
        {"type": "spc_t"},
        "securityContext.seLinuxOptions",
    ),
    "no profile of AppArmor": (
        RAY,
        f"{HEAD}.{C}.securityContext.appArmorProfile",
        {"type": "Unconfined"},
        "securityContext.appArmorProfile",
    ),
    "the group of root": (RAY, f"{WORKER}.securityContext.runAsGroup", 0, "securityContext.runAsGroup"),
    "another group of root's": (
        RAY,
        f"{WORKER}.securityContext.supplementalGroups",
        [0],
        "securityContext.supplementalGroups",
    ),
    "a token by the back door": (
        JOB,
        f"{POD}.volumes",
        also({"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}),
        "volumes[t].projected",
    ),
    "an old standard": (
        "Namespace/glassbox",
        "metadata.labels.pod-security~kubernetes~io/enforce-version",
        "v1.20",
        "pod-security.kubernetes.io/enforce-version",
    ),
    "addresses of the outside": ("Service/reports", "spec.externalIPs", ["203.0.113.9"], "spec.externalIPs"),
    # what a network plugin would do with it
    "ports up to the last": (API, "spec.ingress.0.ports.0.endPort", 65535, "ports[0].endPort"),
    "all ports of another protocol": (
        API,
        "spec.ingress.0.ports",
        also({"protocol": "UDP"}),
        "spec.ingress.ports",
    ),
    "or in place of and": (
        API,
        "spec.ingress.0.from",
        lambda old: [old[0], *({key: value} for key, value in old[1].items())],
        "another pod beside the operator reaches RayCluster/glassbox head at port 8265",
    ),
    "an expression that shuts the operator out": (
        API,
        "spec.ingress.0.from.1.podSelector.matchExpressions",
        [{"key": "app.kubernetes.io/component", "operator": "DoesNotExist"}],
        "podSelector.matchExpressions",
    ),
    "the other internet": (
        S3,
        "spec.egress.0.to",
        also({"ipBlock": {"cidr": "::/0"}}),
        "reaches the address 2001:db8::7",
    ),
    "the cluster's own addresses": (
        S3,
        "spec.egress.0.to.0.ipBlock.except.0",
        GONE,
        "reaches the address 10.1.2.3",
    ),
    "an address of 33 bits": (S3, "spec.egress.0.to.0.ipBlock.cidr", "0.0.0.0/33", "ipBlock.cidr"),
    "names of anyone": (
        "NetworkPolicy/names",
        "spec.egress.0.to",
        GONE,
        "reaches the address 10.1.2.3 at port 53",
    ),
    "a wall in another namespace": (
        "NetworkPolicy/default-deny",
        "metadata.namespace",
        "default",
        "metadata.namespace",
    ),
    "reports that may submit": (
        CRONJOB,
        f"{CRON}.template.metadata.labels.{CLIENT}",
        "true",
        "CronJob/report cronjob reaches RayCluster",
    ),
    "reports inside the cluster": (
        CRONJOB,
        f"{CRON}.template.metadata.labels.ray~io/cluster",
        "glassbox",
        "CronJob/report cronjob reaches RayCluster/glassbox head at port 6379",
    ),
    "a server on the internet": (
        WEB,
        "spec.template.metadata.labels.glassbox/s3-client",
        "true",
        "reports deployment reaches a store",
    ),
    "a client that goes anywhere": (
        "NetworkPolicy/ray-client",
        "spec.egress.0.to",
        GONE,
        "a client with the label reaches",
    ),
    "rules of no effect": (
        "NetworkPolicy/reports",
        "spec.egress",
        [{}],
        "NetworkPolicy/reports: spec.egress: of no effect",
    ),
}
