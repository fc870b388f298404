"""Ray's logs are sent with the name of their run, and each planted fault is reported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from faults_logs import CONFIG, SIDECARS
from kube_faults import apply_fault
from kube_lint import lint
from kube_render import K8S, Document, load_documents, render_overlay

from service.kubernetes.rayjob import TrainingJob, render_rayjob

FOLDER = K8S / "components/logs"
LOGS = "/tmp/ray/session_2026-11-28_06-50-04_843260_1/logs"
DRIVER = f"{LOGS}/job-driver-first.log"
WORKER = f"{LOGS}/worker-2bfac515-01000000-14409.out"
# Calls the filter as Fluent Bit does, and prints the fields of its record
CALL = """
dofile(arg[1])
local code, time, record = label("ray", 7, {file = arg[2], message = "step 1"})
print(code, time)
for key, value in pairs(record) do print(key .. "=" .. value) end
"""


def call_filter(script: Path, file: str, run: str | None) -> tuple[str, dict[str, str]]:
    """Runs the filter on one line of a log, and returns its code with the time, and the record."""
    luajit = shutil.which("luajit")
    if luajit is None:
        pytest.skip("no luajit, the Lua of Fluent Bit: it is in Debian's package luajit")
    environment = {"PATH": os.environ["PATH"], "POD": "first-head"} | ({} if run is None else {"RUN": run})
    command = [luajit, "-", str(script), file]
    result = subprocess.run(command, input=CALL, env=environment, capture_output=True, text=True, check=True)
    first, *fields = result.stdout.splitlines()
    return first, dict(field.split("=", 1) for field in fields)


@pytest.mark.parametrize(
    ("file", "variable", "run"),
    [
        (DRIVER, "second", "second"),  # the cluster of a RayJob belongs to one run
        (WORKER, "second", "second"),
        (DRIVER, "", "first"),  # a standing cluster has no label: Kubernetes sets an empty variable
        (DRIVER, None, "first"),
        (WORKER, "", None),
        (f"{LOGS}/raylet.out", "", None),
    ],
)
def test_lines_have_the_run_they_belong_to(file: str, variable: str | None, run: str | None) -> None:
    code, record = call_filter(FOLDER / "label.lua", file, variable)
    assert code == "2\t7"  # the record has changed, its time has not
    expected = {"message": "step 1", "pod": "first-head", "file": Path(file).name}
    assert record == expected | ({} if run is None else {"run": run})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('return text ~= nil and text ~= ""', "return text ~= nil"),  # the empty label
        ("%.log$", "$"),
        ('os.getenv("RUN")', 'os.getenv("POD")'),
        ('  record["run"] = find_run(file)\n', ""),
    ],
)
def test_fault_in_the_filter_is_noticed(old: str, new: str, tmp_path: Path) -> None:
    text = (FOLDER / "label.lua").read_text()
    assert old in text
    changed = tmp_path / "label.lua"
    changed.write_text(text.replace(old, new))
    assert call_filter(changed, DRIVER, "")[1].get("run") != "first"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """A cluster with a sidecar for logs, and a training as a job of its own."""
    documents = render_overlay(tmp_path_factory.mktemp("l"), "gpu", ["logs"])
    job = render_rayjob(documents, TrainingJob("first", "demo", "/shards/evidence"))
    documents = load_documents(yaml.safe_dump_all([*documents, job]))  # equal values are separate objects
    assert lint(documents) == []
    return documents


@pytest.mark.heavy  # the lint reads the options of `ray start` from Ray
@pytest.mark.parametrize("fault", SIDECARS)
def test_fault_of_the_sidecar_is_reported(fault: str, manifests: list[Document]) -> None:
    owner, path, value, message = SIDECARS[fault]
    problems = lint(apply_fault(manifests, owner, path, value))
    assert any(message in problem for problem in problems), problems


@pytest.mark.heavy  # the lint reads the options of `ray start` from Ray
@pytest.mark.parametrize("fault", CONFIG)
def test_fault_of_the_configuration_is_reported(fault: str, manifests: list[Document]) -> None:
    old, new, message = CONFIG[fault]

    def replace(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    problems = lint(apply_fault(manifests, "ConfigMap/logs", "data.fluent-bit~yaml", replace))
    assert any(message in problem for problem in problems), problems


@pytest.mark.heavy  # the lint reads the options of `ray start` from Ray
def test_jobs_refer_to_the_configuration_of_their_overlay(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps(
            {
                "namePrefix": "our-",
                "resources": [os.path.relpath(K8S / "overlays/cpu-dev", tmp_path)],
                "components": [os.path.relpath(FOLDER, tmp_path)],
            }
        )
    )
    documents = load_documents(
        subprocess.run(
            ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout
    )
    job = render_rayjob(documents, TrainingJob("first", "demo", "/shards/evidence"))
    assert lint([*documents, job]) == []
    assert "'configMap': {'name': 'our-logs'}" in str(job)
