"""Checks the sidecar that sends Ray's logs: it reads what Ray writes, and labels each line by its run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml
from kube_pods import Pod, get_field, list_pods, name_of
from kube_render import Document

SIDECAR = "logs"
CONFIG = "fluent-bit.yaml"
PROGRAM = "/fluent-bit/bin/fluent-bit"
RUN_LABEL = "glassbox/run"
VARIABLES = {
    "RUN": f"metadata.labels['{RUN_LABEL}']",
    "POD": "metadata.name",
    "NAMESPACE": "metadata.namespace",
}
# Settings of the input without which lines are lost, sent twice, or kept in memory without a limit
INPUT = {"path_key": "file", "read_from_head": True, "skip_long_lines": True}
SERVICE = re.compile(r"[\w-]+\.[\w-]+\.svc\.cluster\.local")


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    pods = [pod for pod in list_pods(documents) if pod.role in ("head", "worker")]
    configs = [document for document in documents if CONFIG in get_field(document, "data")]
    if not configs and not any(map(find_sidecar, pods)):
        return
    for pod in pods:
        sidecar = find_sidecar(pod)
        if sidecar is None:
            yield f"{pod.owner}: {pod.path}.initContainers: no sidecar {SIDECAR}, which other pods have"
        else:
            yield from _check_sidecar(pod, sidecar, configs)


def find_sidecar(pod: Pod) -> Document | None:
    """Returns the container that sends the logs of a pod, if it has one."""
    containers = pod.spec.get("initContainers") or []
    return next((container for container in containers if container.get("name") == SIDECAR), None)


def _check_sidecar(pod: Pod, sidecar: Document, configs: list[Document]) -> Iterator[str]:
    where = f"{pod.owner}: {pod.path}.initContainers[{SIDECAR}]"
    if sidecar.get("restartPolicy") != "Always":
        yield f"{where}.restartPolicy: must be Always, or the pod waits for its end"
    for name, path in VARIABLES.items():
        variables = {entry["name"]: entry for entry in sidecar.get("env") or []}
        if get_field(variables.get(name, {}), "valueFrom.fieldRef").get("fieldPath") != path:
            yield f"{where}.env[{name}]: must be {path}"
    is_job = pod.owner.startswith("RayJob/")
    if is_job and not pod.labels.get(RUN_LABEL):
        yield f"{pod.owner}: {pod.path.removesuffix('.spec')}.metadata.labels.{RUN_LABEL}: missing, or empty"
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes") or []}
    folder = _find_config_folder(sidecar, volumes)
    if folder is None or sidecar.get("command") != [PROGRAM]:
        yield f"{where}: must run {PROGRAM} with a ConfigMap that has {CONFIG}"
        return
    if sidecar.get("args") != ["--config", f"{folder}/{CONFIG}"]:
        yield f"{where}.args: must be --config {folder}/{CONFIG}"
    ray = pod.spec["containers"][0]
    for config in configs:
        yield from _check_config(config, folder, _list_mounts(ray), _list_mounts(sidecar), volumes)


def _list_mounts(container: Document) -> dict[str, Document]:
    return {mount["mountPath"]: mount for mount in container.get("volumeMounts") or []}


def _find_config_folder(sidecar: Document, volumes: dict[str, Document]) -> str | None:
    for path, mount in _list_mounts(sidecar).items():
        if "configMap" in volumes.get(mount["name"], {}):
            return path
    return None


def _check_config(
    config: Document,
    folder: str,
    ray: dict[str, Document],
    own: dict[str, Document],
    volumes: dict[str, Document],
) -> Iterator[str]:
    """Checks the configuration of Fluent Bit against the mounts of Ray and of the sidecar."""
    where = f"{name_of(config)}: data.{CONFIG}"
    try:
        settings = yaml.safe_load(config["data"][CONFIG])
        (source,) = settings["pipeline"]["inputs"]
        (script,) = settings["pipeline"]["filters"]
        (output,) = settings["pipeline"]["outputs"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        yield f"{where}: must have one input, one filter and one output: {error!r}"
        return
    yield from _check_input(f"{where}: inputs", source, ray, own, volumes)
    yield from _check_script(f"{where}: filters", script, folder, config["data"])
    yield from _check_output(f"{where}: outputs", output)
    for part in (script, output):
        if part.get("match") != source.get("tag"):
            yield f"{where}: {part.get('name')}.match: must be {source.get('tag')}, the tag of the input"


def _check_input(
    where: str,
    source: dict[str, Any],
    ray: dict[str, Document],
    own: dict[str, Document],
    volumes: dict[str, Document],
) -> Iterator[str]:
    for name, value in INPUT.items():
        if source.get(name) != value:
            yield f"{where}.{name}: must be {value}"
    if not source.get("mem_buf_limit"):
        yield f"{where}.mem_buf_limit: missing: the sidecar would be killed for its memory"
    for pattern in [*str(source.get("path")).split(","), str(source.get("exclude_path"))]:
        mount = next((path for path in own if PurePosixPath(pattern).is_relative_to(path)), "")
        if not mount or own[mount]["name"] != ray.get(mount, {}).get("name"):
            yield f"{where}.path: {pattern} is not on a volume that Ray mounts at the same path"
        elif not own[mount].get("readOnly"):
            yield f"{where}.path: the sidecar must mount {mount} read-only"
        if "/session_latest/" in pattern:
            yield f"{where}.path: session_latest changes when Ray restarts; use session_2*"
    positions = str(PurePosixPath(str(source.get("db"))).parent)
    volume = volumes.get(own.get(positions, {}).get("name", ""), {})
    if "emptyDir" not in volume or own[positions].get("readOnly"):
        yield f"{where}.db: must be on a writable volume, or lines are sent again after a restart"


def _check_script(where: str, script: dict[str, Any], folder: str, data: dict[str, str]) -> Iterator[str]:
    path = PurePosixPath(str(script.get("script")))
    text = data.get(path.name)
    if str(path.parent) != folder or text is None:
        yield f"{where}.script: {path} is not in the ConfigMap"
    elif f"\nfunction {script.get('call')}(" not in text:
        yield f"{where}.call: {path.name} has no function {script.get('call')}"


def _check_output(where: str, output: dict[str, Any]) -> Iterator[str]:
    keys = [key.strip() for key in str(output.get("label_keys")).split(",")]
    if "$run" not in keys:
        yield f"{where}.label_keys: must contain $run, or logs are not found by it"
    for label in str(output.get("labels")).split(","):
        name, _, value = label.strip().partition("=")
        if name == "run":
            yield f"{where}.labels.{name}: is empty outside of jobs, and Fluent Bit does not start; use $run"
        elif not value:
            yield f"{where}.labels.{name}: has no value"
    if not SERVICE.fullmatch(str(output.get("host"))):
        yield f"{where}.host: must be a Service of the cluster, which the policy allows"
    if not output.get("retry_limit"):
        yield f"{where}.retry_limit: missing"
