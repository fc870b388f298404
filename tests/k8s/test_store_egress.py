"""Policies that allow a store and nothing else: by its addresses, or by its names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from kube_faults import REMOVED, apply_fault
from kube_lint import find_problems, lint
from kube_pods import name_of
from kube_render import K8S, Document, render_overlay, run_kustomize

pytestmark = pytest.mark.heavy  # the lint reads the options of `ray start` from Ray
SCHEMA = ("1.37",)
NAMES = "CiliumNetworkPolicy/store-names"
PLACEHOLDERS = ("192.0.2.0/24", "198.51.100.0/24")


def render_with_addresses(directory: Path, blocks: list[str]) -> list[Document]:
    """Renders the overlay for buckets with the component and the addresses of a store."""
    peers = [{"ipBlock": {"cidr": block}} for block in blocks]
    kustomization = {
        "resources": [os.path.relpath(K8S / "overlays/buckets", directory)],
        "components": [os.path.relpath(K8S / "components/store-addresses", directory)],
        "patches": [
            {
                "target": {"kind": "NetworkPolicy", "name": "store"},
                "patch": json.dumps([{"op": "replace", "path": "/spec/egress/0/to", "value": peers}]),
            }
        ],
    }
    (directory / "kustomization.yaml").write_text(json.dumps(kustomization))
    return run_kustomize(directory)


@pytest.fixture(scope="module")
def by_name(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return render_overlay(tmp_path_factory.mktemp("n"), "buckets", ["store-names"])


def test_placeholders_have_to_be_replaced(tmp_path: Path) -> None:
    problems = lint(render_overlay(tmp_path, "buckets", ["store-addresses"]))
    assert problems == [
        f"NetworkPolicy/store: spec.egress.to.ipBlock.cidr: {block} is a placeholder; "
        "set the addresses of your store"
        for block in PLACEHOLDERS
    ]


def test_addresses_of_a_store_are_the_only_ones(tmp_path: Path) -> None:
    assert find_problems(render_with_addresses(tmp_path, ["52.219.168.0/21", "10.20.30.40/32"]), SCHEMA) == []


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("52.0.0.0/8", "52.0.0.0/8 is more than a store"),
        ("10.1.0.0/16", "reaches the address 10.1.2.3 at port 443"),
        ("203.0.113.0/24", "203.0.113.0/24 is a placeholder"),
        ("169.254.169.254/32", "reaches the address 169.254.169.254 at port 443"),
    ],
)
def test_other_addresses_are_reported(block: str, message: str, tmp_path: Path) -> None:
    problems = lint(render_with_addresses(tmp_path, ["52.219.168.0/21", block]))
    assert any(message in problem for problem in problems), problems


def test_names_of_a_store_are_the_only_ones(by_name: list[Document]) -> None:
    assert find_problems(by_name, SCHEMA) == []
    assert "NetworkPolicy/store" not in map(name_of, by_name)


FAULTS = {
    "any host": ("spec.egress.1.toFQDNs.0", {"matchPattern": "*"}, "matchPattern: field not allowed"),
    "another region": (
        "spec.egress.1.toFQDNs.0.matchName",
        "s3.us-east-1.amazonaws.com",
        "toFQDNs: must be ['s3.eu-central-1.amazonaws.com'",
    ),
    "no identity": ("spec.egress.1.toFQDNs", lambda old: old[:1], "toFQDNs: must be"),
    "all ports of the host": ("spec.egress.1.toPorts", REMOVED, "toPorts: must be 443"),
    "no names to learn": ("spec.egress.0.toPorts.0.rules", REMOVED, "rules.dns: missing"),
    "all pods": ("spec.endpointSelector", {}, "endpointSelector: must be"),
    "the world": ("spec.egress.1.toEntities", ["world"], "toEntities: field not allowed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_a_policy_of_names_is_reported(fault: str, by_name: list[Document]) -> None:
    path, value, message = FAULTS[fault]
    problems = lint(apply_fault(by_name, NAMES, path, value))
    assert any(message in problem for problem in problems), problems


def test_policy_that_allows_more_next_to_names_is_reported(by_name: list[Document]) -> None:
    (open_policy,) = (
        document
        for document in run_kustomize(K8S / "overlays/buckets")
        if name_of(document) == "NetworkPolicy/store"
    )
    problems = lint([*by_name, open_policy])
    assert any("store allows all public addresses" in problem for problem in problems), problems
