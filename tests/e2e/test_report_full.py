"""`glassbox report --all` with a volume that is full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_nodes import UNSHARE
from report_samples import brightness_model, dim_and_bright, make_run, metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
GLASSBOX = Path(sys.executable).parent / "glassbox"
SUMMARY = "reports: 1 rendered, 0 up to date, 0 not finished, 1 failed: full"


def test_a_full_volume_affects_no_other_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    good = make_run(runs / "good", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(2))
    (runs / "full").mkdir()
    mount = [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", str(runs / "full")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs permission to mount file systems")
    script = f"""
mount -t tmpfs -o size=128k tmpfs {runs}/full
cp -r {good.path}/. {runs}/full
{GLASSBOX} report --all {runs}; code=$?
ls -A {runs}/full; exit $code
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    job = subprocess.run(
        [*UNSHARE, "sh", "-c", script],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert job.returncode == 4, job.stdout + job.stderr
    lines = job.stdout.splitlines()
    assert SUMMARY in lines
    assert [line for line in lines if "full: failed: Expected" in line and "No space left on device" in line]
    assert "Traceback" not in job.stdout + job.stderr
    assert (good.report / "index.html").is_file()
    assert (runs / "index.html").is_file()
    remaining = lines[lines.index(SUMMARY) + 1 :]
    assert not [name for name in remaining if name == "report" or name.startswith((".tmp", ".old"))]
