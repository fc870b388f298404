"""Faults of pods: document, place, value, and what the message says."""

from __future__ import annotations

from typing import Any

from kube_faults import CRON, GONE, HEAD, JOB, RAY, REPORT, TRAINING, WAIT, WEB, WORKER, C, more

PODS: dict[str, tuple[str, str, Any, str]] = {
    # the restricted standard and beyond
    "root": (RAY, f"{HEAD}.securityContext.runAsUser", 0, "containers[ray-head].securityContext.runAsUser"),
    "perhaps root": (
        JOB,
        "spec.template.spec.containers.0.securityContext.runAsNonRoot",
        False,
        "containers[shards].securityContext.runAsNonRoot",
    ),
    "a way to more rights": (
        RAY,
        f"{WORKER}.{C}.securityContext.allowPrivilegeEscalation",
        GONE,
        f"{WAIT}.securityContext.allowPrivilegeEscalation",
    ),
    "capabilities": (
        WEB,
        "spec.template.spec.containers.0.securityContext.capabilities",
        {"drop": ["NET_RAW"]},
        "capabilities.drop",
    ),
    "a capability on top": (
        RAY,
        f"{HEAD}.{C}.securityContext.capabilities",
        more(add=["SYS_PTRACE"]),
        "capabilities.add",
    ),
    "a root file system to write to": (
        "CronJob/report",
        f"{REPORT}.{C}.securityContext.readOnlyRootFilesystem",
        False,
        "securityContext.readOnlyRootFilesystem",
    ),
    "system calls without a filter": (
        RAY,
        f"{HEAD}.{C}.securityContext.seccompProfile",
        {"type": "Unconfined"},
        "seccompProfile.type",
    ),
    "a token for the Kubernetes API": (
        RAY,
        f"{WORKER}.automountServiceAccountToken",
        True,
        "template.spec.automountServiceAccountToken",
    ),
    "an account with a token": (
        "ServiceAccount/ray",
        "automountServiceAccountToken",
        GONE,
        "automountServiceAccountToken",
    ),
    "the host's network": (RAY, f"{WORKER}.hostNetwork", True, "spec.hostNetwork"),
    "the host's files": (
        RAY,
        f"{WORKER}.volumes.0",
        {"name": "shards", "hostPath": {"path": "/data"}},
        "volumes[shards].hostPath",
    ),
    "a port of the host": (RAY, f"{HEAD}.{C}.ports.1.hostPort", 8265, "ports[dashboard].hostPort"),
    "a namespace that takes anything": (
        "Namespace/glassbox",
        "metadata.labels.pod-security~kubernetes~io/enforce",
        "baseline",
        "pod-security.kubernetes.io/enforce",
    ),
    "a token in git": (
        TRAINING,
        f"spec.submitterPodTemplate.spec.{C}.env.1",
        {"name": "RAY_AUTH_TOKEN", "value": "x"},
        "env[RAY_AUTH_TOKEN].value",
    ),
    "the cluster open to the world": ("Service/reports", "spec.type", "LoadBalancer", "spec.type"),
    "nowhere to write": (
        WEB,
        "spec.template.spec.containers.0.volumeMounts.1.mountPath",
        "/var/tmp",
        "containers[web].volumeMounts",
    ),
    "a kernel setting": (
        RAY,
        f"{HEAD}.securityContext.sysctls",
        [{"name": "a", "value": "1"}],
        "securityContext.sysctls",
    ),
    "all rights": (
        RAY,
        f"{HEAD}.{C}.securityContext.privileged",
        True,
        "containers[ray-head].securityContext.privileged",
    ),
    "all of /proc": (
        RAY,
        f"{HEAD}.{C}.securityContext.procMount",
        "Unmasked",
        "containers[ray-head].securityContext.procMount",
    ),
    # amounts
    "memory in thousandths": (
        JOB,
        "spec.template.spec.containers.0.resources.limits.memory",
        "128m",
        "resources.limits.memory: not a whole",
    ),
    "an amount in a unit of nobody's": (
        RAY,
        f"{WORKER}.{C}.resources.requests.memory",
        "256GB",
        "resources.requests.memory",
    ),
    "a limit above the request": (
        RAY,
        f"{HEAD}.{C}.resources.limits.cpu",
        "3",
        "containers[ray-head].resources.limits.cpu",
    ),
    "no limit": (
        "CronJob/report",
        f"{REPORT}.{C}.resources.limits.memory",
        GONE,
        "containers[report].resources.limits.memory",
    ),
    "shared memory beyond the limit": (
        RAY,
        f"{WORKER}.volumes.3.emptyDir.sizeLimit",
        "300Gi",
        "template.spec.volumes",
    ),
    "a temporary directory without end": (
        RAY,
        f"{WORKER}.volumes.2.emptyDir",
        {},
        "volumes[tmp].emptyDir.sizeLimit",
    ),
    "GPUs on nodes that keep it off": (RAY, f"{WORKER}.tolerations", GONE, "template.spec.tolerations"),
    "GPUs anywhere": (RAY, f"{WORKER}.nodeSelector", GONE, "template.spec.nodeSelector"),
    "a quota the cluster never fits into": (
        "ClusterQueue/glassbox",
        "spec.resourceGroups.0.flavors.0.resources.3.nominalQuota",
        7,
        "spec.resourceGroups: the cluster asks for 8 nvidia.com/gpu",
    ),
    "a claim of no size": (
        "PersistentVolumeClaim/runs",
        "spec.resources.requests.storage",
        "0",
        "spec.resources.requests.storage",
    ),
    "a place on a GPU node for nothing": (
        JOB,
        "spec.template.spec.tolerations",
        [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "spec.template.spec.tolerations: takes a place",
    ),
    # jobs
    "a schedule of four fields": ("CronJob/report", "spec.schedule", "17 * * *", "spec.schedule"),
    "a schedule with a 60th minute": (
        "CronJob/report",
        "spec.schedule",
        "60 * * * *",
        "spec.schedule: minute",
    ),
    "a time zone of nobody's": ("CronJob/report", "spec.timeZone", "Etc/GTM", "spec.timeZone"),
    "reports on top of each other": (
        "CronJob/report",
        "spec.concurrencyPolicy",
        "Allow",
        "spec.concurrencyPolicy",
    ),
    "a deadline no start can meet": (
        "CronJob/report",
        "spec.startingDeadlineSeconds",
        5,
        "spec.startingDeadlineSeconds",
    ),
    "no end": (
        "CronJob/report",
        f"{CRON}.activeDeadlineSeconds",
        GONE,
        "jobTemplate.spec.activeDeadlineSeconds",
    ),
    "a job that Kubernetes restarts for ever": (
        JOB,
        "spec.template.spec.restartPolicy",
        GONE,
        "template.spec.restartPolicy",
    ),
    "a misspelled field": ("CronJob/report", "spec.concurencyPolicy", "Forbid", "concurencyPolicy"),
    "a misspelled field of a pod": (RAY, f"{WORKER}.{C}.imagePullpolicy", "Always", "imagePullpolicy"),
    "a schedule in steps of nothing": (
        "CronJob/report",
        "spec.schedule",
        "*/0 * * * *",
        "spec.schedule: minute: not a step",
    ),
    "a cron job that never runs": ("CronJob/report", "spec.suspend", True, "spec.suspend"),
    # commands and versions
    "an option the build lacks": (
        JOB,
        f"spec.template.spec.{C}.args",
        ["--stores", "256"],
        "containers[shards].args",
    ),
    "a build of nothing": (JOB, f"spec.template.spec.{C}.env.0.name", "SOURCES", "containers[shards].args"),
    "a flag the command lacks": (
        "CronJob/report",
        f"{REPORT}.{C}.args",
        ["report", "--every", "/runs"],
        "containers[report].args",
    ),
    "a number among the words": (
        WEB,
        f"spec.template.spec.{C}.args",
        [8080, "--directory", "/runs"],
        "containers[web].args",
    ),
    "a path where nothing is mounted": (
        JOB,
        "spec.template.spec.containers.0.env.1.value",
        "/data/evidence",
        "containers[shards].args: nothing is mounted",
    ),
    "a training of an unknown flag": (
        TRAINING,
        "spec.entrypoint",
        "glassbox train --presets demo --out /runs/a",
        "spec.entrypoint",
    ),
    "a script that is not there": (
        "Job/shards-from-s3",
        f"spec.template.spec.{C}.command.1",
        "/sync/copy.py",
        "containers[sync].args",
    ),
    "an image of another version": (
        JOB,
        f"spec.template.spec.{C}.image",
        "glassbox:latest",
        "containers[shards].image",
    ),
    "a Ray other than the locked one": (RAY, "spec.rayVersion", "2.59.0", "spec.rayVersion: must be"),
    "GPUs under the image without": (
        RAY,
        f"{WORKER}.{C}.image",
        lambda old: old.replace("-gpu", "-cpu"),
        "containers[ray-worker].image",
    ),
    "a program the image lacks": (
        WEB,
        f"spec.template.spec.{C}.command",
        ["nginx"],
        "containers[web].args: must start with",
    ),
    "a module the image lacks": (
        WEB,
        f"spec.template.spec.{C}.command.2",
        "http.servers",
        "containers[web].args: there is no module",
    ),
}
