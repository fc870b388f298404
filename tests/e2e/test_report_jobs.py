"""`glassbox report --all` as a cron job: many runs, starts that overlap, jobs and workers that are killed."""

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

from service.report.batch import ELSEWHERE, FAILED, RENDERED, report_all
from service.report.options import ReportOptions
from service.report.publish import is_report
from service.runs import Run

pytestmark = pytest.mark.e2e
GLASSBOX = Path(sys.executable).parent / "glassbox"
SMALL = ReportOptions(training_images=2, predictions=2)


def make_runs(folder: Path, count: int) -> Path:
    """Writes some finished runs; returns the directory of all."""
    first = make_run(
        folder / "runs" / "run00", dim_and_bright(folder / "shards"), brightness_model(), metrics(2)
    )
    for number in range(1, count):
        shutil.copytree(first.path, folder / "runs" / f"run{number:02d}")
    return folder / "runs"


def start_job(runs: Path, home: Path) -> subprocess.Popen[str]:
    """Starts a job with its own Ray."""
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        [str(GLASSBOX), "report", "--all", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment | {"HOME": str(home)},
        start_new_session=True,
    )


def parse_counts(output: str) -> dict[str, int]:
    """Parses the last line of a job: number of runs by the state of their report."""
    (line,) = re.findall(r"^reports: .*$", output, re.MULTILINE)
    counts = re.findall(rf"(\d+) ({RENDERED}|up to date|{ELSEWHERE}|{FAILED})", line)
    return {state: int(number) for number, state in counts}


def check_reports(runs: Path, count: int) -> None:
    """Checks that every run has a complete report, that nothing else is left, and the index lists them."""
    index = (runs / "index.html").read_text()
    for number in range(count):
        run = Run(runs / f"run{number:02d}")
        assert is_report(run.report)
        for picture in json.loads((run.report / "manifest.json").read_text())["pictures"]:
            assert (run.report / picture["file"]).is_file()
        assert f'href="run{number:02d}/report/index.html"' in index
        assert not [path.name for path in run.path.iterdir() if path.name.startswith((".tmp", ".old"))]


@pytest.mark.slow
def test_two_jobs_at_once_share_the_runs(tmp_path: Path) -> None:
    count = 8
    runs = make_runs(tmp_path, count)
    jobs = [start_job(runs, tmp_path / f"home{number}") for number in range(2)]
    outputs = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    one, other = map(parse_counts, outputs)
    assert one[RENDERED] + other[RENDERED] == count  # each by one of them, none twice
    for counts in (one, other):
        assert sum(counts.values()) == count
        assert counts[FAILED] == 0
    check_reports(runs, count)


@pytest.mark.usefixtures("ray_cluster")
def test_after_a_kill_the_next_job_completes_the_reports(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 4)
    job = start_job(runs, tmp_path / "home")
    while not list(runs.glob("*/.tmp-*-report")):  # until one is being rendered
        assert job.poll() is None, job.stdout.read()
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    outcomes = report_all(runs)
    while any(
        outcome.state == ELSEWHERE for outcome in outcomes
    ):  # a worker may outlive its job for a moment
        time.sleep(0.1)
        outcomes = report_all(runs)
    assert not [outcome for outcome in outcomes if outcome.state == FAILED]
    check_reports(runs, 4)


def kill_renderers(run: Run, kills: int, is_over: threading.Event) -> None:
    """Kills the process that renders the report of a run, some times."""
    killed: set[int] = set()
    while not is_over.is_set() and len(killed) < kills:
        try:
            process = int(json.loads(run.report_lease_path.read_text())["owner"].split(":")[1])
        except (OSError, ValueError, KeyError):
            process = 0
        if process and process not in killed:
            os.kill(process, signal.SIGKILL)
            killed.add(process)
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("kills", "state"), [(1, RENDERED), pytest.param(99, FAILED, marks=pytest.mark.slow)]
)
def test_a_killed_worker_affects_no_other_run(tmp_path: Path, kills: int, state: str) -> None:
    runs = make_runs(tmp_path, 3)
    is_over = threading.Event()
    thread = threading.Thread(target=kill_renderers, args=(Run(runs / "run01"), kills, is_over))
    thread.start()
    try:
        outcomes = {outcome.name: outcome for outcome in report_all(runs, SMALL)}
    finally:
        is_over.set()
        thread.join()
    states = {name: outcome.state for name, outcome in outcomes.items()}
    assert states == {"run00": RENDERED, "run01": state, "run02": RENDERED}
    if state == FAILED:
        assert "run01" in outcomes["run01"].message
        assert report_all(runs, SMALL)[1].state == RENDERED  # nothing kills the second job
