"""A lease by conditional puts: one holder at a time, taken over when its holder stops renewing it."""

from __future__ import annotations

import json
import threading

import pytest

from pipelines.errors import ConfigError
from pipelines.remote import lease
from pipelines.remote.lease import hold_lease
from pipelines.remote.uri import parse_location

REFUSAL = ConfigError("no other holder", "lease=held", "wait")


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)


@pytest.fixture
def uri(bucket):
    return parse_location(f"{bucket.url}/a/lease")


def test_a_lease_is_removed_at_the_end(bucket, uri):
    with hold_lease(uri, REFUSAL):
        assert bucket.list_keys() == ["a/lease"]
    assert bucket.list_keys() == []


def test_a_lease_that_is_renewed_refuses_others(uri):
    with hold_lease(uri, REFUSAL) as held:
        with pytest.raises(ConfigError, match="no other holder"), hold_lease(uri, REFUSAL):
            pass
        assert not held.is_lost


def test_a_lease_that_is_not_renewed_is_taken_over(bucket, uri):
    bucket.put("a/lease", json.dumps({"token": "other", "host": "gone", "pid": 1, "space": ""}).encode())
    with hold_lease(uri, REFUSAL):
        assert json.loads(bucket.get("a/lease"))["token"] != "other"


def test_a_holder_that_was_replaced_knows_it_and_leaves_the_lease_alone(bucket, uri):
    with hold_lease(uri, REFUSAL) as held:
        bucket.put("a/lease", b"{}")
        for _ in range(200):
            if held.is_lost:
                break
            threading.Event().wait(0.05)
        assert held.is_lost
    assert bucket.get("a/lease") == b"{}"


def test_of_two_that_find_an_expired_lease_the_second_is_refused(bucket, uri, monkeypatch):
    bucket.put("a/lease", b"{}")
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.0)

    read = lease.LeaseObject.read

    def read_before_another_takes_over(held):
        found = read(held)
        bucket.put("a/lease", b"other")
        return found

    monkeypatch.setattr(lease.LeaseObject, "read", read_before_another_takes_over)
    with pytest.raises(ConfigError, match="no other holder"), hold_lease(uri, REFUSAL):
        pass
    assert bucket.get("a/lease") == b"other"
