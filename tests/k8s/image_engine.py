"""Runs rendered pods with podman, for `image_run.py`."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from kube_pods import Pod, get_field
from kube_render import ROOT

TOOLS = ("buildah", "podman", "runc", "catatonit", "debootstrap")
BASE_IMAGE = "localhost/glassbox-test-base"
PREFIX = "glassbox-test-"  # of all pods and volumes; other objects in podman are never removed
MAX_PROCESSES = 32768  # the most that runc may set without CAP_SYS_RESOURCE
HOST_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
RETRY_SECONDS = 2.0


class Engine:
    """Podman with a configuration, pods and volumes of its own.

    Args:
        work: Directory for configuration, logs and manifests; `close` removes the pods.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._pods: list[str] = []
        self._volumes: list[str] = []
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
        processes = min(resource.getrlimit(resource.RLIMIT_NPROC)[1] % 2**63, MAX_PROCESSES)
        settings = {
            "containers": {"default_ulimits": [f"nofile={files}:{files}", f"nproc={processes}:{processes}"]},
            "engine": {"runtime": "runc", "cgroup_manager": "cgroupfs", "events_logger": "file"},
        }
        sections = []
        for name, table in settings.items():
            entries = [f"{key} = {json.dumps(value)}\n" for key, value in table.items()]
            sections.append(f"[{name}]\n{''.join(entries)}")
        (work / "containers.conf").write_text("\n".join(sections))
        (work / "pip.conf").write_text("[global]\ncert = /run/host-ca.crt\n")
        self._environment = os.environ | {
            "CONTAINERS_CONF": str(work / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }

    def run(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command with podman's configuration in its environment, and captures its output.

        Args:
            *words: Command and arguments.
            check: Whether a non-zero exit code raises.
            **options: Options of `subprocess.run`.

        Raises:
            RuntimeError: The command failed.
        """
        defaults = {"capture_output": True, "text": True, "env": self._environment, "cwd": ROOT}
        result = subprocess.run(words, **(defaults | options))
        if check and result.returncode:
            output = f"{result.stdout or ''}{result.stderr or ''}"
            raise RuntimeError(f"{' '.join(words)}: exit code {result.returncode}\n{output}")
        return result

    def build_base(self) -> None:
        """Builds a base image from Debian's packages unless it exists."""
        if self.run("podman", "image", "exists", BASE_IMAGE, check=False).returncode == 0:
            return
        root = self._work / "root"
        self.run("debootstrap", "--variant=minbase", "bookworm", str(root))
        archive = self._work / "root.tar"
        self.run("tar", "-C", str(root), "-cf", str(archive), ".")
        self.run("podman", "import", str(archive), BASE_IMAGE)
        archive.unlink()
        shutil.rmtree(root)

    def build_image(self) -> None:
        """Runs `make image`; pip trusts the certificates that this host trusts."""
        certificates = f"--volume {HOST_CERTIFICATES}:/run/host-ca.crt:ro"
        pip_config = f"--volume {self._work}/pip.conf:/etc/pip.conf:ro"
        options = f"--layers --build-arg BASE_IMAGE={BASE_IMAGE} {certificates} {pip_config}"
        command = ["make", "image", "ENGINE=buildah", "EXTRA=cpu", f"BUILD_OPTIONS={options}"]
        with (self._work / "build.log").open("w") as log:
            self.run(*command, capture_output=False, stdout=log, stderr=log)

    def create_volume(self, name: str) -> Path:
        """Creates a volume of user 1000 in place of a claim, and returns its directory on this host."""
        volume = PREFIX + name
        self.run("podman", "volume", "rm", "--force", volume, check=False)  # left by a killed test
        self.run("podman", "volume", "create", "--opt", "o=uid=1000,gid=1000", volume)
        self._volumes.append(volume)
        result = self.run("podman", "volume", "inspect", volume, "--format", "{{.Mountpoint}}")
        return Path(result.stdout.strip())

    def play(
        self,
        pod: Pod,
        name: str,
        secrets: dict[str, str],
        hosts: dict[str, str] | None = None,
        configs: dict[str, dict[str, str]] | None = None,
    ) -> str:
        """Starts a pod and returns its address. Only what podman does not support is rewritten.

        Args:
            pod: Pod as rendered from the manifests.
            name: Name of the pod in podman, without the prefix.
            secrets: Values of secrets by key; podman 4.3 does not support `secretKeyRef`.
            hosts: Addresses by host name, in place of the cluster's name service.
            configs: Data of ConfigMaps by name, in place of their objects.
        """
        manifest = copy.deepcopy(pod.manifest())
        manifest["metadata"]["name"] = PREFIX + name
        # By default podman removes init containers, sometimes before they have exited.
        manifest["metadata"]["annotations"] = {"io.podman.annotations.init.container.type": "always"}
        spec = manifest["spec"]
        _start_sidecars_as_containers(spec)
        for container in _list_containers(spec):
            _adapt_container(container, secrets)
        for volume in spec["volumes"]:
            if config := get_field(volume, "configMap"):
                del volume["configMap"]
                path = self._write_config(name, (configs or {})[config["name"]])
                volume["hostPath"] = {"path": str(path), "type": "Directory"}
            _adapt_volume(spec, volume, name)
        if hosts:
            spec["hostAliases"] = [{"ip": address, "hostnames": [host]} for host, address in hosts.items()]
        file = self._work / f"{name}.yaml"
        file.write_text(yaml.safe_dump(manifest))
        file.chmod(0o600)
        self._pods.append(name)
        self.run("podman", "play", "kube", "--replace", "--network", "podman", str(file))
        template = "{{.InfraContainerID}}"
        infra = self.run("podman", "pod", "inspect", PREFIX + name, "--format", template).stdout.strip()
        template = "{{.NetworkSettings.IPAddress}}"
        return self.run("podman", "inspect", infra, "--format", template).stdout.strip()

    def _write_config(self, pod_name: str, data: dict[str, str]) -> Path:
        folder = self._work / f"{pod_name}-config"
        folder.mkdir()
        folder.chmod(0o755)
        for name, text in data.items():
            (folder / name).write_text(text)
        return folder

    def wait_for_exit(self, container: str, seconds: float) -> tuple[int, list[str], str]:
        """Waits until a container exits; returns its exit code, lines of output, and standard error."""
        code = self.run("podman", "wait", PREFIX + container, timeout=seconds).stdout.strip()
        logs = self.run("podman", "logs", PREFIX + container)
        return int(code), logs.stdout.strip().splitlines(), logs.stderr

    def execute(self, container: str, script: str) -> str:
        """Runs a script in a running container and returns its output."""
        return self.run("podman", "exec", PREFIX + container, "bash", "-c", script, check=False).stdout

    def remove(self, name: str) -> None:
        """Stops and removes a pod."""
        self.run("podman", "pod", "rm", "--force", "--time", "5", PREFIX + name, check=False)
        shutil.rmtree(Path("/dev/shm") / f"{PREFIX}{name}", ignore_errors=True)
        self._pods.remove(name)

    def close(self) -> None:
        """Removes all pods and volumes."""
        for name in [*self._pods]:
            self.remove(name)
        for name in self._volumes:
            self.run("podman", "volume", "rm", "--force", name, check=False)


def _list_containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec["containers"], *(spec.get("initContainers") or [])]


def _start_sidecars_as_containers(spec: dict[str, Any]) -> None:
    """Makes containers of the init containers that run as long as the pod, which podman 4.3 does not know."""
    initial = spec.get("initContainers") or []
    sidecars = [container for container in initial if container.get("restartPolicy") == "Always"]
    for sidecar in sidecars:
        del sidecar["restartPolicy"]
    spec["initContainers"] = [container for container in initial if container not in sidecars]
    spec["containers"] += sidecars


def _adapt_container(container: dict[str, Any], secrets: dict[str, str]) -> None:
    container.pop("ports", None)  # podman would publish them on this host
    for probe in PROBES:
        container.pop(probe, None)  # podman would run curl inside the container; `request` runs outside
    for variable in container.get("env") or []:
        key = get_field(variable, "valueFrom.secretKeyRef").get("key")
        if key:
            variable["value"] = secrets[key]
            del variable["valueFrom"]
        elif "valueFrom" in variable:  # a field of the pod
            variable["value"] = ""  # as that of a label that is not there
            del variable["valueFrom"]


def _adapt_volume(spec: dict[str, Any], volume: dict[str, Any], pod_name: str) -> None:
    if "emptyDir" in volume:  # podman 4.3 shares volumes of the same name between pods
        _rename_volume(spec, volume, f"{PREFIX}{pod_name}-{volume['name']}")
    if get_field(volume, "emptyDir.medium") == "Memory":  # podman 4.3 would put it on disk
        memory = Path("/dev/shm") / f"{PREFIX}{pod_name}"
        memory.mkdir(mode=0o777, exist_ok=True)
        memory.chmod(0o777)
        del volume["emptyDir"]
        volume["hostPath"] = {"path": str(memory), "type": "Directory"}
    if claim := get_field(volume, "persistentVolumeClaim"):
        claim["claimName"] = PREFIX + claim["claimName"]


def _rename_volume(spec: dict[str, Any], volume: dict[str, Any], name: str) -> None:
    for container in _list_containers(spec):
        for mount in container["volumeMounts"]:
            if mount["name"] == volume["name"]:
                mount["name"] = name
    volume["name"] = name


def request(url: str, seconds: float = 0, method: str = "GET", token: str | None = None) -> tuple[int, str]:
    """Sends a request, repeated until it succeeds or the time is over.

    Args:
        url: Address to query.
        seconds: How long failed requests are repeated.
        method: HTTP method of the request.
        token: Bearer token, if any.

    Returns:
        Status and body of the last response; status 0 without a response.
    """
    deadline = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    while True:
        try:
            http_request = urllib.request.Request(url, method=method, headers=headers)
            with urllib.request.urlopen(http_request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status = error.code
            body = error.read().decode()
        except (OSError, ValueError) as error:
            status = 0
            body = str(error)
        if time.monotonic() > deadline:
            return status, body
        time.sleep(RETRY_SECONDS)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits until a condition holds.

    Args:
        condition: Function that is called once a second.
        seconds: How long to wait for it.
        what: Name of the awaited thing in the error.

    Raises:
        TimeoutError: The condition did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {seconds:.0f} s")
        time.sleep(1)


def find_missing_tools(tools: Sequence[str] = TOOLS) -> list[str]:
    """Returns the tools that are not installed."""
    return [tool for tool in tools if shutil.which(tool) is None]
