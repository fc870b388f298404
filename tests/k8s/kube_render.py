"""Renders the manifests with `kubectl kustomize`."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

Document = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
VOLUME_OVERLAYS = ("cpu-dev", "gpu", "gpu-8")
OVERLAYS = (*VOLUME_OVERLAYS, "buckets", "gpu-8-buckets")
COMPONENTS = ("monitoring", "kueue", "pull-secret", "dashboard-login", "logs")
GPU_COMPONENTS = ("rdma", "spot", "same-block")  # for workers with GPUs
IDENTITIES = ("identity-aws", "identity-gcp", "identity-azure")  # one of them, with the component `buckets`


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses duplicate keys, of which YAML parsers silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        duplicates = {key for key in keys if keys.count(key) > 1}
        if duplicates:
            message = f"duplicate keys: {sorted(duplicates)}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return super().construct_mapping(node, deep)


def load_documents(text: str) -> list[Document]:
    """Parses the documents of a YAML text."""
    return [document for document in yaml.load_all(text, StrictLoader) if document is not None]


@functools.cache
def find_kubectl() -> str:
    """Returns the kubectl that `make test` installs, or the one on the PATH; skips the test without one."""
    directories = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    path = shutil.which("kubectl", path=directories)
    if not path:
        pytest.skip("no kubectl: `make test` installs it on x86-64 Linux; elsewhere put 1.27+ on the PATH")
    return path


def run_kustomize(directory: Path) -> list[Document]:
    """Renders a kustomization; those of the project are rendered once."""
    is_own = directory.resolve().is_relative_to(K8S)
    text = _render_once(directory) if is_own else _render_text(directory)
    return load_documents(text)


@functools.cache
def _render_once(directory: Path) -> str:
    return _render_text(directory)


def _render_text(directory: Path) -> str:
    command = [find_kubectl(), "kustomize", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise RuntimeError(f"{directory}: {result.stderr}")
    return result.stdout


def render_overlay(directory: Path, overlay: str, components: Sequence[str]) -> list[Document]:
    """Renders an overlay together with components.

    Args:
        directory: Empty directory that receives a kustomization such as users write.
        overlay: Name of a folder in `k8s/overlays`.
        components: Names of folders in `k8s/components`.
    """
    k8s = os.path.relpath(K8S, directory)
    kustomization = {
        "resources": [f"{k8s}/overlays/{overlay}"],
        "components": [f"{k8s}/components/{name}" for name in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return run_kustomize(directory)


def render_team(directory: Path, components: Sequence[str]) -> list[Document]:
    """Renders the example of a team with components.

    Args:
        directory: Empty directory that receives a kustomization such as users write.
        components: Names of folders in `k8s/components`.
    """
    k8s = os.path.relpath(K8S, directory)
    kustomization = {
        "resources": [f"{k8s}/examples/teams/audio"],
        "components": [f"{k8s}/components/{name}" for name in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return run_kustomize(directory)


def load_rayjob_example(overlay: str = "gpu", namespace: str = "glassbox") -> list[Document]:
    """Loads the example of a training on the cluster of an overlay, as `kubectl apply --namespace` does."""
    name = "rayjob-buckets.yaml" if overlay.endswith("buckets") else "rayjob.yaml"
    documents = load_documents((K8S / "examples" / name).read_text())
    for document in documents:
        document["metadata"]["namespace"] = namespace
    return documents
