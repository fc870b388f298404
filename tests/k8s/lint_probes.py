"""Checks that probes target an open port: a probe that never succeeds restarts its container forever."""

from __future__ import annotations

from collections.abc import Iterator

from kube_pods import AGENT_PORT, get_field, list_pods
from kube_render import Document

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
HANDLERS = ("httpGet", "tcpSocket")
RAY_HEALTH_CHECK = {"path": "/api/healthz", "port": AGENT_PORT}  # served by Ray's agent on every node


def check(documents: list[Document]) -> Iterator[str]:
    """Yields problems, each with the field that causes it."""
    for pod in list_pods(documents):
        expected = RAY_HEALTH_CHECK if pod.role in ("head", "worker") else None
        for where, container in pod.containers():
            ports = container.get("ports") or []
            open_ports = {port.get("name") for port in ports} | {port.get("containerPort") for port in ports}
            for kind in PROBES:
                if kind in container:
                    yield from _check_probe(f"{where}.{kind}", container[kind], open_ports, expected)


def _check_probe(
    where: str, probe: Document, open_ports: set[object], expected: Document | None
) -> Iterator[str]:
    handlers = [handler for handler in HANDLERS if handler in probe]
    if len(handlers) != 1:
        yield f"{where}: must have one handler, has {len(handlers)}"
        return
    (handler,) = handlers
    if expected:
        if probe.get("httpGet") != expected:
            yield f"{where}.{handler}: must query Ray's agent: {expected}"
        return
    port = get_field(probe, f"{handler}.port")
    if port not in open_ports:
        yield f"{where}.{handler}.port: the container opens no port {port}"
