"""The job over unchanged runs: it starts no Ray, loads no TensorFlow, and notices what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from shard_samples import make_record, write_shards

from service.report.batch import UP_TO_DATE, examine_all, report_all
from service.report.fingerprint import compute_fingerprint, find_published_shards
from service.report.options import PageOptions, ReportOptions
from service.report.pages.index import write_index
from service.report.publish import KIND, read_page_manifest, write_page_manifest
from service.report.reported import find_reported_runs, find_shards_and_mix
from service.runs import Run

JOB = """
import sys
from service.cli import main

code = main(["report", "--all", sys.argv[1]])
print("loaded:", sorted({"ray", "tensorflow", "keras"} & set(sys.modules)))
sys.exit(code)
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two finished runs with reports that are up to date."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    shards = write_shards(tmp_path / "shards", ("a", "b"), {"train": [make_record(pixels, 0, "one")]})
    for name in ("first", "second"):
        run = Run(tmp_path / "runs" / name)
        run.create({"preset": "tiny", "shards": str(shards)})
        run.update_status(state="finished")
        write_archive(run.model_path, name)
        (run.report / "pictures").mkdir(parents=True)
        (run.report / "pictures" / "map-1.png").write_bytes(b"")
        (run.report / "views").mkdir()
        (run.report / "views" / "data-1.js").write_bytes(b"")
        (run.report / "index.html").write_text("a report")
        fingerprint = compute_fingerprint(run, shards, ReportOptions(), PageOptions())
        manifest = {
            "kind": KIND,
            "made_of": fingerprint,
            "single_file": False,
            "pictures": [{"file": "pictures/map-1.png"}],
            "views": [{"file": "views/data-1.js"}],
            "figures": {"summary": {"best_accuracy": 0.75}},
        }
        write_page_manifest(run.report, manifest)
    return tmp_path / "runs"


def test_nothing_heavy_is_loaded_if_nothing_has_changed(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(runs)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "reports: 0 rendered, 2 up to date, 0 not finished, 0 failed"
    assert lines[-1] == "loaded: []"


def test_the_index_shows_the_summaries_that_were_read(runs: Path) -> None:
    assert [outcome.state for outcome in report_all(runs)] == [UP_TO_DATE, UP_TO_DATE]
    html = (runs / "index.html").read_text()
    assert html.count("75.0") >= 2
    assert "first/report/index.html" in html


@pytest.mark.parametrize(
    "missing", ["index.html", "manifest.json", "pictures/map-1.png", "pictures", "views/data-1.js"]
)
def test_a_report_with_a_missing_file_is_due(runs: Path, missing: str) -> None:
    path = runs / "first" / "report" / missing
    if path.is_dir():
        (path / "map-1.png").unlink()
        path.rmdir()
    else:
        path.unlink()
    due = find_due(runs)
    assert due == ["first"]


def test_a_report_with_a_damaged_record_is_due_and_not_on_the_index(runs: Path) -> None:
    report = runs / "first" / "report"
    stolen = {"thumbnails": [{"file": "pictures/../../../secret.png", "width": 1, "height": 1}]}
    write_page_manifest(report, read_page_manifest(report) | stolen)
    assert find_due(runs) == ["first"]
    write_index(runs, {run.name: run for run in find_reported_runs(runs)}, {})
    html = (runs / "index.html").read_text()
    assert "secret" not in html
    assert "first/report/" not in html
    assert "second/report/" in html


def test_the_configuration_is_compared_and_not_parsed(runs: Path, tmp_path: Path) -> None:
    run = Run(runs / "first")
    run.config_path.write_text("not: [YAML")
    assert find_due(runs) == ["first"]
    record_inputs(run, tmp_path / "shards")
    assert find_due(runs) == []


def test_the_shard_set_that_a_report_was_made_with_is_compared(runs: Path, tmp_path: Path) -> None:
    """Also if it is no longer the one that the configuration names, such as after a move."""
    moved = tmp_path / "moved"
    (tmp_path / "shards").rename(moved)
    assert find_due(runs) == ["first", "second"]
    record_inputs(Run(runs / "first"), moved)
    assert find_due(runs) == ["second"]


def test_a_model_of_the_same_size_and_time_is_noticed(runs: Path) -> None:
    """The digest decides, not size and time, which tools that copy files can restore."""
    model = runs / "second" / "model.keras"
    times = model.stat()
    write_archive(model, "SECOND")
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert find_due(runs) == ["second"]


def test_a_change_of_any_set_of_a_mix_is_noticed(runs: Path, tmp_path: Path) -> None:
    record = make_record(np.zeros((4, 4, 3), np.uint8), 0, "one")
    other = write_shards(tmp_path / "other", ("a", "b"), {"train": [record]})
    run = Run(runs / "first")
    shards, _ = find_shards_and_mix(run)
    mix = {str(shards): 0.5, str(other): 0.5}
    config = json.dumps({"preset": "tiny", "shards": str(shards), "data": {"mix": mix}})
    run.config_path.write_text(config)
    assert find_due(runs) == ["first"]
    manifest = read_page_manifest(run.report)
    manifest["made_of"] = compute_fingerprint(
        run, shards, ReportOptions(), PageOptions(), find_shards_and_mix(run)[1]
    )
    write_page_manifest(run.report, manifest)
    assert find_due(runs) == []

    shutil.rmtree(other)
    write_shards(tmp_path / "other", ("a", "b"), {"train": [record, record]})
    assert find_due(runs) == ["first"]


def test_the_sets_of_a_mix_are_found_without_the_configuration() -> None:
    made_of = {"data": "s3://b/set", "mix": {"s3://b/set": "tag", "s3://b/other": "another"}}
    shards, mix = find_published_shards({"made_of": made_of})
    assert (str(shards), mix) == ("s3://b/set", ["s3://b/set", "s3://b/other"])
    assert find_published_shards({"made_of": {"data": "s3://b/set"}})[1] == []


def write_archive(path: Path, content: str) -> None:
    """Writes a zip archive, which the file of a model is; its bytes depend on the content alone."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("config.json"), content)


def record_inputs(run: Run, shards: Path) -> None:
    """Records the present inputs of a run, as if its report had been rendered with a shard set."""
    made_of = compute_fingerprint(run, shards, ReportOptions(), PageOptions())
    write_page_manifest(run.report, read_page_manifest(run.report) | {"made_of": made_of})


def find_due(runs: Path) -> list[str]:
    """Returns the names of the runs whose reports would be rendered."""
    by_name = {run.name: run for run in find_reported_runs(runs)}
    examined = examine_all(by_name, ReportOptions(), PageOptions())
    return [name for name, one in examined if not one.state]
