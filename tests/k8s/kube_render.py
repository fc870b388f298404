"""The manifests as `kubectl kustomize` renders them."""

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
OVERLAYS = ("cpu-dev", "gpu")
COMPONENTS = ("monitoring", "kueue", "s3")


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML readers silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        if doubled := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(
                None, None, f"keys that stand twice: {sorted(doubled)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load(text: str) -> list[Document]:
    """The documents of a YAML text."""
    return [document for document in yaml.load_all(text, StrictLoader) if document is not None]


@functools.cache
def kubectl() -> str:
    """The one that `make test` installs, else the system's."""
    own = Path(sys.executable).parent / "kubectl"
    found = str(own) if own.exists() else shutil.which("kubectl")
    if not found:
        pytest.skip(
            "no kubectl: `make test` installs one on x86-64 Linux; elsewhere put 1.27 or newer on the PATH"
        )
    return found


def kustomize(directory: Path) -> list[Document]:
    """What a kustomization renders to."""
    run = subprocess.run([kubectl(), "kustomize", str(directory)], capture_output=True, text=True, timeout=60)
    if run.returncode:
        raise RuntimeError(f"{directory}: {run.stderr}")
    return load(run.stdout)


def composed(directory: Path, overlay: str, components: Sequence[str]) -> list[Document]:
    """What an overlay with components renders to.

    Args:
        directory: Empty; gets a kustomization as a user would write it.
        overlay: Its name.
        components: Their names.
    """
    here = os.path.relpath(K8S, directory)
    kustomization = {
        "resources": [f"{here}/overlays/{overlay}"],
        "components": [f"{here}/components/{name}" for name in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return kustomize(directory)
