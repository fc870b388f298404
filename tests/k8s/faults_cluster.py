"""Faults of the cluster: document, place, value, and what the message says."""

from __future__ import annotations

from typing import Any

from kube_faults import GONE, HEAD, JOB, RAY, TRAINING, WEB, WORKER, C

CLUSTER: dict[str, tuple[str, str, Any, str]] = {
    # the operator's rules
    "a number where ray start takes words": (
        RAY,
        "spec.headGroupSpec.rayStartParams.num-cpus",
        0,
        "rayStartParams.num-cpus",
    ),
    "training on the head": (
        RAY,
        "spec.headGroupSpec.rayStartParams.num-cpus",
        "2",
        "headGroupSpec.rayStartParams.num-cpus",
    ),
    "an option ray start lacks": (
        RAY,
        "spec.workerGroupSpecs.0.rayStartParams.num_cpus",
        "4",
        "workerGroupSpecs[0].rayStartParams.num_cpus",
    ),
    "more replicas than the most": (
        RAY,
        "spec.workerGroupSpecs.0.replicas",
        3,
        "workerGroupSpecs[0].minReplicas, replicas, maxReplicas",
    ),
    "a group without its least size": (
        RAY,
        "spec.workerGroupSpecs.0.minReplicas",
        GONE,
        "workerGroupSpecs[0].minReplicas",
    ),
    "two groups of one name": (
        RAY,
        "spec.workerGroupSpecs",
        lambda old: old * 2,
        "workerGroupSpecs[0].groupName",
    ),
    "a name too long for its services": (RAY, "metadata.name", "g" * 54, "metadata.name: 54 characters"),
    "a name that begins with a digit": (RAY, "metadata.name", "1glassbox", "metadata.name"),
    "no token": (RAY, "spec.authOptions.mode", "disabled", "spec.authOptions.mode"),
    "no secret for the token": (RAY, "spec.authOptions.secretName", GONE, "spec.authOptions.secretName"),
    "a secret nobody makes": (
        RAY,
        "spec.authOptions.secretName",
        "tokens",
        "env[RAY_AUTH_TOKEN].valueFrom.secretKeyRef.name",
    ),
    "a Ray before tokens": (RAY, "spec.rayVersion", "2.51.1", "spec.rayVersion: tokens need"),
    "a field of another version": (RAY, "spec.authentication", {"mode": "token"}, "spec.authentication"),
    "an autoscaler": (RAY, "spec.enableInTreeAutoscaling", True, "spec.enableInTreeAutoscaling"),
    "a dashboard for the head alone": (
        RAY,
        "spec.headGroupSpec.rayStartParams.dashboard-host",
        GONE,
        "rayStartParams.dashboard-host",
    ),
    "an object store larger than its memory": (
        RAY,
        "spec.headGroupSpec.rayStartParams.object-store-memory",
        "9000000000",
        "headGroupSpec.rayStartParams.object-store-memory",
    ),
    "shared memory on disk": (
        RAY,
        f"{WORKER}.volumes.3.emptyDir.medium",
        GONE,
        "volumes[shared-mem].emptyDir.medium",
    ),
    "an operator's submitter": (TRAINING, "spec.submitterPodTemplate", GONE, "spec.submitterPodTemplate"),
    "a job for a cluster that is not there": (
        TRAINING,
        "spec.clusterSelector",
        {"ray.io/cluster": "other"},
        "spec.clusterSelector",
    ),
    "a submitter that starts for ever": (
        TRAINING,
        "spec.submitterPodTemplate.spec.restartPolicy",
        "Always",
        "submitterPodTemplate.spec.restartPolicy",
    ),
    "workers of nobody's": (RAY, "spec.workerGroupSpecs", [], "spec.workerGroupSpecs: empty"),
    "a group started without words": (
        RAY,
        "spec.workerGroupSpecs.0.rayStartParams",
        GONE,
        "workerGroupSpecs[0].rayStartParams: missing",
    ),
    "an object store in gigabytes": (
        RAY,
        "spec.headGroupSpec.rayStartParams.object-store-memory",
        "1G",
        "object-store-memory: must be bytes",
    ),
    "no shared memory": (
        RAY,
        f"{WORKER}.{C}.volumeMounts.3",
        GONE,
        "containers[0].volumeMounts: nothing at /dev/shm",
    ),
    "a job without a cluster": (
        TRAINING,
        "spec.clusterSelector",
        GONE,
        "spec.clusterSelector.ray.io/cluster",
    ),
    "a job that waits on a standing cluster": (TRAINING, "spec.suspend", True, "spec.suspend"),
    "a job submitted from elsewhere": (TRAINING, "spec.submissionMode", "HTTPMode", "spec.submissionMode"),
    # references
    "a volume nobody has": (
        JOB,
        "spec.template.spec.containers.0.volumeMounts.0.name",
        "shard",
        "volumeMounts[/shards]",
    ),
    "a claim nobody has": (
        WEB,
        "spec.template.spec.volumes.0.persistentVolumeClaim.claimName",
        "run",
        "volumes[runs].persistentVolumeClaim.claimName",
    ),
    "a claim for one node": (
        "PersistentVolumeClaim/runs",
        "spec.accessModes",
        ["ReadWriteOnce"],
        "spec.accessModes",
    ),
    "an account nobody has": (RAY, f"{HEAD}.serviceAccountName", "rays", "template.spec.serviceAccountName"),
    "a key the secret lacks": (
        TRAINING,
        f"spec.submitterPodTemplate.spec.{C}.env.1.valueFrom.secretKeyRef.key",
        "token",
        "secretKeyRef.key",
    ),
    "a service without pods": (
        "Service/reports",
        "spec.selector",
        {"app.kubernetes.io/name": "web"},
        "spec.selector",
    ),
    "a port nobody opens": ("Service/reports", "spec.ports.0.targetPort", "web", "spec.ports"),
    "metrics nobody opens": ("PodMonitor/ray", "spec.podMetricsEndpoints.0.port", "prometheus", "spec.ports"),
    "a queue nobody has": (
        RAY,
        "metadata.labels.kueue~x-k8s~io/queue-name",
        "training",
        "kueue.x-k8s.io/queue-name",
    ),
    "a name with capitals": (
        "PersistentVolumeClaim/runs",
        "metadata.name",
        "Runs",
        "metadata.name: not a name",
    ),
    "another namespace": (JOB, "metadata.namespace", GONE, "metadata.namespace"),
    "one place for two volumes": (
        JOB,
        "spec.template.spec.containers.0.volumeMounts.1.mountPath",
        "/shards",
        "volumeMounts[/shards]: mounted twice",
    ),
    "settings nobody has": (
        "Job/shards-from-s3",
        f"spec.template.spec.{C}.envFrom.0.configMapRef.name",
        "s3",
        "envFrom.configMapRef.name",
    ),
    "a flavor nobody has": (
        "ClusterQueue/glassbox",
        "spec.resourceGroups.0.flavors.0.name",
        "a100",
        "spec.resourceGroups.flavors",
    ),
    "a quota nobody has": ("LocalQueue/glassbox", "spec.clusterQueue", "all", "spec.clusterQueue"),
    # the network
    "the job API for the namespace": (
        "NetworkPolicy/ray-api",
        "spec.ingress.0.from.0.podSelector",
        {},
        "a pod of the namespace reaches RayCluster/glassbox head at port 8265",
    ),
    "the job API for all that calls itself the operator": (
        "NetworkPolicy/ray-api",
        "spec.ingress.0.from.1.namespaceSelector",
        {},
        "a pod elsewhere reaches RayCluster/glassbox head at port 8265",
    ),
    "more than the job API for clients": (
        "NetworkPolicy/ray-api",
        "spec.ingress.0.ports",
        GONE,
        "reaches RayCluster/glassbox head at port 6379",
    ),
    "metrics for everyone": (
        "NetworkPolicy/ray-metrics",
        "spec.ingress.0.from",
        GONE,
        "reaches RayCluster/glassbox worker at port 44217",
    ),
    "a cluster that cannot talk": (
        "NetworkPolicy/ray-cluster",
        "spec.policyTypes",
        ["Ingress"],
        "NetworkPolicy/ray-cluster: spec.egress: of no effect",
    ),
    "no names": (
        "NetworkPolicy/names",
        "spec.egress.0.ports.0.port",
        54,
        "does not reach the name service at port ('UDP', 53)",
    ),
    "the metadata service": (
        "NetworkPolicy/s3",
        "spec.egress.0.to.0.ipBlock.except",
        GONE,
        "reaches the address 169.254.169.254 at port 443",
    ),
    "a policy for pods nobody has": (
        "NetworkPolicy/ray-api",
        "spec.podSelector.matchLabels.ray~io/node-type",
        "heads",
        "spec.podSelector",
    ),
    "a selector in another language": (
        "NetworkPolicy/reports",
        "spec.podSelector.matchExpressions",
        [{"key": "app.kubernetes.io/name", "operator": "Exists"}],
        "spec.podSelector.matchExpressions",
    ),
}
