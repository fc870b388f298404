"""Checks that the image can run the containers' commands, by passing them to the real command line."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from kube_pods import Pod, get_field, iterate_clusters, list_pods, name_of
from kube_quantities import GPU, parse_quantity
from kube_render import Document
from lint_versions import OTHER_IMAGES

from pipelines.errors import GlassboxError
from service import cli
from service.config import load_config
from service.training.group import WorkerSpec, plan_groups

Nodes = tuple[tuple[float, float], ...]  # CPUs and GPUs of every node
Settings = dict[str, Document]  # data of the ConfigMaps, by name
PROGRAMS = ("glassbox", "python3", "/bin/bash")
VARIABLE = re.compile(r"\$\((\w+)\)")  # expanded by Kubernetes before the container starts


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    settings = {
        document["metadata"]["name"]: document.get("data") or {}
        for document in documents
        if document.get("kind") == "ConfigMap"
    }
    for pod in list_pods(documents):
        if pod.role == "submitter":  # the operator sets its command
            continue
        for where, container in pod.containers():
            if container.get("name") in OTHER_IMAGES:  # not the programs of this project
                continue
            words = [*(container.get("command") or []), *(container.get("args") or [])]
            if words[:2] == ["/bin/bash", "-c"] and all(isinstance(word, str) for word in words):
                words = _expand_script(words, container)
            yield from _check_words(f"{where}.args", words, pod, container, settings)
    for document in documents:
        if document.get("kind") == "RayJob":
            entrypoint = str(get_field(document, "spec.entrypoint") or "")
            where = f"{name_of(document)}: spec.entrypoint"
            yield from _check_entrypoint(where, entrypoint, _select_cluster(document, documents))


@functools.cache
def find_argument_error(words: tuple[str, ...], nodes: Nodes = ()) -> str | None:
    """Returns the error that `glassbox` reports for arguments, or None if it accepts them.

    Args:
        words: Arguments after `glassbox`.
        nodes: Nodes that a training has to fit on; without any, only the arguments are checked.
    """
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            options = cli.parse_arguments(words)
        return _find_training_error(options, nodes) if words[0] == "train" else None
    except SystemExit:
        return stderr.getvalue().strip().splitlines()[-1]
    except GlassboxError as error:
        return str(error)


def _find_training_error(options: argparse.Namespace, nodes: Nodes) -> str | None:
    spec = WorkerSpec.read(
        options.workers, options.cpus_per_worker, options.gpus_per_worker, options.restarts
    )
    if options.resume:
        return None
    config = load_config(str(options.preset), str(options.data), options.overrides)
    if not nodes:
        return None
    resources = [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes]
    _, candidates = plan_groups(spec, resources, config.global_batch)
    if not candidates:
        return f"there is no room for its workers on nodes of (CPUs, GPUs) {', '.join(map(str, nodes))}"
    return None


def _expand_script(words: Sequence[str], container: Document) -> list[str]:
    """Returns the command that a `bash -c` script executes last, with variables and `"$@"` expanded.

    A script without `exec` is returned unchanged.
    """
    script = words[2].partition("exec ")[2]
    if not script:
        return [*words]
    for variable in container.get("env") or []:
        script = script.replace(f'"${variable["name"]}"', shlex.quote(str(variable.get("value"))))
    return shlex.split(script.replace('"$@"', shlex.join(words[4:])))


def _select_cluster(job: Document, documents: list[Document]) -> list[Document]:
    """Returns the documents of the cluster that a job runs on: its own, or the standing one."""
    if get_field(job, "spec.rayClusterSpec"):
        return [job]
    return [document for document in documents if document.get("kind") != "RayJob"]


def _check_entrypoint(where: str, entrypoint: str, documents: list[Document]) -> Iterator[str]:
    words = shlex.split(entrypoint)
    yield from _check_program(where, words, tuple(_list_worker_nodes(documents)))
    workers = [pod for pod in list_pods(documents) if pod.role == "worker"]
    for container in workers[0].spec.get("containers") or [] if workers else ():
        yield from _check_paths(where, words, workers[0], container)


def _list_worker_nodes(documents: list[Document]) -> Iterator[tuple[float, float]]:
    """Yields CPUs and GPUs of every worker pod, each of which is a Ray node."""
    for _, _, spec in iterate_clusters(documents):
        for group in spec.get("workerGroupSpecs") or []:
            containers = get_field(group, "template.spec").get("containers") or [{}]
            limits = get_field(containers[0], "resources.limits")
            cpus = parse_quantity(limits.get("cpu")) or 0.0
            gpus = parse_quantity(limits.get(GPU)) or 0.0
            for _ in range(int(group.get("replicas") or 0)):
                yield cpus, gpus


def _check_words(
    where: str, words: Sequence[str], pod: Pod, container: Document, settings: Settings
) -> Iterator[str]:
    if not all(isinstance(word, str) for word in words):
        yield f"{where}: must be strings: {list(words)}"
        return
    yield from _check_program(where, words)
    if words and words[0] != "/bin/bash":
        yield from _check_paths(where, words, pod, container)
        yield from _check_variables(where, words, container, settings)


def _check_program(where: str, words: Sequence[str], nodes: Nodes = ()) -> Iterator[str]:
    if not words or words[0] not in PROGRAMS:
        yield f"{where}: must start with one of {', '.join(PROGRAMS)}, is {' '.join(words)!r}"
    elif words[0] == "glassbox":
        if error := find_argument_error(tuple(words[1:]), nodes):
            yield f"{where}: {error}"
    elif words[1:2] == ["-m"] and importlib.util.find_spec(words[2]) is None:
        yield f"{where}: there is no module {words[2]}"


def _check_variables(
    where: str, words: Sequence[str], container: Document, settings: Settings
) -> Iterator[str]:
    """Checks `$(NAME)` references: Kubernetes passes an unknown one on literally, and expands no `$NAME`."""
    names = {variable["name"] for variable in container.get("env") or []}
    for source in container.get("envFrom") or []:
        names |= set(settings.get(get_field(source, "configMapRef").get("name"), {}))
    for word in words:
        for name in VARIABLE.findall(word):
            if name not in names:
                yield f"{where}: there is no variable {name}"
        if "$" in VARIABLE.sub("", word):
            yield f"{where}: no shell expands {word}; write $(NAME)"


def _check_paths(where: str, words: Sequence[str], pod: Pod, container: Document) -> Iterator[str]:
    """Checks that every path is on a volume, and that the last one, the output, is writable.

    A server (`python3 -m`, `glassbox serve`) has no output: its last path must be read-only.
    """
    claims = {
        volume["name"]: get_field(volume, "persistentVolumeClaim") for volume in pod.spec.get("volumes") or []
    }
    mounts = {PurePosixPath(mount["mountPath"]): mount for mount in container.get("volumeMounts") or []}
    locations = [word for word in words[1:] if word.startswith("/") or "://" in word]
    is_server = words[1:2] in (["-m"], ["serve"])
    for word in words[1:]:
        if not word.startswith("/"):
            continue
        covering = [mount for path, mount in mounts.items() if PurePosixPath(word).is_relative_to(path)]
        if not covering:
            yield f"{where}: nothing is mounted at {word}"
            continue
        is_read_only = any(
            mount.get("readOnly") or claims.get(mount["name"], {}).get("readOnly") for mount in covering
        )
        if word == locations[-1] and is_read_only != is_server:
            yield f"{where}: {word} is mounted {'read-only' if is_read_only else 'writable'}"
