"""`glassbox submit`: prints a training as a RayJob, which creates and deletes its own cluster."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.errors import ConfigError
from service.commands.common import PRESET_HELP, SHARDS_HELP, Subparsers, add_command

if TYPE_CHECKING:
    from service.config import RunConfig

K8S_HELP = (
    "manifests of the cluster: a folder with a kustomization (needs kubectl), a file of them, "
    "or - for standard input"
)


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `submit` to the command line."""
    summary = "print the RayJob of a training on Kubernetes, for 'kubectl apply --filename -'"
    parser = add_command(commands, "submit", summary, run)
    parser.add_argument("name", metavar="NAME", help="name of the job and of its run")
    parser.add_argument("--k8s", required=True, metavar="MANIFESTS", help=K8S_HELP)
    parser.add_argument("--preset", required=True, metavar="PRESET", help=PRESET_HELP)
    parser.add_argument("--data", required=True, metavar="SHARDS", help=SHARDS_HELP)
    parser.add_argument("--out", metavar="RUN", help="the run (default: runs/NAME in the bucket or volume)")
    parser.add_argument("--workers", type=int, metavar="N", help="worker pods (default: as in the manifests)")
    parser.add_argument(
        "--gpus-per-worker", type=int, metavar="K", help="GPUs of each pod (default: as in the manifests)"
    )
    parser.add_argument("--queue", metavar="QUEUE", help="LocalQueue (default: the one of the manifests)")
    parser.add_argument(
        "--hours", type=float, default=24.0, metavar="H", help="stop the job after (default: %(default)g)"
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="new clusters after a lost head or a failed training (default: %(default)s)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting: epochs=5")


def run(options: argparse.Namespace) -> None:
    """Prints the RayJob.

    Raises:
        ConfigError: Preset, settings or manifests are wrong, or the workers do not fit the batch.
    """
    from service.config import load_config
    from service.kubernetes.rayjob import TrainingJob, render_rayjob

    job = TrainingJob(
        name=options.name,
        preset=options.preset,
        data=options.data,
        out=options.out,
        workers=options.workers,
        gpus_per_worker=options.gpus_per_worker,
        overrides=options.overrides,
        queue=options.queue,
        hours=options.hours,
        retries=options.retries,
    )
    config = load_config(job.preset, job.data, options.overrides)  # a mistake costs no cluster
    document = render_rayjob(read_manifests(options.k8s), job)
    _check_batch(document, config)
    print(yaml.dump(document, Dumper=PlainDumper, sort_keys=False, width=1000), end="")


class PlainDumper(yaml.SafeDumper):
    """Writes equal values in full, instead of as references to the first one."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True: nothing is written as a reference."""
        return True


def _check_batch(document: dict[str, Any], config: RunConfig) -> None:
    """Checks that the worker pods can share the global batch.

    Raises:
        ConfigError: The global batch cannot be divided among the pods and their GPUs.
    """
    from service.kubernetes.rayjob import GPU
    from service.training.group import WorkerSpec, plan_groups

    (group,) = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus = int(limits["cpu"])
    gpus = int(limits.get(GPU, 0))
    workers = group["replicas"]
    spec = WorkerSpec(workers, workers, cpus=cpus, gpus=gpus or None)
    nodes = [{"CPU": float(cpus), "GPU": float(gpus)}] * workers
    plan_groups(spec, nodes, config.global_batch, config.augment, config.data.lanes)


def read_manifests(location: str) -> list[dict[str, Any]]:
    """Reads the manifests of a cluster.

    Args:
        location: Folder with a kustomization, file, or `-` for standard input.

    Raises:
        ConfigError: They cannot be read or rendered.
    """
    if location == "-":
        text = sys.stdin.read()
    elif Path(location).is_dir():
        text = _render(location)
    else:
        try:
            text = Path(location).read_text()
        except OSError as error:
            raise ConfigError("manifests", f"{location}: {error.strerror}", "see k8s/README.md") from None
    try:
        return [document for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    except yaml.YAMLError as error:
        raise ConfigError("manifests in YAML", f"{location}: {error}", "correct the file") from None


def _render(folder: str) -> str:
    try:
        result = subprocess.run(
            ["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=120, check=True
        )
    except FileNotFoundError:
        raise ConfigError(
            "kubectl on the PATH", "none", f"install it, or render {folder} elsewhere and name the file"
        ) from None
    except subprocess.CalledProcessError as error:
        received = f"{folder}: {error.stderr.strip()}"
        raise ConfigError("a kustomization that renders", received, "correct it") from None
    return result.stdout
