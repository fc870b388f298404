"""Alerts fire when they should, in Prometheus' own evaluation of the rules (`promtool test rules`)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_run import list_local_gauges
from kube_render import K8S
from lint_monitoring import list_gauges

RULES = yaml.safe_load((K8S / "components/monitoring/rules.yaml").read_text())["spec"]
# Exported by Ray during a training of the preset `demo`, as Prometheus reads it
RECORDED = (Path(__file__).parent / "training_metrics.prom").read_text().splitlines()
JOB = 'kube_job_status_failed{namespace="glassbox",job_name="%s"}'
FREE = 'kubelet_volume_stats_available_bytes{namespace="glassbox",persistentvolumeclaim="%s"}'
SIZE = 'kubelet_volume_stats_capacity_bytes{namespace="glassbox",persistentvolumeclaim="%s"}'
# Alert, its series with their values per minute, the labels that it fires with; None where it must not fire
CASES: dict[str, tuple[str, dict[str, str], dict[str, str] | None]] = {
    "input": ("GlassboxInputStalled", {"input_wait": "0.5x60"}, {"run": "run"}),
    "input, for a moment": ("GlassboxInputStalled", {"input_wait": "0.5x10 0.1x50"}, None),
    "input, fast": ("GlassboxInputStalled", {"input_wait": "0.2x60"}, None),
    "no steps": ("GlassboxTrainingStalled", {"step_seconds": "0.1x60"}, {"run": "run"}),
    "steps": ("GlassboxTrainingStalled", {"step_seconds": "0+0.01x60"}, None),
    "no checkpoint": ("GlassboxCheckpointTooOld", {"checkpoint_age_seconds": "0+120x60"}, {"run": "run"}),
    "checkpoints": ("GlassboxCheckpointTooOld", {"checkpoint_age_seconds": "600x60"}, None),
    "restarts": ("GlassboxRestarts", {"restarts": "3x60"}, {"run": "run"}),
    "two restarts": ("GlassboxRestarts", {"restarts": "2x60"}, None),
    "skipped": ("GlassboxNotFinite", {"skipped_updates": "1x60"}, {"run": "run"}),
    "loss": ("GlassboxNotFinite", {"loss": "NaNx60"}, {"run": "run"}),
    "finite": ("GlassboxNotFinite", {"loss": "2.5x60", "skipped_updates": "0x60"}, None),
    "report": ("GlassboxReportJobFailed", {JOB % "a-report-289": "1x60"}, {"job_name": "a-report-289"}),
    "another job": ("GlassboxReportJobFailed", {JOB % "shards": "1x60"}, None),
    "full": (
        "GlassboxVolumeFull",
        {FREE % "a-runs": "5x60", SIZE % "a-runs": "100x60"},
        {"persistentvolumeclaim": "a-runs"},
    ),
    "room": ("GlassboxVolumeFull", {FREE % "runs": "50x60", SIZE % "runs": "100x60"}, None),
    "others' volume": ("GlassboxVolumeFull", {FREE % "db": "5x60", SIZE % "db": "100x60"}, None),
}


def find_series(gauge: str) -> str:
    """Returns the series of a gauge with the recorded labels, and that of the Prometheus operator."""
    labels = RECORDED[0].partition("{")[2].rpartition("}")[0]
    return f'ray_glassbox_{gauge}{{namespace="glassbox",{labels}}}'


def expand(values: str) -> str:
    """Writes `VALUExN` as N values, and `STARTxN` with a step as Prometheus does."""
    return " ".join(re.sub(r"^(NaN|[\d.]+)x", r"\1+0x", part) for part in values.split())


def run_promtool(folder: Path, rules: dict[str, Any], cases: list[str]) -> subprocess.CompletedProcess[str]:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: it is in Debian's package prometheus, see .ci/run")
    tests = []
    for case in cases:
        alert, series, labels = CASES[case]
        inputs = [
            {"series": name if "{" in name else find_series(name), "values": expand(values)}
            for name, values in series.items()
        ]
        (rule,) = (rule for group in RULES["groups"] for rule in group["rules"] if rule["alert"] == alert)
        fired = [{"exp_labels": {"namespace": "glassbox", **rule["labels"], **labels}}] if labels else []
        check = {"eval_time": "55m", "alertname": alert, "exp_alerts": fired}
        tests.append({"name": case, "interval": "1m", "input_series": inputs, "alert_rule_test": [check]})
    for name, content in (
        ("rules.yaml", rules),
        ("tests.yaml", {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}),
    ):
        (folder / name).write_text(yaml.safe_dump(content))
    command = [promtool, "test", "rules", "tests.yaml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def without_annotations() -> dict[str, Any]:
    """The rules without texts, whose values the cases need not repeat."""
    rules = yaml.safe_load(yaml.safe_dump(RULES))
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    return rules


def test_every_alert_fires_and_stays_quiet_as_it_should(tmp_path: Path) -> None:
    alerts = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
    assert {alert for alert, _, labels in CASES.values() if labels} == alerts
    assert {alert for alert, _, labels in CASES.values() if not labels} == alerts
    result = run_promtool(tmp_path, without_annotations(), list(CASES))
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_wrong_threshold_is_noticed(tmp_path: Path) -> None:
    rules = without_annotations()
    rules["groups"][0]["rules"][0]["expr"] = rules["groups"][0]["rules"][0]["expr"].replace("0.3", "0.6")
    result = run_promtool(tmp_path, rules, ["input", "input, fast"])
    assert result.returncode == 1, result.stdout
    assert "GlassboxInputStalled" in result.stdout + result.stderr


def test_texts_of_all_alerts_render(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: it is in Debian's package prometheus, see .ci/run")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    command = [promtool, "check", "rules", "rules.yaml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_a_real_training_exported_are_the_gauges() -> None:
    recorded = {line.partition("{")[0] for line in RECORDED}
    assert recorded == {name for name in list_gauges() if "_store_" not in name}  # its shards were on disk


def test_image_test_expects_what_a_training_of_local_shards_exports() -> None:
    """The store's gauges are exported only where shards come from a bucket."""
    assert list_local_gauges() == {line.partition("{")[0] for line in RECORDED}
