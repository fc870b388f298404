"""Faults in the manifests of a cluster that keeps everything in a bucket."""

from __future__ import annotations

from kube_faults import HEAD, JOB, RAY, REMOVED, REPORT, WORKER, C, Fault, with_entries, with_item

POD = "spec.template.spec"
POLICY = "NetworkPolicy/store"
SETTINGS = "ConfigMap/store"
EXCEPT = "spec.egress.0.to.0.ipBlock.except"

BUCKETS: dict[str, Fault] = {
    # Settings of the store.
    "a missing ConfigMap": (
        JOB,
        f"{POD}.{C}.envFrom.0.configMapRef.name",
        "s3",
        "envFrom.configMapRef.name",
    ),
    "keys of the store": (
        JOB,
        f"{POD}.{C}.envFrom",
        with_item({"secretRef": {"name": "s3-credentials"}}),
        "envFrom[1].secretRef: field not allowed here",
    ),
    "an undefined variable": (
        "CronJob/report",
        f"{REPORT}.{C}.args.2",
        "$(BUCKET)/runs",
        "args: there is no variable BUCKET",
    ),
    "a shell variable without a shell": (
        "CronJob/report",
        f"{REPORT}.{C}.args.2",
        "${STORE}/runs",
        "args: no shell expands",
    ),
    "a store of an unknown kind": (SETTINGS, "data.STORE", "s3a://glassbox", "data.STORE: must be SCHEME"),
    "a slash at the end of the bucket": (SETTINGS, "data.STORE", "s3://glassbox/", "data.STORE: must be"),
    "the identity of another cloud": (
        SETTINGS,
        "data.STORE",
        "gs://glassbox",
        "serviceAccountName: its account",
    ),
    # The cache.
    "a cache in memory": (
        RAY,
        f"{WORKER}.volumes.0.emptyDir",
        with_entries(medium="Memory", sizeLimit="1Gi"),
        "volumeMounts: no writable emptyDir on disk at GLASSBOX_CACHE",
    ),
    "a read-only cache": (
        RAY,
        f"{HEAD}.{C}.volumeMounts.0.readOnly",
        True,
        "volumeMounts: no writable emptyDir on disk at GLASSBOX_CACHE",
    ),
    "a cache at another path": (
        RAY,
        f"{WORKER}.{C}.volumeMounts.0.mountPath",
        "/cached",
        "volumeMounts: no writable emptyDir on disk at GLASSBOX_CACHE (/cache)",
    ),
    "a budget larger than the volume": (
        RAY,
        f"{WORKER}.volumes.0.emptyDir.sizeLimit",
        "300Gi",
        "env: GLASSBOX_CACHE_GB must be at most 95% of the volume",
    ),
    "no budget": (SETTINGS, "data.GLASSBOX_CACHE_GB", REMOVED, "env: GLASSBOX_CACHE_GB must be at most"),
    "a cache larger than the limit of the pod": (
        RAY,
        f"{WORKER}.volumes.0.emptyDir.sizeLimit",
        "500Gi",
        "exceed the ephemeral-storage limit",
    ),
    # Identities.
    "an account without an identity": (
        "ServiceAccount/jobs",
        "metadata.annotations",
        REMOVED,
        "Job/shards: spec.template.spec.serviceAccountName: its account has no annotation eks.amazonaws.com",
    ),
    "a role that is none": (
        "ServiceAccount/ray",
        "metadata.annotations.eks~amazonaws~com/role-arn",
        "arn:aws:iam::1:user/me",
        "annotations.eks.amazonaws.com/role-arn: must match",
    ),
    "an unknown annotation": (
        "ServiceAccount/ray",
        "metadata.annotations",
        with_entries(role="admin"),
        "metadata.annotations.role: field not allowed here",
    ),
    # Network access.
    "no label for the store": (
        RAY,
        "spec.workerGroupSpecs.0.template.metadata.labels",
        REMOVED,
        "worker does not reach an object store at port 443",
    ),
    "the cloud metadata service reachable": (
        POLICY,
        EXCEPT,
        REMOVED,
        "reaches the address 169.254.169.254 at port 443",
    ),
    "the agent of EKS not reachable": (
        "NetworkPolicy/identity",
        "spec.egress.0.ports.0.port",
        8080,
        "does not reach the address 169.254.170.23 at port 80",
    ),
    "all link-local addresses reachable": (
        "NetworkPolicy/identity",
        "spec.egress.0.to.0.ipBlock.cidr",
        "169.254.0.0/16",
        "reaches the address 169.254.169.254 at port 80",
    ),
    "identities for every pod": (
        "NetworkPolicy/identity",
        "spec.podSelector",
        {},
        "a client with the label reaches the address 169.254.170.23 at port 80",
    ),
    "all of IPv6": (
        POLICY,
        "spec.egress.0.to",
        with_item({"ipBlock": {"cidr": "::/0"}}),
        "reaches the address 2001:db8::7",
    ),
    "the cluster's own addresses": (POLICY, f"{EXCEPT}.0", REMOVED, "reaches the address 10.1.2.3"),
    "an invalid CIDR": (POLICY, "spec.egress.0.to.0.ipBlock.cidr", "0.0.0.0/33", "ipBlock.cidr"),
}
