"""What the containers run is what the image can run: their words go through the real command line."""

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

from kube_amounts import GPU, amount
from kube_pods import Pod, at, clusters, name_of, pods
from kube_render import Document

from pipelines.errors import GlassboxError
from service import cli
from service.config import load_config
from service.training.group import WorkerSpec, fitting

Nodes = tuple[tuple[float, float], ...]
PROGRAMS = ("glassbox", "python3", "/bin/bash")
VARIABLE = re.compile(r"\$\((\w+)\)")  # Kubernetes' own, replaced before anything starts


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    settings = {
        document["metadata"]["name"]: document.get("data") or {}
        for document in documents
        if document.get("kind") == "ConfigMap"
    }
    for pod in pods(documents):
        for where, container in pod.containers():
            if pod.role == "submitter":  # the operator's own words
                continue
            words = [*(container.get("command") or []), *(container.get("args") or [])]
            if words[:2] == ["/bin/bash", "-c"] and all(isinstance(word, str) for word in words):
                words = _executed(words, container)
            yield from _words(f"{where}.args", words, pod, container, settings)
    for document in documents:
        if document.get("kind") == "RayJob":
            yield from _entrypoint(
                f"{name_of(document)}: spec.entrypoint", str(at(document, "spec.entrypoint") or ""), documents
            )


@functools.cache
def refused(words: tuple[str, ...], nodes: Nodes = ()) -> str | None:
    """What `glassbox` says to words it does not understand, or that cannot be done on such nodes; None if it is content.

    Args:
        words: Behind `glassbox`.
        nodes: CPUs and GPUs of each; without any, only the words are looked at.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = cli._parse(words)
        return _training(options, nodes) if words[0] == "train" else None
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    except GlassboxError as error:
        return str(error)


def _training(options: argparse.Namespace, nodes: Nodes) -> str | None:
    """What a training says to its settings; None for nothing."""
    scale = WorkerSpec.read(
        options.workers, options.cpus_per_worker, options.gpus_per_worker, options.restarts
    )
    if options.resume:
        return None
    config = load_config(str(options.preset), str(options.data), options.overrides)
    if (
        nodes
        and not fitting(scale, [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes], config.global_batch)[1]
    ):
        return f"there is no room for its workers on nodes of (CPUs, GPUs) {', '.join(map(str, nodes))}"
    return None


def _executed(words: Sequence[str], container: Document) -> list[str]:
    """What a script ends in, `exec` and a command, with its variables and its own words (`"$@"`) filled in; else the words as they are."""
    script = words[2].partition("exec ")[2]
    for variable in container.get("env") or []:
        script = script.replace(f'"${variable["name"]}"', shlex.quote(str(variable.get("value"))))
    return shlex.split(script.replace('"$@"', shlex.join(words[4:]))) if script else [*words]


def _entrypoint(where: str, text: str, documents: list[Document]) -> Iterator[str]:
    words = shlex.split(text)
    nodes, workers = tuple(_nodes(documents)), [pod for pod in pods(documents) if pod.role == "worker"]
    yield from _program(where, words, nodes)
    for _, container in workers[0].containers() if workers else ():
        yield from _paths(where, words, workers[0], container)


def _nodes(documents: list[Document]) -> Iterator[tuple[float, float]]:
    """The workers' CPUs and GPUs, as Ray will count them."""
    for _, _, spec in clusters(documents):
        for group in spec.get("workerGroupSpecs") or []:
            limits = at((at(group, "template.spec").get("containers") or [{}])[0], "resources.limits")
            yield from [(amount(limits.get("cpu")) or 0.0, amount(limits.get(GPU)) or 0.0)] * int(
                group.get("replicas") or 0
            )


def _words(
    where: str, words: Sequence[str], pod: Pod, container: Document, settings: dict[str, Document]
) -> Iterator[str]:
    if not all(isinstance(word, str) for word in words):
        yield f"{where}: must be strings: {list(words)}"
        return
    yield from _program(where, words)
    if words and words[0] != "/bin/bash":
        yield from _paths(where, words, pod, container)
        yield from _variables(where, words, container, settings)
    if words[:1] == ["python3"] and len(words) > 1 and words[1].startswith("/"):
        folder, _, file = words[1].rpartition("/")
        mounted = [
            mount["name"] for mount in container.get("volumeMounts") or [] if mount["mountPath"] == folder
        ]
        maps = [
            at(volume, "configMap").get("name")
            for volume in pod.spec.get("volumes") or []
            if volume["name"] in mounted
        ]
        if not any(file in settings.get(name, {}) for name in maps):
            yield f"{where}: there is no {file} at {folder}"


def _program(where: str, words: Sequence[str], nodes: Nodes = ()) -> Iterator[str]:
    if not words or words[0] not in PROGRAMS:
        yield f"{where}: must start with one of {', '.join(PROGRAMS)}, is {' '.join(words)!r}"
    elif words[0] == "glassbox" and (problem := refused(tuple(words[1:]), nodes)):
        yield f"{where}: {problem}"
    elif words[1:2] == ["-m"] and importlib.util.find_spec(words[2]) is None:
        yield f"{where}: there is no module {words[2]}"


def _variables(
    where: str, words: Sequence[str], container: Document, settings: dict[str, Document]
) -> Iterator[str]:
    """Of a variable it does not know Kubernetes leaves the name; a shell's it does not know at all."""
    maps = [at(source, "configMapRef").get("name") for source in container.get("envFrom") or []]
    known = {variable["name"] for variable in container.get("env") or []}.union(
        *(settings.get(name, {}) for name in maps)
    )
    for word in words:
        for name in VARIABLE.findall(word):
            if name not in known:
                yield f"{where}: there is no variable {name}"
        if "$" in VARIABLE.sub("", word):
            yield f"{where}: no shell reads {word}; write $(NAME)"


def _paths(where: str, words: Sequence[str], pod: Pod, container: Document) -> Iterator[str]:
    """Every path lies in a volume. What a program makes, which the last one names, it may write to; what a server shows it may not."""
    claims = {volume["name"]: at(volume, "persistentVolumeClaim") for volume in pod.spec.get("volumes") or []}
    mounts = {PurePosixPath(mount["mountPath"]): mount for mount in container.get("volumeMounts") or []}
    places = [word for word in words[1:] if word.startswith("/") or "://" in word]
    serves = words[1:2] == ["-m"]
    for word in words[1:]:
        if not word.startswith("/"):
            continue
        over = [mount for path, mount in mounts.items() if PurePosixPath(word).is_relative_to(path)]
        closed = any(mount.get("readOnly") or claims.get(mount["name"], {}).get("readOnly") for mount in over)
        if not over:
            yield f"{where}: nothing is mounted at {word}"
        elif word == places[-1] and closed != serves:
            yield f"{where}: {word} is mounted {'read-only' if closed else 'to be written to'}"
