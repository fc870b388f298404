"""Builds the image and runs the pods of the manifests: `make image-test`, as root, also inside a container.

It needs no Kubernetes: the pods of the overlay `cpu-dev`, as the operator and the controllers create them,
run under podman.
"""

from __future__ import annotations

import copy
import json
import os
import re
import secrets
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from image_engine import BASE_IMAGE, Engine, find_missing_tools, request, wait_until
from kube_pods import SUFFIX, Pod, list_pods
from kube_render import K8S, Document, load_rayjob_example, render_overlay, run_kustomize
from lint_logs import SIDECAR
from lint_versions import image_tag, read_locked_version

from service.kubernetes.rayjob import TrainingJob, render_rayjob

HEAD_NAME = "glassbox-head-svc.glassbox.svc.cluster.local"
TRAINING = (
    *("glassbox", "train", "--preset", "demo", "--data", "/shards/evidence", "--out", "/runs/first"),
    *("--workers", "1", "--cpus-per-worker", "2", "epochs=2"),
)
SANDBOX_SCRIPT = (
    "id -u; touch /etc/x 2>&1; awk '/CapEff|CapBnd|NoNewPrivs|Seccomp:/{print $2}' /proc/self/status"
)
SANDBOX = ["1000", "touch: cannot touch '/etc/x': Read-only file system", "0" * 16, "0" * 16, "1", "2"]
MAX_IMAGE_BYTES = 2.2e9
BILL_OF_MATERIALS = "/usr/share/doc/glassbox/sbom.json"
DRIVER_LOGS = "/tmp/ray/session_2*/logs/job-driver-*.log"
GAUGE = re.compile(r"ray_glassbox_\w+")
STORE_GAUGES = "ray_glassbox_store_"  # exported only where shards come from a bucket


class UnexpectedResultError(Exception):
    """A check of this program failed."""


@contextmanager
def step(name: str) -> Iterator[None]:
    """Prints a name, and how long the block took."""
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    yield
    print(f"    {time.monotonic() - start:.0f} s", flush=True)


def expect(condition: bool, what: str, received: object) -> None:
    """Prints what holds, or raises.

    Args:
        condition: Whether the expectation is met.
        what: Expectation in words.
        received: Value shown if it is not met.

    Raises:
        UnexpectedResultError: The expectation is not met.
    """
    if not condition:
        raise UnexpectedResultError(f"Expected {what}. Received: {received}")
    print(f"    {what}", flush=True)


def list_local_gauges() -> set[str]:
    """Returns the gauges of the dashboard that a training of local shards exports: all but the store's."""
    dashboard = (K8S / "components/monitoring/dashboard.json").read_text()
    return {name for name in GAUGE.findall(dashboard) if not name.startswith(STORE_GAUGES)}


def main() -> int:
    """Runs all steps and returns the exit code."""
    missing = find_missing_tools()
    if missing or os.geteuid() != 0:
        print(
            f"Expected root and the tools of the image test. Received: uid={os.geteuid()} missing={missing}. "
            "Fix: install them with apt."
        )
        return 2
    print(
        "differences to Kubernetes: secrets become values, memory volumes become directories of /dev/shm, "
        "probes are sent from outside"
    )
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="glassbox-") as work:
        overlay = Path(work) / "overlay"
        overlay.mkdir()
        documents = render_overlay(overlay, "cpu-dev", ["logs"])
        engine = Engine(Path(work))
        try:
            _build(engine)
            _run(engine, documents)
        except (UnexpectedResultError, RuntimeError, TimeoutError) as failure:
            print(f"FAILED: {failure}")
            return 1
        finally:
            engine.close()
    print("passed")
    return 0


def _build(engine: Engine) -> None:
    with step(f"base image {BASE_IMAGE}"):
        engine.build_base()
    with step("make image"):
        engine.build_image()
    image = f"localhost/glassbox:{image_tag('cpu')}"
    size = int(engine.run("podman", "image", "inspect", image, "--format", "{{.Size}}").stdout)
    print(f"    {image}: {size / 1e9:.2f} GB")
    expect(size <= MAX_IMAGE_BYTES, f"at most {MAX_IMAGE_BYTES / 1e9} GB", size)
    run = ("podman", "run", "--rm", "--network", "none", image)
    tools = engine.run(*run, "bash", "-c", "command -v gcc cc clang make pip; true").stdout
    expect(not tools.strip(), "no compiler and no pip in the image", tools)
    bill = json.loads(engine.run(*run, "cat", BILL_OF_MATERIALS).stdout)
    # Some packages are locked twice, for different versions of Python.
    packages = {(component["name"], component["version"]) for component in bill["components"]}
    locked = {(name, read_locked_version(name, "cpu")) for name in ("ray", "keras", "numpy")}
    expect(locked <= packages, f"{len(packages)} packages in its bill of materials", locked - packages)


def _name_pods(documents: list[Document]) -> dict[str, Pod]:
    pods = {}
    for pod in list_pods(documents):
        name = pod.role if pod.role in ("head", "worker") else pod.owner.partition("/")[2]
        pods[name] = pod
    return pods


def _replace_sidecar(pod: Pod) -> None:
    """Runs Bash in place of Fluent Bit, whose image is not built here, with the same user and mounts."""
    image = pod.spec["containers"][0]["image"]
    for container in pod.spec["initContainers"]:
        if container["name"] == SIDECAR:
            container |= {"image": image, "command": ["/bin/bash", "-c"], "args": ["sleep infinity"]}


def _run(engine: Engine, documents: list[Document]) -> None:
    pods = _name_pods(documents)
    configs = {
        document["metadata"]["name"]: document["data"]
        for document in documents
        if document["kind"] == "ConfigMap"
    }
    for role in ("head", "worker"):
        _replace_sidecar(pods[role])
    token = secrets.token_hex(32)
    values = {"auth_token": token}
    engine.create_volume("shards")
    runs = engine.create_volume("runs")
    with step("shards Job"):
        engine.play(pods["shards"], "shards-pod", values)
        code, output, errors = engine.wait_for_exit("shards-pod-shards", 600)
        expect(code == 0, "the Job exits with 0", f"{code}\n{errors}")
        _print_lines(output[-2:])
    with step("head"):
        head = engine.play(pods["head"], "head", values, configs=configs)
        status, _ = request(f"http://{head}:52365/api/healthz", 300)
        sessions = engine.execute("head-ray-head", "ls /tmp/ray")
        expect(status == 200, "the head's health check succeeds", sessions)
        status, _ = request(f"http://{head}:8265/api/version", 120, token=token)
        expect(status == 200, "its dashboard responds", head)
    with step("worker"):
        worker = engine.play(pods["worker"], "worker", values, {HEAD_NAME: head}, configs)
        status, _ = request(f"http://{worker}:52365/api/healthz", 300)
        expect(status == 200, "the worker's health check succeeds", worker)
    for container in ("head-ray-head", "worker-ray-worker", f"head-{SIDECAR}", f"worker-{SIDECAR}"):
        _check_sandbox(engine, container)
    _check_login_shell(engine, "head-ray-head")
    _check_dashboard(head, token)
    _submit_jobs(engine, head, worker, token)
    _check_sidecar(engine, f"head-{SIDECAR}", configs[SIDECAR])
    _drain(engine, head, token)
    for name in ("worker", "head"):
        engine.remove(name)
    _run_job_cluster(engine, values)
    _run_reports(engine, pods, values, runs)


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(f"    {line}")


def _check_sandbox(engine: Engine, container: str) -> None:
    lines = engine.execute(container, SANDBOX_SCRIPT).split("\n")[:-1]
    expect(
        lines == SANDBOX,
        f"{container}: user 1000, read-only root, no capabilities, no new privileges, seccomp",
        lines,
    )


def _check_login_shell(engine: Engine, container: str) -> None:
    script = "bash -lc 'command -v glassbox python ray'"
    lines = engine.execute(container, script).split()
    expected = [f"/opt/glassbox/bin/{name}" for name in ("glassbox", "python", "ray")]
    expect(lines == expected, "a login shell finds glassbox, python and ray", lines)


def _check_dashboard(head: str, token: str) -> None:
    """Logs in as the dashboard does behind the proxy of `examples/login-dashboard`."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    def send(path: str, method: str = "GET", **headers: str) -> int:
        http_request = urllib.request.Request(f"http://{head}:8265{path}", method=method, headers=headers)
        try:
            with opener.open(http_request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    with step("login of the dashboard"):
        status = send("/")
        expect(status == 200, "its page, which asks for the token, needs none", status)
        status = send("/api/authenticate", "POST", Authorization=f"Bearer {'0' * 64}")
        expect(status == 403, "a wrong token is refused", status)
        status = send("/api/jobs/")
        expect(status == 401, "without a token it reads nothing", status)
        status = send("/api/authenticate", "POST", Authorization=f"Bearer {token}")
        expect(status == 200, "the token is accepted", status)
        status = send("/api/jobs/")
        expect(status == 200, "the cookie that it gets is enough to read", status)
        status = send("/api/jobs/", "POST", Origin="https://reports.example.org")
        expect(status == 405, "no page starts a job with it", status)
        status = send("/api/jobs/", Authorization="Bearer of-the-identity-provider")
        expect(status == 403, "the token of an identity provider is taken for Ray's and refused", status)


def _check_sidecar(engine: Engine, container: str, config: dict[str, str]) -> None:
    """Checks with the mounts of the sidecar that it can read what Ray writes, and nothing more."""
    with step("sidecar for logs"):
        logs = engine.execute(container, f"cat {DRIVER_LOGS}")
        expect("/runs/first" in logs, "it reads the log of the training's driver", logs[-3000:])
        files = engine.execute(container, "ls /etc/logs").split()
        expect(files == sorted(config), "it has its configuration", files)
        error = engine.execute(container, "touch /tmp/x 2>&1")
        expect("Read-only file system" in error, "it changes nothing that Ray writes", error)
        error = engine.execute(container, "touch /positions/files.db 2>&1")
        expect(not error, "it can keep its positions", error)


def _submit_jobs(engine: Engine, head: str, worker: str, token: str) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    environment = os.environ | {
        "RAY_API_SERVER_ADDRESS": f"http://{head}:8265",
        "RAY_AUTH_MODE": "token",
        "HOME": "/nonexistent",
    }
    environment.pop("RAY_AUTH_TOKEN", None)
    with_token = environment | {"RAY_AUTH_TOKEN": token}
    submit = (ray, "job", "submit")
    _check_refused(engine, submit, "no token", environment | {"RAY_AUTH_MODE": "disabled"})
    _check_refused(engine, submit, "a wrong token", environment | {"RAY_AUTH_TOKEN": "0" * 64})
    status, _ = request(f"http://{head}:8265/api/jobs/")
    expect(status == 401, "without a token the job API responds with 401", head)
    _submit_training(engine, submit, with_token, worker)
    with step("ray job submit with the code of this folder"):
        command = ("--working-dir", ".", "--", "python", "service/train.py", "--help")
        result = engine.run(*submit, *command, check=False, env=with_token, timeout=300)
        success = result.returncode == 0 and "--cpus-per-worker" in result.stdout
        expect(success, "it runs on the cluster", (result.stdout + result.stderr)[-3000:])
    with step("the submitter of a RayJob"):
        (submitter,) = list_pods(load_rayjob_example())
        _run_submitter(engine, submitter, "submitter", head, "glassbox presets", token)


def _run_submitter(engine: Engine, pod: Pod, name: str, head: str, entrypoint: str, token: str) -> None:
    """Submits a job from the pod that the operator starts for a RayJob, and waits until it succeeded."""
    # The operator's command without its wait for the dashboard.
    command = f"ray job submit --address http://{head}:8265 -- {entrypoint}"
    pod.spec["containers"][0] |= {"command": ["/bin/bash", "-c", "--"], "args": [command]}
    engine.play(pod, name, {"auth_token": token})
    code, output, errors = engine.wait_for_exit(f"{name}-ray-job-submitter", 900)
    success = code == 0 and any("succeeded" in line for line in output)
    expect(success, f"the job of {name} succeeds", f"{code}\n{output}\n{errors}")
    engine.remove(name)


def _check_refused(engine: Engine, submit: tuple[str, ...], name: str, environment: dict[str, str]) -> None:
    with step(f"ray job submit with {name}"):
        result = engine.run(*submit, "--", "glassbox", "presets", check=False, env=environment)
        output = (result.stdout + result.stderr).splitlines()
        errors = [line for line in output if "AuthenticationError" in line]
        expect(result.returncode != 0 and bool(errors), "it is refused", result)
        print(f"    {errors[-1]}")


def _submit_training(
    engine: Engine, submit: tuple[str, ...], environment: dict[str, str], worker: str
) -> None:
    """Trains for two epochs, and collects the gauges that Prometheus sees meanwhile."""
    with step("ray job submit with the token: a training of two epochs"), ThreadPoolExecutor() as pool:
        training = pool.submit(
            engine.run, *submit, "--", *TRAINING, check=False, env=environment, timeout=900
        )
        gauges: set[str] = set()  # they are exported only while the training runs
        while not training.done():
            _, metrics = request(f"http://{worker}:8080/metrics")
            gauges |= {match[0] for line in metrics.splitlines() if (match := GAUGE.match(line))}
            time.sleep(1)
        result = training.result()
        expect(result.returncode == 0, "the training succeeds", (result.stdout + result.stderr)[-3000:])
        expect(
            list_local_gauges() <= gauges,
            "the worker's metrics need no token and contain the gauges of the dashboard",
            sorted(gauges),
        )
        print(f"    {', '.join(sorted(gauges))}")


def _drain(engine: Engine, head: str, token: str) -> None:
    """Runs the preStop hook of the head while a training runs, which has to save and stop."""
    ray = str(Path(sys.executable).parent / "ray")
    environment = os.environ | {
        "RAY_API_SERVER_ADDRESS": f"http://{head}:8265",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "HOME": "/nonexistent",
    }
    words = [word for word in TRAINING if not word.startswith("epochs=")]
    words[words.index("/runs/first")] = "/runs/drained"
    with step("the head's preStop hook during a training"):
        engine.run(ray, "job", "submit", "--no-wait", "--", *words, "epochs=1000", env=environment)

        def read_state() -> str:
            text = engine.execute("head-ray-head", "cat /runs/drained/status.json")
            return str(json.loads(text or "{}").get("state"))

        wait_until(lambda: read_state() == "training", 300, "training")
        start = time.monotonic()
        engine.execute("head-ray-head", "glassbox drain --seconds 540")
        seconds = time.monotonic() - start
        state = read_state()
        expect(state == "interrupted" and seconds < 540, "the training saves and stops in time", state)


def _run_job_cluster(engine: Engine, values: dict[str, str]) -> None:
    """Runs head and worker of a RayJob that `glassbox submit` renders, and its entrypoint on the head."""
    documents = run_kustomize(K8S / "overlays/cpu-dev")
    job = render_rayjob(documents, TrainingJob("second", "demo", "/shards/evidence", overrides=["epochs=1"]))
    pods = {pod.role: pod for pod in list_pods([*documents, job]) if pod.owner == "RayJob/second"}
    with step("cluster of a RayJob"):
        head = engine.play(pods["head"], "job-head", values)
        status, _ = request(f"http://{head}:52365/api/healthz", 300)
        expect(status == 200, "the head's health check succeeds", head)
        name = f"second{SUFFIX}-head-svc.glassbox.svc.cluster.local"
        worker = engine.play(pods["worker"], "job-worker", values, {name: head})
        status, _ = request(f"http://{worker}:52365/api/healthz", 300)
        expect(status == 200, "the worker's health check succeeds", worker)
        for name in ("submitter-of-job", "submitter-of-retry"):  # a retry finds the run of the first
            submitter = copy.deepcopy(pods["submitter"])
            _run_submitter(engine, submitter, name, head, job["spec"]["entrypoint"], values["auth_token"])
    for name in ("job-worker", "job-head"):
        engine.remove(name)


def _run_reports(engine: Engine, pods: dict[str, Pod], values: dict[str, str], runs: Path) -> None:
    page = runs / "first/report/index.html"
    for name in ("report0", "report1"):
        with step(f"report CronJob, pod {name}"):
            engine.play(pods["report"], name, values)
            if name == "report0":  # the second has nothing to do, and has ended before anything can be asked
                _check_sandbox(engine, f"{name}-report")
            code, output, errors = engine.wait_for_exit(f"{name}-report", 900)
            expect(code == 0, "it exits with 0", f"{code}\n{errors[-3000:]}")
            wait_until(page.exists, 5, "report")
            _print_lines(output[-2:])
            engine.remove(name)
    run_size = _measure_directory(runs / "first")
    report_size = _measure_directory(page.parent)
    print(f"    {run_size:.1f} MB for the run, of which {report_size:.1f} MB for the report")
    with step("web server"):
        web = engine.play(pods["reports"], "web", values)
        url = f"http://{web}:8080/first/report/index.html"
        status, body = request(url, 60)
        expect(status == 200 and body == page.read_text(), "it serves the report", status)
        status, _ = request(f"http://{web}:8080/first/model.keras")
        expect(status == 404, "it does not serve the model", status)
        status, _ = request(url, method="DELETE")
        expect(status == 405, "it refuses DELETE", status)


def _measure_directory(path: Path) -> float:
    """Returns the size of a directory in MB."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
