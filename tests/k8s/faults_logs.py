"""Faults of the sidecar that sends Ray's logs, and of its configuration."""

from __future__ import annotations

from kube_faults import HEAD, RAY, REMOVED, TRAINING, WORKER, Fault

LOGS = "initContainers.0"
JOB_HEAD = "spec.rayClusterSpec.headGroupSpec.template"

SIDECARS: dict[str, Fault] = {
    "a sidecar that must end first": (
        RAY,
        f"{HEAD}.{LOGS}.restartPolicy",
        REMOVED,
        "restartPolicy: must be Always",
    ),
    "no sidecar in workers": (RAY, f"{WORKER}.initContainers", REMOVED, "initContainers: no sidecar logs"),
    "another init container": (RAY, f"{HEAD}.{LOGS}.name", "init", "initContainers[init].name: must be logs"),
    "an image without a version": (
        RAY,
        f"{HEAD}.{LOGS}.image",
        "fluent-bit:latest",
        "[logs].image: must match",
    ),
    "an image of any patch": (RAY, f"{WORKER}.{LOGS}.image", "fluent-bit:5.0", "[logs].image: must match"),
    "logs that the sidecar may delete": (
        RAY,
        f"{HEAD}.{LOGS}.volumeMounts.0.readOnly",
        REMOVED,
        "the sidecar must mount /tmp read-only",
    ),
    "logs at another place": (
        RAY,
        f"{HEAD}.{LOGS}.volumeMounts.0.mountPath",
        "/logs",
        "is not on a volume that Ray mounts at the same path",
    ),
    "positions on a read-only volume": (
        RAY,
        f"{WORKER}.{LOGS}.volumeMounts.2.readOnly",
        True,
        "inputs.db: must be on a writable volume",
    ),
    "the run of another label": (
        RAY,
        f"{HEAD}.{LOGS}.env.0.valueFrom.fieldRef.fieldPath",
        "metadata.name",
        "env[RUN]: must be metadata.labels['glassbox/run']",
    ),
    "a fixed run": (
        RAY,
        f"{WORKER}.{LOGS}.env.0",
        {"name": "RUN", "value": "first"},
        "env[RUN].value: field not",
    ),
    "a sidecar with Ray's token": (
        RAY,
        f"{HEAD}.{LOGS}.env.0.valueFrom",
        {"secretKeyRef": {"name": "glassbox-ray-token", "key": "auth_token"}},
        "valueFrom.secretKeyRef: field not allowed",
    ),
    "a job without the label of its run": (
        TRAINING,
        f"{JOB_HEAD}.metadata.labels.glassbox/run",
        REMOVED,
        "metadata.labels.glassbox/run: missing, or empty",
    ),
    "a job with an empty label": (
        TRAINING,
        f"{JOB_HEAD}.metadata.labels.glassbox/run",
        "",
        "metadata.labels.glassbox/run: missing, or empty",
    ),
    "another program": (RAY, f"{HEAD}.{LOGS}.command", ["/bin/sh"], "must run /fluent-bit/bin/fluent-bit"),
    "another configuration": (RAY, f"{HEAD}.{LOGS}.args.1", "/etc/logs/a.yaml", "args: must be --config"),
    "no limit of memory": (
        RAY,
        f"{HEAD}.{LOGS}.resources.limits.memory",
        REMOVED,
        "[logs].resources.limits.memory",
    ),
    "root": (
        RAY,
        f"{HEAD}.{LOGS}.securityContext.readOnlyRootFilesystem",
        False,
        "[logs].securityContext.readOnlyRootFilesystem",
    ),
    "no way to the log store": (
        "NetworkPolicy/logs",
        "spec.egress.0.ports.0.port",
        3101,
        "head does not reach the log store at port 3100",
    ),
    "a way to all of monitoring": (
        "NetworkPolicy/logs",
        "spec.egress.0.to.0.podSelector",
        REMOVED,
        "reaches another pod next to the log store at port 3100",
    ),
    "a way for all pods": (
        "NetworkPolicy/logs",
        "spec.podSelector",
        {},
        "CronJob/report cronjob reaches the log store at port 3100",
    ),
}

# Text of the configuration, its replacement, and a substring of the expected message
CONFIG: dict[str, tuple[str, str, str]] = {
    "an empty run outside of jobs": (
        "source=ray,",
        "source=ray, run=${RUN},",
        "labels.run: is empty outside of jobs",
    ),
    "no run": ("$run, $pod", "$pod", "label_keys: must contain $run"),
    "a label without a value": ("source=ray,", "source=,", "labels.source: has no value"),
    "the folder that changes": (
        "session_2*/logs/*.log",
        "session_latest/logs/*.log",
        "session_latest changes",
    ),
    "logs of the node": (
        "/tmp/ray/session_2*/logs/*.out",
        "/var/log/*.log",
        "is not on a volume that Ray mounts",
    ),
    "no name of the file": ("path_key: file", "path_key: name", "path_key: must be file"),
    "only new lines": ("read_from_head: true", "read_from_head: false", "read_from_head: must be True"),
    "a long line that ends a file": (
        "skip_long_lines: true",
        "skip_long_lines: false",
        "skip_long_lines: must be",
    ),
    "memory without a limit": ("      mem_buf_limit: 32M\n", "", "mem_buf_limit: missing"),
    "positions within the logs": (
        "/positions/files.db",
        "/tmp/files.db",
        "inputs.db: must be on a writable volume",
    ),
    "a script elsewhere": (
        "/etc/logs/label.lua",
        "/etc/label.lua",
        "filters.script: /etc/label.lua is not in",
    ),
    "a function that is missing": ("call: label", "call: add_run", "label.lua has no function add_run"),
    "lines that match no output": (
        "match: ray\n      host",
        "match: rays\n      host",
        "loki.match: must be ray",
    ),
    "a store outside of the cluster": (
        "loki.monitoring.svc.cluster.local",
        "example.org",
        "outputs.host: must be",
    ),
    "two outputs": ("    - name: loki", "    - name: stdout\n    - name: loki", "must have one input"),
    "no end of retries": ("      retry_limit: 10\n", "", "retry_limit: missing"),
}
