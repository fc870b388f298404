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
from kube_pods import Pod, at
from kube_render import ROOT

TOOLS = ("buildah", "podman", "runc", "catatonit", "debootstrap")
BASE = "localhost/glassbox-test-base"
OURS = "glassbox-test-"  # before the names of all pods and volumes: what else podman has here is not ours to remove
MOST_PROCESSES = 32768  # without CAP_SYS_RESOURCE runc may set no more
HOST_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


class Engine:
    """podman with settings, pods and volumes of its own.

    Args:
        work: Directory for all of it; its pods are removed by `close`.
    """

    def __init__(self, work: Path) -> None:
        self._work, self._pods, self._volumes = work, [], []
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
        processes = min(resource.getrlimit(resource.RLIMIT_NPROC)[1] % 2**63, MOST_PROCESSES)
        settings = {
            "containers": {"default_ulimits": [f"nofile={files}:{files}", f"nproc={processes}:{processes}"]},
            "engine": {"runtime": "runc", "cgroup_manager": "cgroupfs", "events_logger": "file"},
        }
        lines = [
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for name, table in settings.items()
        ]
        (work / "containers.conf").write_text("\n".join(lines))
        (work / "pip.conf").write_text("[global]\ncert = /run/host-ca.crt\n")
        self._environment = os.environ | {
            "CONTAINERS_CONF": str(work / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }

    def run(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command, with podman's settings in its environment; its output is kept."""
        options = {"capture_output": True, "text": True, "env": self._environment, "cwd": ROOT} | options
        done = subprocess.run(words, **options)
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout or ''}{done.stderr or ''}"
            )
        return done

    def base(self) -> None:
        """Makes a base image of Debian's own packages, once."""
        if self.run("podman", "image", "exists", BASE, check=False).returncode == 0:
            return
        root = self._work / "root"
        self.run("debootstrap", "--variant=minbase", "bookworm", str(root))
        archive = self._work / "root.tar"
        self.run("tar", "-C", str(root), "-cf", str(archive), ".")
        self.run("podman", "import", str(archive), BASE)
        archive.unlink()
        shutil.rmtree(root)

    def build(self) -> None:
        """`make image`; pip trusts the certificates that this host trusts."""
        mounts = f"--volume {HOST_CERTIFICATES}:/run/host-ca.crt:ro --volume {self._work}/pip.conf:/etc/pip.conf:ro"
        options = f"BUILD_OPTIONS=--layers --build-arg BASE_IMAGE={BASE} {mounts}"
        with (self._work / "build.log").open("w") as log:
            self.run(
                "make",
                "image",
                "ENGINE=buildah",
                "EXTRA=cpu",
                options,
                capture_output=False,
                stdout=log,
                stderr=log,
            )

    def volume(self, name: str) -> Path:
        """Makes a volume of user 1000 in place of a claim; its directory here."""
        self.run("podman", "volume", "rm", "--force", OURS + name, check=False)  # of a test that was killed
        self.run("podman", "volume", "create", "--opt", "o=uid=1000,gid=1000", OURS + name)
        self._volumes.append(OURS + name)
        return Path(
            self.run("podman", "volume", "inspect", OURS + name, "--format", "{{.Mountpoint}}").stdout.strip()
        )

    def play(self, pod: Pod, name: str, secrets: dict[str, str], hosts: dict[str, str] | None = None) -> str:
        """Starts a pod, and returns its address. What podman cannot do is rewritten, and nothing else.

        Args:
            pod: As rendered.
            name: For it.
            secrets: Values of secrets by key: podman 4.3 knows no `secretKeyRef`.
            hosts: Addresses of names; a cluster's name service would know them.
        """
        manifest = copy.deepcopy(pod.manifest())
        # by default podman removes init containers, sometimes before they have ended
        manifest["metadata"] |= {
            "name": OURS + name,
            "annotations": {"io.podman.annotations.init.container.type": "always"},
        }
        spec = manifest["spec"]
        for container in [*spec["containers"], *(spec.get("initContainers") or [])]:
            container.pop("ports", None)  # podman would open them on this host
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                container.pop(
                    probe, None
                )  # podman would ask with curl from inside; `answers` asks from outside
            for variable in container.get("env") or []:
                if key := at(variable, "valueFrom.secretKeyRef").get("key"):
                    variable["value"] = secrets[key]
                    del variable["valueFrom"]
        for volume in spec["volumes"]:
            if "emptyDir" in volume:  # podman 4.3 takes the one of another pod that has this name
                _rename(spec, volume, f"{OURS}{name}-{volume['name']}")
            if at(volume, "emptyDir.medium") == "Memory":  # podman 4.3 would take the disk
                memory = Path("/dev/shm") / f"{OURS}{name}"
                memory.mkdir(mode=0o777, exist_ok=True)
                memory.chmod(0o777)
                del volume["emptyDir"]
                volume["hostPath"] = {"path": str(memory), "type": "Directory"}
            if claim := at(volume, "persistentVolumeClaim"):
                claim["claimName"] = OURS + claim["claimName"]
        if hosts:
            spec["hostAliases"] = [{"ip": address, "hostnames": [host]} for host, address in hosts.items()]
        file = self._work / f"{name}.yaml"
        file.write_text(yaml.safe_dump(manifest))
        file.chmod(0o600)
        self._pods.append(name)
        self.run("podman", "play", "kube", "--replace", "--network", "podman", str(file))
        infra = self.run(
            "podman", "pod", "inspect", OURS + name, "--format", "{{.InfraContainerID}}"
        ).stdout.strip()
        return self.run(
            "podman", "inspect", infra, "--format", "{{.NetworkSettings.IPAddress}}"
        ).stdout.strip()

    def finished(self, container: str, seconds: float) -> tuple[int, list[str], str]:
        """Exit code, lines of standard output, and standard error of a container, after its end."""
        code = self.run("podman", "wait", OURS + container, timeout=seconds).stdout.strip()
        done = self.run("podman", "logs", OURS + container)
        return int(code), done.stdout.strip().splitlines(), done.stderr

    def inside(self, container: str, script: str) -> str:
        """Output of a script in a running container."""
        return self.run("podman", "exec", OURS + container, "bash", "-c", script, check=False).stdout

    def remove(self, name: str) -> None:
        """Ends a pod."""
        self.run("podman", "pod", "rm", "--force", "--time", "5", OURS + name, check=False)
        shutil.rmtree(Path("/dev/shm") / f"{OURS}{name}", ignore_errors=True)
        self._pods.remove(name)

    def close(self) -> None:
        """Ends all pods and removes the volumes."""
        for name in [*self._pods]:
            self.remove(name)
        for name in self._volumes:
            self.run("podman", "volume", "rm", "--force", name, check=False)


def _rename(spec: dict[str, Any], volume: dict[str, Any], name: str) -> None:
    for container in [*spec["containers"], *(spec.get("initContainers") or [])]:
        for mount in container["volumeMounts"]:
            if mount["name"] == volume["name"]:
                mount["name"] = name
    volume["name"] = name


def answers(url: str, seconds: float = 0, method: str = "GET", token: str | None = None) -> tuple[int, str]:
    """Status and body of a request, tried again until the server answers with success or the time is over."""
    end = time.monotonic() + seconds
    while True:
        request = urllib.request.Request(
            url, method=method, headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read().decode()
        except (OSError, ValueError) as error:
            status, body = 0, str(error)
        if time.monotonic() > end:
            return status, body
        time.sleep(2)


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for something.

    Raises:
        TimeoutError: It did not come.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} after {seconds:.0f} s")
        time.sleep(1)


def missing_tools(tools: Sequence[str] = TOOLS) -> list[str]:
    """Tools that are not installed."""
    return [tool for tool in tools if shutil.which(tool) is None]
