"""Faults of a training as a RayJob, of teams, of nodes with eight GPUs, and of what interrupts a training."""

from __future__ import annotations

from kube_faults import REMOVED, C, Fault, with_entries, with_item

TRAINING = "RayJob/segmentation"
SPEC = "spec.rayClusterSpec"
HEAD = f"{SPEC}.headGroupSpec.template"
WORKER = f"{SPEC}.workerGroupSpecs.0.template"
SUBMITTER = "spec.submitterPodTemplate"
STANDING = "RayCluster/audio-glassbox"
TERM = "affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution.0"
LABEL = "metadata.labels.app~kubernetes~io/part-of"

JOBS: dict[str, Fault] = {
    # The job and its cluster.
    "a cluster that outlives its training": (
        TRAINING,
        "spec.shutdownAfterJobFinishes",
        False,
        "spec.shutdownAfterJobFinishes: must be true",
    ),
    "no shutdown at all": (
        TRAINING,
        "spec.shutdownAfterJobFinishes",
        REMOVED,
        "spec.shutdownAfterJobFinishes",
    ),
    "GPUs idle for a day": (TRAINING, "spec.ttlSecondsAfterFinished", 86400, "spec.ttlSecondsAfterFinished"),
    "no deadline": (TRAINING, "spec.activeDeadlineSeconds", REMOVED, "spec.activeDeadlineSeconds"),
    "a deadline of zero": (TRAINING, "spec.activeDeadlineSeconds", 0, "spec.activeDeadlineSeconds"),
    "a retry that starts over": (
        TRAINING,
        "spec.entrypoint",
        lambda old: old.replace(" --resume-if-exists", ""),
        "spec.entrypoint: must contain --resume-if-exists",
    ),
    "a hundred retries": (TRAINING, "spec.backoffLimit", 100, "spec.backoffLimit: must be from"),
    "a cluster of its own and an existing one": (
        TRAINING,
        "spec.clusterSelector",
        {"ray.io/cluster": "audio-glassbox"},
        "spec.clusterSelector: must not be set next to rayClusterSpec",
    ),
    "a suspended job": (TRAINING, "spec.suspend", True, "spec.suspend: must not be set"),
    "a suspended cluster of a job": (
        TRAINING,
        f"{SPEC}.suspend",
        True,
        "spec.rayClusterSpec.suspend: is for standing clusters",
    ),
    "an upgrade strategy of a job's cluster": (
        TRAINING,
        f"{SPEC}.upgradeStrategy",
        {"type": "Recreate"},
        "spec.rayClusterSpec.upgradeStrategy: is for standing clusters",
    ),
    "a job's cluster without authentication": (
        TRAINING,
        f"{SPEC}.authOptions",
        REMOVED,
        "spec.rayClusterSpec.authOptions.mode: must be token",
    ),
    "an autoscaled job": (
        TRAINING,
        f"{SPEC}.enableInTreeAutoscaling",
        True,
        "enableInTreeAutoscaling: field not allowed",
    ),
    "an unknown option of train": (
        TRAINING,
        "spec.entrypoint",
        lambda old: old + " --accelerators 8",
        "spec.entrypoint: ",
    ),
    "more workers than pods": (
        TRAINING,
        "spec.entrypoint",
        lambda old: old.replace("--workers 1", "--workers 2"),
        "spec.entrypoint: ",
    ),
    "a run outside all volumes": (
        TRAINING,
        "spec.entrypoint",
        lambda old: old.replace("/runs/", "/results/"),
        "spec.entrypoint: nothing is mounted at /results/",
    ),
    "a job name too long": (TRAINING, "metadata.name", "s" * 48, "metadata.name: 48 characters, at most 47"),
    "a submitter as root": (
        TRAINING,
        f"{SUBMITTER}.spec.securityContext.runAsUser",
        0,
        "securityContext.runAsUser",
    ),
    "a submitter without its label": (
        TRAINING,
        f"{SUBMITTER}.metadata.labels",
        {},
        "RayJob/segmentation submitter does not reach",
    ),
    "a submitter that never gives up": (
        TRAINING,
        "spec.submitterConfig.backoffLimit",
        20,
        "spec.submitterConfig.backoffLimit",
    ),
    "a job in the queue of another team": (
        TRAINING,
        "metadata.labels.kueue~x-k8s~io/queue-name",
        "vision-glassbox",
        "there is no LocalQueue vision-glassbox",
    ),
    # Teams.
    "a job in another namespace": (TRAINING, "metadata.namespace", "team-vision", "metadata.namespace"),
    "a claim without the prefix of the team": (
        TRAINING,
        f"{WORKER}.spec.volumes.1.persistentVolumeClaim.claimName",
        "runs",
        "there is no PersistentVolumeClaim runs",
    ),
    "an account without the prefix": (
        TRAINING,
        f"{HEAD}.spec.serviceAccountName",
        "ray",
        "there is no ServiceAccount ray",
    ),
    "a priority without the prefix": (
        TRAINING,
        f"{WORKER}.spec.priorityClassName",
        "glassbox-training",
        "there is no PriorityClass glassbox-training",
    ),
    "a policy for one cluster name": (
        "NetworkPolicy/audio-ray-cluster",
        "spec.podSelector.matchLabels",
        {"ray.io/cluster": "audio-glassbox"},
        "RayJob/segmentation head does not reach",
    ),
    # What interrupts a training.
    "no preStop hook": (
        TRAINING,
        f"{HEAD}.spec.{C}.lifecycle",
        REMOVED,
        "lifecycle.preStop.exec.command: must be glassbox drain",
    ),
    "a preStop hook of another command": (
        TRAINING,
        f"{HEAD}.spec.{C}.lifecycle.preStop.exec.command",
        ["ray", "stop"],
        "lifecycle.preStop.exec.command: must be glassbox drain",
    ),
    "a hook longer than the grace period": (
        TRAINING,
        f"{HEAD}.spec.terminationGracePeriodSeconds",
        300,
        "exceed the grace period of 300 s",
    ),
    "workers with the default grace period": (
        TRAINING,
        f"{WORKER}.spec.terminationGracePeriodSeconds",
        REMOVED,
        "exceed the grace period of 30 s",
    ),
    "Ray's own wait, too short to save": (
        TRAINING,
        f"{WORKER}.spec.{C}.env.0.value",
        "30",
        "must be at least 60 s, is 30",
    ),
    "workers that an autoscaler removes": (
        TRAINING,
        f"{WORKER}.metadata.annotations",
        REMOVED,
        "safe-to-evict: must be false",
    ),
    "a head that may be evicted": (
        STANDING,
        "spec.headGroupSpec.template.metadata.annotations.cluster-autoscaler~kubernetes~io/safe-to-evict",
        "true",
        "safe-to-evict",
    ),
    "a budget in percent": (
        "PodDisruptionBudget/audio-training",
        "spec.minAvailable",
        "100%",
        "spec.minAvailable: must be a number",
    ),
    "a budget of one pod": (
        "PodDisruptionBudget/audio-training",
        "spec.minAvailable",
        1,
        "spec.minAvailable: must be a number",
    ),
    "a budget with maxUnavailable": (
        "PodDisruptionBudget/audio-training",
        "spec.maxUnavailable",
        0,
        "spec.maxUnavailable: field not allowed",
    ),
    "a budget for heads alone": (
        "PodDisruptionBudget/audio-training",
        "spec.selector.matchLabels",
        {"ray.io/node-type": "head"},
        "does not select RayJob/segmentation worker",
    ),
    "a budget that keeps broken pods": (
        "PodDisruptionBudget/audio-training",
        "spec.unhealthyPodEvictionPolicy",
        "IfHealthyBudget",
        "spec.unhealthyPodEvictionPolicy",
    ),
    # Nodes with eight GPUs.
    "no toleration of spot nodes' effect": (
        TRAINING,
        f"{WORKER}.spec.tolerations.1.effect",
        "NoExecute",
        "tolerations[1].effect",
    ),
    "a toleration of every taint": (
        TRAINING,
        f"{WORKER}.spec.tolerations",
        with_item({"operator": "Exists"}),
        "tolerations[4].key: missing",
    ),
    "RDMA without a limit": (
        TRAINING,
        f"{WORKER}.spec.{C}.resources.limits.rdma/hca",
        REMOVED,
        "resources.limits.rdma/hca: must equal the request",
    ),
    "an RDMA resource that is none": (
        TRAINING,
        f"{WORKER}.spec.{C}.resources.limits.rdma/hcas",
        "1",
        "resources.limits.rdma/hcas: not a resource",
    ),
    "NCCL forced to RDMA without adapters": (
        TRAINING,
        f"{WORKER}.spec.{C}.resources",
        {
            kind: {"cpu": "88", "memory": "1400Gi", "ephemeral-storage": "24Gi", "nvidia.com/gpu": "8"}
            for kind in ("requests", "limits")
        },
        "env[NCCL_NET]: needs the resource rdma/hca",
    ),
    "the right to lock memory": (
        TRAINING,
        f"{WORKER}.spec.{C}.securityContext.capabilities",
        with_entries(add=["IPC_LOCK"]),
        "capabilities.add",
    ),
    "/dev/shm too small for eight GPUs": (
        TRAINING,
        f"{WORKER}.spec.volumes.3.emptyDir.sizeLimit",
        "4Gi",
        "volumes: /dev/shm needs",
    ),
    "blocks of other clusters too": (
        TRAINING,
        f"{WORKER}.spec.{TERM}.podAffinityTerm.matchLabelKeys",
        REMOVED,
        "podAffinityTerm.matchLabelKeys: must be [ray.io/cluster]",
    ),
    "an affinity to no pod": (
        TRAINING,
        f"{WORKER}.spec.{TERM}.podAffinityTerm.labelSelector.matchLabels",
        {"app": "ray"},
        "podAffinityTerm.labelSelector: does not select the pod itself",
    ),
    # Upgrade and delete.
    "a job that is left behind": (TRAINING, LABEL, REMOVED, "metadata.labels: must contain"),
    "a policy that is left behind": (
        "NetworkPolicy/audio-names",
        LABEL,
        "other",
        "metadata.labels: must contain",
    ),
    "a volume that is deleted": (
        "PersistentVolumeClaim/audio-runs",
        "metadata.labels.glassbox/keep",
        REMOVED,
        "belongs to volumes",
    ),
    "a cluster that is kept": (
        STANDING,
        "metadata.labels.glassbox/keep",
        "true",
        "belongs to volumes",
    ),
    "a strategy that does not replace pods": (
        STANDING,
        "spec.upgradeStrategy.type",
        "None",
        "spec.upgradeStrategy.type: must be Recreate",
    ),
    "no upgrade strategy": (STANDING, "spec.upgradeStrategy", REMOVED, "spec.upgradeStrategy: missing"),
    "a finished Job that blocks an upgrade": (
        "Job/audio-shards",
        "spec.ttlSecondsAfterFinished",
        REMOVED,
        "spec.ttlSecondsAfterFinished: missing",
    ),
    "an undocumented pull secret": (
        "ServiceAccount/audio-ray",
        "imagePullSecrets.0.name",
        "docker",
        "imagePullSecrets: no documented command",
    ),
    "a pull secret for some pods": (
        "ServiceAccount/audio-jobs",
        "imagePullSecrets",
        REMOVED,
        "imagePullSecrets: missing, other accounts have it",
    ),
}
# Queues of the administrator.
AUDIO = "ClusterQueue/team-audio"
QUOTA = "spec.resourceGroups.0.flavors.0"
QUEUES: dict[str, Fault] = {
    "two teams without a cohort": (AUDIO, "spec.cohortName", REMOVED, "spec.cohortName: missing"),
    "teams in two cohorts": (AUDIO, "spec.cohortName", "other", "spec.cohortName: must be the same"),
    "a quota that never comes back": (
        AUDIO,
        "spec.preemption.reclaimWithinCohort",
        "Never",
        "spec.preemption.reclaimWithinCohort: must be Any",
    ),
    "a queue for every namespace": (AUDIO, "spec.namespaceSelector", {}, "spec.namespaceSelector"),
    "two queues for one namespace": (
        AUDIO,
        "spec.namespaceSelector.matchLabels.kubernetes~io/metadata~name",
        "team-vision",
        "spec.namespaceSelector: team-vision has two queues",
    ),
    "a weight that is no number": (
        AUDIO,
        "spec.fairSharing.weight",
        "half",
        "spec.fairSharing.weight: not a quantity",
    ),
    "no weight": (AUDIO, "spec.fairSharing", REMOVED, "spec.fairSharing.weight"),
    "a flavor that is missing": (
        AUDIO,
        f"{QUOTA}.name",
        "h100",
        "flavors: there is no ResourceFlavor h100",
    ),
    "a flavor without memory": (
        AUDIO,
        f"{QUOTA}.resources",
        lambda old: old[:1] + old[2:],
        "coveredResources: must list",
    ),
}
