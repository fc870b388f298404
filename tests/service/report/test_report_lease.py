"""Leases: one holder at a time, for as long as the holder renews it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from service.report.lease import Lease, LeaseHeldError, hold_lease, read_progress


def write_lease(path: Path, owner: str, expires: float) -> Path:
    path.write_text(json.dumps({"owner": owner, "expires": expires, "at": "1/2 gradcam"}))
    return path


def test_one_holder_at_a_time(tmp_path):
    with (
        hold_lease(tmp_path / "c"),
        pytest.raises(LeaseHeldError, match=rf"rendered by {socket.gethostname()}:\d+"),
        hold_lease(tmp_path / "c"),
    ):
        pass
    with hold_lease(tmp_path / "c"):
        pass


def test_only_one_of_many_contenders_acquires_the_lease(tmp_path):
    acquired: list[Lease] = []

    def try_to_acquire() -> None:
        lease = Lease(tmp_path / "c")
        try:
            lease.acquire()
            acquired.append(lease)
        except LeaseHeldError:
            pass

    threads = [threading.Thread(target=try_to_acquire) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(acquired) == 1


def read_expiry(path: Path) -> float:
    return float(json.loads(path.read_text())["expires"])


def test_the_lease_is_renewed_while_the_block_runs(tmp_path):
    path = tmp_path / "c"
    with hold_lease(path, seconds=0.4):
        first = read_expiry(path)
        for _ in range(3000):  # while a renewal writes the file, it is empty for a moment
            with suppress(ValueError):
                if read_expiry(path) > first:
                    break
            time.sleep(0.01)
        else:
            pytest.fail("never renewed")


def test_a_lease_that_is_not_renewed_expires(tmp_path):
    path = tmp_path / "c"
    first = Lease(path)
    second = Lease(path)
    first.acquire()
    with pytest.raises(LeaseHeldError):
        second.acquire()
    write_lease(path, first.holder, time.time() - 1)
    second.acquire()
    with pytest.raises(LeaseHeldError):  # the first holder notices it before it publishes anything
        first.renew("3/4 page")
    first.release()
    assert json.loads(path.read_text())["owner"] == second.holder


def test_the_lease_of_a_dead_process_on_this_machine_is_free(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = write_lease(tmp_path / "c", f"{socket.gethostname()}:{gone.pid}:00", time.time() + 1000)
    Lease(path).acquire()


def test_a_lease_from_another_machine_is_held_until_it_expires(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = write_lease(tmp_path / "c", f"elsewhere:{gone.pid}:00", time.time() + 1000)
    with pytest.raises(LeaseHeldError, match="elsewhere"):
        Lease(path).acquire()
    Lease(write_lease(path, f"elsewhere:{gone.pid}:00", time.time() - 1)).acquire()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner": "x"}', '{"expires": "soon"}', "\0\0"])
def test_a_damaged_lease_file_is_free(tmp_path, text):
    (tmp_path / "c").write_text(text)
    Lease(tmp_path / "c").acquire()


def test_waiting_ends_when_the_holder_releases_the_lease(tmp_path):
    first = Lease(tmp_path / "c")
    first.acquire()
    is_released = threading.Event()

    def release() -> None:
        is_released.set()
        first.release()

    timer = threading.Timer(0.3, release)
    timer.start()
    with hold_lease(tmp_path / "c", wait=600):
        assert is_released.is_set()
    timer.join()


def test_observers_read_the_progress_of_the_holder(tmp_path):
    with hold_lease(tmp_path / "c") as lease:
        lease.renew("3/12 gradcam")
        assert read_progress(tmp_path / "c") == "3/12 gradcam"
    assert read_progress(tmp_path / "c") == read_progress(tmp_path / "never") == ""


def test_a_lease_in_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="a directory that can be written"):
        Lease(tmp_path / "gone" / "c").acquire()
