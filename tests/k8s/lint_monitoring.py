"""Checks that alerts and dashboards query what is exported, and that alerts say what to do."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

from kube_pods import get_field, name_of
from kube_render import ROOT, Document

METRIC = re.compile(r"\b(?:ray_glassbox|DCGM_FI|kube|kubelet|ray)_\w+")
# Metrics of others: kube-state-metrics, the kubelet, Ray, and the default list of NVIDIA's DCGM exporter
KNOWN = {
    "kube_job_status_failed",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "ray_node_gpus_utilization",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
}


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for document in documents:
        where = name_of(document)
        if document.get("kind") == "ConfigMap":
            for key, text in get_field(document, "data").items():
                if key.endswith(".json"):
                    yield from _check_metrics(f"{where}: data.{key}", text)
        if document.get("kind") == "PrometheusRule":
            for group in get_field(document, "spec.groups") or []:
                for rule in group.get("rules") or []:
                    yield from _check_rule(f"{where}: spec.groups[{group.get('name')}]", rule)


@functools.cache
def list_gauges() -> frozenset[str]:
    """Returns the names of the gauges of training, as Ray exports them."""
    tree = ast.parse((ROOT / "service/training/telemetry.py").read_text())
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    definition = next(node for node in assignments if getattr(node.targets[0], "id", None) == "GAUGES")
    return frozenset(f"ray_glassbox_{name}" for name in ast.literal_eval(definition.value))


def _check_metrics(where: str, text: str) -> Iterator[str]:
    for name in sorted(set(METRIC.findall(text)) - KNOWN - list_gauges()):
        yield f"{where}: no metric {name} is exported"


def _check_rule(where: str, rule: Document) -> Iterator[str]:
    where = f"{where}.{rule.get('alert')}"
    yield from _check_metrics(f"{where}.expr", str(rule.get("expr")))
    if not METRIC.search(str(rule.get("expr"))):
        yield f"{where}.expr: queries no metric"
    for field in ("summary", "description"):
        if not get_field(rule, "annotations").get(field):
            yield f"{where}.annotations.{field}: missing"
    if not get_field(rule, "labels").get("severity"):
        yield f"{where}.labels.severity: missing"
