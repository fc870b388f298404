"""What the containers run is what the image can run: their words go through the real command line."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from kube_pods import Pod, at, name_of, pods
from kube_render import Document

from service import cli

PROGRAMS = ("glassbox", "python3", "/bin/bash")


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    settings = {document["metadata"]["name"]: document.get("data") or {} for document in documents if document.get("kind") == "ConfigMap"}
    for pod in pods(documents):
        for where, container in pod.containers():
            if pod.role == "submitter":  # the operator's own words
                continue
            yield from _words(
                f"{where}.args", [*(container.get("command") or []), *(container.get("args") or [])], pod, container, settings
            )
    for document in documents:
        if document.get("kind") == "RayJob":
            where, words = f"{name_of(document)}: spec.entrypoint", shlex.split(str(at(document, "spec.entrypoint") or ""))
            yield from _program(where, words)
            workers = [pod for pod in pods(documents) if pod.role == "worker"]
            for _, container in workers[0].containers() if workers else ():
                yield from _paths(where, words, container)


def _words(where: str, words: Sequence[str], pod: Pod, container: Document, settings: dict[str, Document]) -> Iterator[str]:
    if not all(isinstance(word, str) for word in words):
        yield f"{where}: must be strings: {list(words)}"
        return
    yield from _program(where, words)
    if words and words[0] != "/bin/bash":
        yield from _paths(where, words, container)
    if words[:1] == ["python3"] and len(words) > 1 and words[1].startswith("/"):
        folder, _, file = words[1].rpartition("/")
        mounted = [mount["name"] for mount in container.get("volumeMounts") or [] if mount["mountPath"] == folder]
        maps = [at(volume, "configMap").get("name") for volume in pod.spec.get("volumes") or [] if volume["name"] in mounted]
        if not any(file in settings.get(name, {}) for name in maps):
            yield f"{where}: there is no {file} at {folder}"


def _program(where: str, words: Sequence[str]) -> Iterator[str]:
    if not words or words[0] not in PROGRAMS:
        yield f"{where}: must start with one of {', '.join(PROGRAMS)}, is {' '.join(words)!r}"
    elif words[0] == "glassbox" and (problem := refused(words[1:])):
        yield f"{where}: {problem}"
    elif words[1:2] == ["-m"] and importlib.util.find_spec(words[2]) is None:
        yield f"{where}: there is no module {words[2]}"


def refused(words: Sequence[str]) -> str | None:
    """What `glassbox` says to words it does not understand; None if it does."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli._parse(words)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    return None


def _paths(where: str, words: Sequence[str], container: Document) -> Iterator[str]:
    mounts = [PurePosixPath(mount["mountPath"]) for mount in container.get("volumeMounts") or []]
    for word in words[1:]:
        if word.startswith("/") and not any(PurePosixPath(word).is_relative_to(mount) for mount in mounts):
            yield f"{where}: nothing is mounted at {word}"
