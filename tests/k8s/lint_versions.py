"""One version of glassbox and of Ray everywhere: those of pyproject.toml and the lock files."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator

from kube_amounts import GPU
from kube_pods import at, clusters, name_of, pods
from kube_render import ROOT, Document

IMAGE = re.compile(r"(?:\S+/)?glassbox:(?P<tag>[^:@]+)")


@functools.cache
def locked(package: str, accelerator: str) -> str:
    """The version of a package in a lock file."""
    match = re.search(
        rf"^{package}(?:\[[\w,-]+])?==([\w.]+)", (ROOT / f".lock/{accelerator}.txt").read_text(), re.MULTILINE
    )
    if not match:
        raise LookupError(f"{package} is not in the lock file of {accelerator}")
    return match[1]


@functools.cache
def tag(accelerator: str) -> str:
    """What the image of this version is called, as `make image` calls it."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return f"{version}-ray{locked('ray', accelerator)}-{accelerator}"


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for document, path, spec in clusters(documents):
        if spec.get("rayVersion") != locked("ray", "cpu"):
            yield f"{name_of(document)}: {path}.rayVersion: must be {locked('ray', 'cpu')}, as locked, is {spec.get('rayVersion')}"
    for pod in pods(documents):
        for where, container in pod.containers():
            match = IMAGE.fullmatch(str(container.get("image")))
            if not match or match["tag"] not in (tag("cpu"), tag("gpu")):
                yield f"{where}.image: must be glassbox:{tag('cpu')} or -gpu, is {container.get('image')}"
            elif GPU in at(container, "resources.limits") and match["tag"] != tag("gpu"):
                yield f"{where}.image: a container with GPUs needs the image for them, not {container.get('image')}"
