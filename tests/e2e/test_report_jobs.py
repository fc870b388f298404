"""`glassbox report --all` as a cron job meets it: many runs at once, starts that overlap, jobs and workers that are killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics

from service.report.batch import report_all
from service.report.options import ReportOptions
from service.report.publish import is_report
from service.runs import Run

pytestmark = pytest.mark.e2e
GLASSBOX = Path(sys.executable).parent / "glassbox"
SMALL = ReportOptions(training_images=2, predictions=2)


def many(folder: Path, count: int) -> Path:
    """Some finished runs."""
    first = make_run(
        folder / "runs" / "run00", dim_and_bright(folder / "shards"), brightness_model(), metrics(2)
    )
    for number in range(1, count):
        shutil.copytree(first.path, folder / "runs" / f"run{number:02d}")
    return folder / "runs"


def start(runs: Path, home: Path) -> subprocess.Popen[str]:
    """A job on a Ray of its own."""
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "HOME": str(home)
    }
    command = [str(GLASSBOX), "report", "--all", str(runs)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )


def counts(said: str) -> dict[str, int]:
    (line,) = re.findall(r"^reports: .*$", said, re.MULTILINE)
    return {
        state: int(number)
        for number, state in re.findall(r"(\d+) (rendered|up to date|in progress elsewhere|failed)", line)
    }


def assert_whole(runs: Path, count: int) -> None:
    """Every run has a whole report, nothing else lies about, and the page over all of them shows every one."""
    index = (runs / "index.html").read_text()
    for number in range(count):
        run = Run(runs / f"run{number:02d}")
        assert is_report(run.report)
        for picture in json.loads((run.report / "manifest.json").read_text())["pictures"]:
            assert (run.report / picture["file"]).is_file()
        assert f'href="run{number:02d}/report/index.html"' in index
        assert not [path.name for path in run.path.iterdir() if path.name.startswith((".tmp", ".old"))]


def test_two_jobs_at_once_share_twenty_runs(tmp_path: Path) -> None:
    runs = many(tmp_path, 20)
    jobs = [start(runs, tmp_path / f"home{number}") for number in range(2)]
    said = [job.communicate(timeout=280)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    found = [counts(words) for words in said]
    assert found[0]["rendered"] + found[1]["rendered"] == 20  # each by one of them, none twice
    for one in found:
        assert sum(one.values()) == 20
        assert one["failed"] == 0
    assert_whole(runs, 20)


def test_after_a_kill_the_next_job_goes_on(tmp_path: Path) -> None:
    runs = many(tmp_path, 4)
    job = start(runs, tmp_path / "home")
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/.tmp-*-report")):  # in the middle of one
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    time.sleep(2)  # its Ray notices
    again = start(runs, tmp_path / "home2")
    said = again.communicate(timeout=280)[0]
    assert again.returncode == 0, said
    assert counts(said)["failed"] == 0
    if "in progress elsewhere" in said:  # a worker outlived its job for a moment and ended what it was at
        last = start(runs, tmp_path / "home3")
        assert last.communicate(timeout=280)[0]
    assert_whole(runs, 4)


def killer(run: Run, most: int, ended: threading.Event) -> None:
    """Kills whatever process makes the report of a run, some times."""
    killed: set[int] = set()
    while not ended.is_set() and len(killed) < most:
        try:
            process = int(json.loads(run.report_lease_path.read_text())["owner"].split(":")[1])
        except (OSError, ValueError, KeyError):
            process = 0
        if process and process not in killed:
            os.kill(process, signal.SIGKILL)
            killed.add(process)
        time.sleep(0.005)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("kills", "state"), [(1, "rendered"), pytest.param(99, "failed", marks=pytest.mark.slow)]
)
def test_a_worker_that_dies_takes_no_other_run_with_it(tmp_path: Path, kills: int, state: str) -> None:
    runs = many(tmp_path, 3)
    ended = threading.Event()
    thread = threading.Thread(target=killer, args=(Run(runs / "run01"), kills, ended))
    thread.start()
    try:
        outcomes = {outcome.name: outcome for outcome in report_all(runs, SMALL)}
    finally:
        ended.set()
        thread.join()
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "run00": "rendered",
        "run01": state,
        "run02": "rendered",
    }
    if state == "failed":
        assert "run01" in outcomes["run01"].words
        assert report_all(runs, SMALL)[1].state == "rendered"  # the next start has no killer
