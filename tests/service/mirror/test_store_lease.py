"""The lease on a run: one holder, whatever the clocks of hosts say, and a handover within a session."""

from __future__ import annotations

import threading
import time

import pytest
from stores import Bucket

from pipelines.errors import ConfigError
from pipelines.remote.uri import Uri
from service.mirror import lease as lease_module
from service.mirror.lease import LeaseHeldError, LeaseLostError, RunLease

pytestmark = pytest.mark.e2e


def is_unknown(lease: object) -> bool:
    """Nothing is known about the holder of a lease."""
    return False


@pytest.fixture
def run(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Uri:
    monkeypatch.setenv("GLASSBOX_LEASE_SECONDS", "2")
    monkeypatch.setattr(lease_module, "TIME_RESOLUTION", 1.0)
    return Uri("s3", bucket.name, "runs/first")


def test_of_many_processes_one_acquires_a_lease(run: Uri) -> None:
    leases = [RunLease(run) for _ in range(8)]
    winners: list[RunLease] = []

    def acquire(lease: RunLease) -> None:
        try:
            lease.acquire(is_unknown, lambda text: None)
        except LeaseHeldError:
            return
        winners.append(lease)
        lease.start_renewing(lambda error: None)

    threads = [threading.Thread(target=acquire, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    winners[0].release()
    assert RunLease(run).acquire(is_unknown) is not None


def test_an_expired_lease_is_taken_over_whatever_the_clock_says(
    run: Uri, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunLease(run)
    first.acquire(is_unknown)
    time.sleep(4.0)  # the age is that of the object, by the time of the store
    monkeypatch.setattr(time, "time", lambda: 0.0)
    notices: list[str] = []
    second = RunLease(run)
    second.acquire(is_unknown, notices.append)
    assert (notices, second.generation) == ([], 2)
    with pytest.raises(LeaseLostError, match="a run that no other process continues"):
        first.renew()
    with pytest.raises(LeaseLostError):
        first.check()
    first.release()
    second.renew()


def test_a_session_hands_its_lease_over_and_takes_it_back(run: Uri) -> None:
    driver = RunLease(run)
    driver.acquire(is_unknown)
    driver.allow_handover()
    driver.renew()
    assert not driver.is_handed_over
    chief = RunLease(run, driver.session)
    chief.acquire(is_unknown)
    driver.renew()
    assert driver.is_handed_over
    driver.acquire(is_unknown)
    driver.renew()
    with pytest.raises(LeaseLostError):
        chief.renew()


def test_a_holder_that_has_not_renewed_for_long_asks_the_store_before_it_writes(run: Uri) -> None:
    first = RunLease(run)
    first.acquire(is_unknown)
    first.check()
    RunLease(run).acquire(lambda lease: lease.holder == first.holder)
    first.check()  # renewed a moment ago: not asked again
    time.sleep(1.1)
    with pytest.raises(LeaseLostError):
        first.check()


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan"])
def test_the_seconds_of_a_lease_are_a_positive_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSBOX_LEASE_SECONDS", text)
    with pytest.raises(ConfigError, match="a positive number of seconds"):
        RunLease(Uri("s3", "bucket", "run"))
