"""Probes ask where something answers: of a probe that does not, Kubernetes says nothing, and restarts the container for ever."""

from __future__ import annotations

from collections.abc import Iterator

from kube_pods import AGENT_PORT, at, pods
from kube_render import Document

KINDS = ("startupProbe", "readinessProbe", "livenessProbe")
RAY_HEALTH = {"path": "/api/healthz", "port": AGENT_PORT}  # of Ray's agent, on every node


def check(documents: list[Document]) -> Iterator[str]:
    """Problems, each with the field it lies in."""
    for pod in pods(documents):
        for where, container in pod.containers():
            ports = container.get("ports") or []
            opened = {port.get("name") for port in ports} | {port.get("containerPort") for port in ports}
            for kind in KINDS:
                if kind in container:
                    wanted = RAY_HEALTH if pod.role in ("head", "worker") else None
                    yield from _probe(f"{where}.{kind}", container[kind], opened, wanted)


def _probe(where: str, probe: Document, opened: set[object], wanted: Document | None) -> Iterator[str]:
    ways = [way for way in ("httpGet", "tcpSocket") if way in probe]
    if len(ways) != 1:
        yield f"{where}: must ask in one way, asks in {len(ways)}"
    elif wanted and probe.get("httpGet") != wanted:
        yield f"{where}.{ways[0]}: must ask Ray's agent, {wanted}"
    elif not wanted and (port := at(probe, f"{ways[0]}.port")) not in opened:
        yield f"{where}.{ways[0]}.port: the container opens no port {port}"
