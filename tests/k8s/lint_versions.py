"""Checks that images and clusters use the versions of glassbox and Ray that are locked."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator

from kube_pods import get_field, iterate_clusters, list_pods
from kube_quantities import GPU
from kube_render import ROOT, Document

IMAGE = re.compile(r"(?:\S+/)?glassbox:(?P<tag>[^:@]+)")
# Images of others, by the name of their container, with all parts of the version: nothing changes by itself
OTHER_IMAGES = {
    "proxy": re.compile(r"(?:\S+/)?oauth2-proxy:v\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?"),
    "logs": re.compile(r"(?:\S+/)?fluent-bit:\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?"),
}


@functools.cache
def read_locked_version(package: str, accelerator: str) -> str:
    """Reads the version of a package from the lock file of an accelerator (`cpu` or `gpu`)."""
    text = (ROOT / f".lock/{accelerator}.txt").read_text()
    match = re.search(rf"^{package}(?:\[[\w,-]+])?==([\w.]+)", text, re.MULTILINE)
    if not match:
        raise LookupError(f"{package} is not in the lock file of {accelerator}")
    return match[1]


@functools.cache
def image_tag(accelerator: str) -> str:
    """Returns the tag that `make image` gives the image of this version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return f"{version}-ray{read_locked_version('ray', accelerator)}-{accelerator}"


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    ray_version = read_locked_version("ray", "cpu")
    for _, path, spec in iterate_clusters(documents):
        if spec.get("rayVersion") != ray_version:
            found = spec.get("rayVersion")
            yield f"{path}.rayVersion: must be {ray_version}, as locked, is {found}"
    yield from check_images(documents)


def check_images(documents: list[Document]) -> Iterator[str]:
    """Yields problems with the images of containers, each with its field."""
    for pod in list_pods(documents):
        for where, container in pod.containers():
            other = OTHER_IMAGES.get(container["name"])
            if other is None:
                yield from _check_own_image(where, container)
            elif not other.fullmatch(str(container.get("image"))):
                yield f"{where}.image: must match {other.pattern}, is {container.get('image')}"


def _check_own_image(where: str, container: Document) -> Iterator[str]:
    image = container.get("image")
    match = IMAGE.fullmatch(str(image))
    if not match or match["tag"] not in (image_tag("cpu"), image_tag("gpu")):
        yield f"{where}.image: must be glassbox:{image_tag('cpu')} or -gpu, is {image}"
    elif GPU in get_field(container, "resources.limits") and match["tag"] != image_tag("gpu"):
        yield f"{where}.image: a container with GPUs needs the GPU image, not {image}"
