"""Claims: one holder at a time, for as long as it renews, and never for ever."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from service.report.lease import Lease, LeaseHeldError, hold_lease, words_at


def written(path: Path, owner: str, expires: float) -> Path:
    path.write_text(json.dumps({"owner": owner, "expires": expires, "at": "1/2 gradcam"}))
    return path


def test_one_holder_at_a_time(tmp_path):
    with (
        hold_lease(tmp_path / "c"),
        pytest.raises(LeaseHeldError, match=rf"in work by {socket.gethostname()}:\d+"),
        hold_lease(tmp_path / "c"),
    ):
        pass
    with hold_lease(tmp_path / "c"):
        pass


def test_of_many_that_want_it_one_gets_it(tmp_path):
    got: list[Lease] = []

    def want() -> None:
        claim = Lease(tmp_path / "c")
        try:
            claim.take()
            got.append(claim)
        except LeaseHeldError:
            pass

    threads = [threading.Thread(target=want) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_it_is_renewed_while_the_block_runs(tmp_path):
    with hold_lease(tmp_path / "c", seconds=0.4):
        time.sleep(1.0)
        with pytest.raises(LeaseHeldError):
            Lease(tmp_path / "c").take()


def test_a_claim_that_is_not_renewed_ends(tmp_path):
    first, second = Lease(tmp_path / "c", seconds=0.2), Lease(tmp_path / "c")
    first.take()
    with pytest.raises(LeaseHeldError):
        second.take()
    time.sleep(0.25)
    second.take()
    with pytest.raises(LeaseHeldError):  # and the first learns of it before it publishes anything
        first.tell("3/4 page")
    first.release()
    assert "owner" in json.loads((tmp_path / "c").read_text())  # that of the second stands


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = written(tmp_path / "c", f"{socket.gethostname()}:{gone.pid}:00", time.time() + 1000)
    Lease(path).take()


def test_a_process_of_another_machine_holds_it_to_the_end(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = written(tmp_path / "c", f"elsewhere:{gone.pid}:00", time.time() + 1000)
    with pytest.raises(LeaseHeldError, match="elsewhere"):
        Lease(path).take()
    Lease(written(path, f"elsewhere:{gone.pid}:00", time.time() - 1)).take()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner": "x"}', '{"expires": "soon"}', "\0\0"])
def test_a_claim_that_says_nothing_is_free(tmp_path, text):
    (tmp_path / "c").write_text(text)
    Lease(tmp_path / "c").take()


def test_waiting_for_another_to_end(tmp_path):
    first = Lease(tmp_path / "c")
    first.take()
    ended = threading.Timer(0.4, first.release)
    ended.start()
    began = time.monotonic()
    with hold_lease(tmp_path / "c", wait=30):
        assert time.monotonic() - began >= 0.3
    ended.join()


def test_onlookers_read_how_far_it_is(tmp_path):
    with hold_lease(tmp_path / "c") as claim:
        claim.tell("3/12 gradcam")
        assert words_at(tmp_path / "c") == "3/12 gradcam"
    assert words_at(tmp_path / "c") == words_at(tmp_path / "never") == ""


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(ConfigError, match="a directory that can be written"):
        Lease(tmp_path / "gone" / "c").take()
