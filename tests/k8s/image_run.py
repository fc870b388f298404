"""Builds the image and runs the manifests' pods: `make image-test`, as root, on a machine that may be a container itself.

No Kubernetes is needed: the pods of the overlay `cpu-dev`, as the operator and the controllers would make them, run under podman.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from image_engine import BASE, Engine, answers, missing_tools, until
from kube_pods import Pod, pods
from kube_render import K8S, kustomize, load
from lint_versions import tag

HEAD_NAME = "glassbox-head-svc.glassbox.svc.cluster.local"
TRAINING = (
    "glassbox",
    "train",
    "--preset",
    "demo",
    "--data",
    "/shards/evidence",
    "--out",
    "/runs/first",
    "--workers",
    "1",
)
TRAINING += ("--cpus-per-worker", "2", "epochs=2")
LOCKED_IN = "id -u; touch /etc/x 2>&1; awk '/CapEff|CapBnd|NoNewPrivs|Seccomp:/{print $2}' /proc/self/status"


class UnexpectedError(Exception):
    """Something is not as it should be."""


@contextmanager
def step(name: str) -> Iterator[None]:
    """Says how long a block took."""
    print(f"{name} ...", flush=True)
    began = time.monotonic()
    yield
    print(f"    {time.monotonic() - began:.0f} s", flush=True)


def expect(true: bool, what: str, received: object) -> None:
    """Stops where something is wrong."""
    if not true:
        raise UnexpectedError(f"Expected {what}. Received: {received}")
    print(f"    {what}", flush=True)


def main() -> int:
    """Runs all steps; the exit code."""
    if (absent := missing_tools()) or os.geteuid() != 0:
        print(
            f"Expected root with some tools. Received: uid={os.geteuid()} missing={absent}. Fix: install them with apt."
        )
        return 2
    print(
        "podman cannot do all of it: secrets become values, memory volumes directories of /dev/shm; probes are asked from outside"
    )
    rendered = {
        pod.owner.partition("/")[2] if pod.role not in ("head", "worker") else pod.role: pod
        for pod in pods(kustomize(K8S / "overlays/cpu-dev"))
    }
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="glassbox-") as work:
        engine = Engine(Path(work))
        try:
            _build(engine)
            _run(engine, rendered)
        except (UnexpectedError, RuntimeError, TimeoutError) as failure:
            print(f"FAILED: {failure}")
            return 1
        finally:
            engine.close()
    print("passed")
    return 0


def _build(engine: Engine) -> None:
    with step(f"base image {BASE}"):
        engine.base()
    with step("make image"):
        engine.build()
    image = f"localhost/glassbox:{tag('cpu')}"
    size = int(engine.run("podman", "image", "inspect", image, "--format", "{{.Size}}").stdout)
    print(f"    {image}: {size / 1e9:.2f} GB")
    tools = engine.run(
        "podman",
        "run",
        "--rm",
        "--network",
        "none",
        image,
        "bash",
        "-c",
        "command -v gcc cc clang make pip; true",
    ).stdout
    expect(not tools.strip(), "no compiler and no pip in the image", tools)


def _run(engine: Engine, rendered: dict[str, Pod]) -> None:
    token = secrets.token_hex(32)
    values = {"auth_token": token}
    engine.volume("shards")
    runs = engine.volume("runs")
    with step("shard-building Job"):
        engine.play(rendered["shards"], "shards-pod", values)
        code, said, errors = engine.finished("shards-pod-shards", 600)
        expect(code == 0, "the Job ends with 0", f"{code}\n{errors}")
        print("    " + "\n    ".join(said[-2:]))
    with step("head"):
        head = engine.play(rendered["head"], "head", values)
        expect(
            answers(f"http://{head}:52365/api/healthz", 300)[0] == 200,
            "the head's probe answers",
            engine.inside("head-ray-head", "ls /tmp/ray"),
        )
        expect(
            answers(f"http://{head}:8265/api/version", 120, token=token)[0] == 200,
            "its dashboard answers",
            head,
        )
    with step("worker"):
        worker = engine.play(rendered["worker"], "worker", values, {HEAD_NAME: head})
        expect(
            answers(f"http://{worker}:52365/api/healthz", 300)[0] == 200, "the worker's probe answers", worker
        )
    for container in ("head-ray-head", "worker-ray-worker"):
        _locked_in(engine, container)
    _submit(engine, head, worker, token)
    _report(engine, rendered, values, runs)


def _locked_in(engine: Engine, container: str) -> None:
    found = engine.inside(container, LOCKED_IN).split("\n")[:-1]
    wanted = ["1000", "touch: cannot touch '/etc/x': Read-only file system", "0" * 16, "0" * 16, "1", "2"]
    expect(
        found == wanted,
        f"{container}: user 1000, read-only root, no capabilities, no new privileges, system calls filtered",
        found,
    )


def _submit(engine: Engine, head: str, worker: str, token: str) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    client = os.environ | {
        "RAY_API_SERVER_ADDRESS": f"http://{head}:8265",
        "RAY_AUTH_MODE": "token",
        "HOME": "/nonexistent",
    }
    client.pop("RAY_AUTH_TOKEN", None)
    for name, environment in (
        ("no token", client | {"RAY_AUTH_MODE": "disabled"}),
        ("a wrong token", client | {"RAY_AUTH_TOKEN": "0" * 64}),
    ):
        with step(f"ray job submit with {name}"):
            refused = engine.run(
                ray, "job", "submit", "--", "glassbox", "presets", check=False, env=environment
            )
            said = [
                line
                for line in (refused.stdout + refused.stderr).splitlines()
                if "AuthenticationError" in line
            ]
            expect(refused.returncode != 0 and bool(said), "it is refused", refused)
            print(f"    {said[-1]}")
    expect(
        answers(f"http://{head}:8265/api/jobs/")[0] == 401, "without a token the job API answers 401", head
    )
    with step("ray job submit with the token: a training of two epochs"):
        with ThreadPoolExecutor() as pool:
            words = (ray, "job", "submit", "--", *TRAINING)
            training = pool.submit(
                engine.run, *words, check=False, env=client | {"RAY_AUTH_TOKEN": token}, timeout=900
            )
            seen: set[str] = set()  # the gauges vanish with the training
            while not training.done():
                seen |= set(
                    re.findall(
                        r"^ray_glassbox_\w+", answers(f"http://{worker}:8080/metrics")[1], re.MULTILINE
                    )
                )
                time.sleep(1)
        done = training.result()
        expect(done.returncode == 0, "the training succeeds", (done.stdout + done.stderr)[-3000:])
        asked = set(
            re.findall(r"ray_glassbox_\w+", (K8S / "components/monitoring/dashboard.json").read_text())
        )
        expect(
            asked <= seen,
            "the worker's metrics need no token and have what the dashboard shows",
            sorted(seen),
        )
        print(f"    {', '.join(sorted(seen))}")
    with step("ray job submit of the code in this folder"):
        words = (ray, "job", "submit", "--working-dir", ".", "--", "python", "service/train.py", "--help")
        done = engine.run(*words, check=False, env=client | {"RAY_AUTH_TOKEN": token}, timeout=300)
        expect(
            done.returncode == 0 and "--cpus-per-worker" in done.stdout,
            "it runs there",
            (done.stdout + done.stderr)[-3000:],
        )
    with step("the submitter of a RayJob"):
        (submitter,) = pods(load((K8S / "examples/rayjob.yaml").read_text()))
        command = (
            f"ray job submit --address http://{head}:8265 -- glassbox presets"  # the operator's, in short
        )
        submitter.spec["containers"][0] |= {"command": ["/bin/bash", "-c", "--"], "args": [command]}
        engine.play(submitter, "submitter", {"auth_token": token})
        code, said, errors = engine.finished("submitter-ray-job-submitter", 300)
        expect(
            code == 0 and any("succeeded" in line for line in said),
            "it ends with 0",
            f"{code}\n{said}\n{errors}",
        )


def _report(engine: Engine, rendered: dict[str, Pod], values: dict[str, str], runs: Path) -> None:
    page = runs / "first/report/index.html"
    for n, what in enumerate(("report CronJob, first time", "report CronJob, second time")):
        with step(what):
            engine.play(rendered["report"], f"report{n}", values)
            _locked_in(engine, f"report{n}-report")
            code, said, errors = engine.finished(f"report{n}-report", 900)
            expect(code == 0, "it ends with 0", f"{code}\n{errors[-3000:]}")
            until(page.exists, 5, "report")
            print("    " + "\n    ".join(said[-2:]))
            engine.remove(f"report{n}")
    sizes = {
        path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        for path in (page.parent, runs / "first")
    }
    print(f"    {sizes['first']:.1f} MB a run, of which {sizes['report']:.1f} MB report")
    with step("web server"):
        web = engine.play(rendered["reports"], "web", values)
        status, body = answers(f"http://{web}:8080/first/report/index.html", 60)
        expect(status == 200 and body == page.read_text(), "it shows the report", status)
        expect(
            answers(f"http://{web}:8080/first/report/index.html", method="DELETE")[0] == 501,
            "and changes nothing",
            "",
        )


if __name__ == "__main__":
    sys.exit(main())
